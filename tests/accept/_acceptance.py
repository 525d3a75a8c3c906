"""What the scripts of acceptance share: a fresh clone, the lines of a script, and tests of the clone that prove one.

A script makes an `Acceptance`, registers its lines, and ends with `sys.exit(acceptance.main())`.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

__all__ = ["Acceptance", "Failed", "Place", "expect", "one_error"]

ROOT = Path(__file__).resolve().parents[2]


class Failed(Exception):
    """What was seen instead of what was expected."""


def expect(condition: bool, seen: object) -> None:
    if not condition:
        raise Failed(str(seen)[-6000:])


def one_error(done: subprocess.CompletedProcess[str], *, code: int, says: str) -> None:
    """The exit code, and one message without a traceback that says what it should."""
    expect(done.returncode == code, f"exit {done.returncode}: {done.stderr}")
    expect(re.search(says, done.stderr) is not None, done.stderr)
    expect("Traceback" not in done.stderr, done.stderr)


class Place:
    """A fresh clone and the environment of a user who has nothing yet."""

    def __init__(self, folder: Path) -> None:
        self.clone = folder / "agentrt"
        self.home = folder / "home"
        self.home.mkdir()
        git = ["git", "clone", "--quiet", "--no-local", str(ROOT), str(self.clone)]
        subprocess.run(git, check=True)
        kept = (
            "LANG",
            "TERM",
            "SSL_CERT_FILE",
            "PIP_CERT",
            "PIP_INDEX_URL",
            "UV_INDEX_URL",
            "REQUESTS_CA_BUNDLE",
        )
        self.env = {name: os.environ[name] for name in kept if name in os.environ}
        self.env["PATH"] = os.environ.get("PATH", os.defpath)
        # Where interpreters are found that are not on PATH: the user has them, if nothing else.
        self.env["PYENV_ROOT"] = os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv")
        self.env["HOME"] = str(self.home)

    def run(
        self, *command: str, timeout: float = 600, stdin: str | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.clone,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            **({"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}),
        )

    def agentrt(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return self.run("./dev", "agentrt", *arguments, **env)

    def prove(self, *nodes: str, servers: bool = False, slow: bool = False) -> str:
        """Run tests of the clone: each of `nodes` (a file, a test, or one with its parameters) must have tests that
        passed, and none that failed or was skipped."""
        report = self.home / "report.xml"
        report.unlink(missing_ok=True)
        marks = ["--servers"] * servers + ["--slow"] * slow
        began = time.monotonic()
        done = self.run("./dev", "test", *marks, "-q", f"--junitxml={report}", *nodes, timeout=1800)
        expect(done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:])
        cases = [
            (_node(case), [child.tag for child in case])
            for case in ElementTree.parse(report).iter("testcase")
        ]
        skipped = [name for name, outcome in cases if "skipped" in outcome]
        expect(not skipped, f"skipped: {', '.join(skipped)}")
        for node in nodes:
            expect(any(_is_of(name, node) for name, _ in cases), f"no test was run of {node}")
        return f"{len(cases)} tests in {time.monotonic() - began:.0f} s"


def _node(case: ElementTree.Element) -> str:
    """The id of a test as pytest takes it, from what a report calls it."""
    parts = case.get("classname", "").split(".")
    # The file is as far as names are lower-case; a class of tests may follow.
    classes = [part for part in parts if part[:1].isupper()]
    path = "/".join(parts[: len(parts) - len(classes)]) + ".py"
    return "::".join([path, *classes, case.get("name", "")])


def _is_of(test: str, node: str) -> bool:
    if test == node or test.startswith((f"{node}[", f"{node}::")):
        return True
    return not node.endswith(".py") and "::" not in node and test.startswith(node.rstrip("/") + "/")


Line = Callable[[Place], str]


class Acceptance:
    """The lines of a script, in order. `name`, `description`: for its help."""

    def __init__(self, name: str, description: str | None) -> None:
        self.lines: dict[str, Line] = {}
        self._parser = argparse.ArgumentParser(prog=f"dev accept {name}", description=description)
        self._parser.add_argument(
            "--only",
            action="append",
            default=[],
            help="the lines whose name contains this; may be given again",
        )
        self._parser.add_argument("--list", action="store_true", help="only the names of the lines")

    def line(self, name: str) -> Callable[[Line], Line]:
        """Register a line: a function that returns what it saw, or raises."""

        def register(check: Line) -> Line:
            if name in self.lines:
                raise ValueError(f"there are two lines {name!r}")
            self.lines[name] = check
            return check

        return register

    def proved(self, name: str, *nodes: str, servers: bool = False, slow: bool = False) -> None:
        """Register a line that tests prove."""
        self.line(name)(lambda place: place.prove(*nodes, servers=servers, slow=slow))

    def main(self) -> int:
        options = self._parser.parse_args()
        for only in options.only:
            if not any(only in name for name in self.lines):
                self._parser.error(f"no line has {only!r} in its name; --list shows them")
        wanted = {
            name: check
            for name, check in self.lines.items()
            if not options.only or any(only in name for only in options.only)
        }
        if options.list:
            print(*wanted, sep="\n")
            return 0
        folder = Path(tempfile.mkdtemp(prefix="agentrt-accept-"))
        failed = 0
        try:
            place = Place(folder)
            for name, check in wanted.items():
                try:
                    seen = check(place)
                    print(f"PASS  {name}\n      {seen}", flush=True)
                except Exception as error:
                    failed += 1
                    print(f"FAIL  {name}\n      {type(error).__name__}: {error}", flush=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print(f"{len(wanted) - failed} of {len(wanted)} lines passed", flush=True)
        return 1 if failed else 0
