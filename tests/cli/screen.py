"""agentrt on a terminal: a child process on a pty, as a user sees and types it."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["Screen"]

SECONDS = 45.0


class Screen:
    """`python -m agentrt ARGUMENTS` on a terminal of its own; `stdout`: a file for its output instead."""

    def __init__(self, *arguments: str, cwd: Path, env: dict[str, str], stdout: Path | None = None) -> None:
        self._primary, secondary = pty.openpty()
        self.text = ""
        self._seen = 0
        output = secondary if stdout is None else os.open(stdout, os.O_WRONLY | os.O_CREAT)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "agentrt", *arguments],
            stdin=secondary,
            stdout=output,
            stderr=secondary,
            cwd=cwd,
            env={**env, "TERM": "xterm", "COLUMNS": "200"},
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        for descriptor in {secondary, output}:
            os.close(descriptor)

    def wait_for(self, pattern: str) -> str:
        """Wait until `pattern` appears behind what was waited for before; returns everything up to its end."""
        until = time.monotonic() + SECONDS
        while True:
            found = re.search(pattern, self.text[self._seen :])
            if found is not None:
                begin, self._seen = self._seen, self._seen + found.end()
                return self.text[begin : self._seen]
            assert time.monotonic() < until, f"no {pattern!r} in {self.text[self._seen :]!r}"
            if not self._read(0.2) and self.process.poll() is not None:
                self._read(0.2)
                assert re.search(pattern, self.text[self._seen :]), (
                    f"ended without {pattern!r}: {self.text[self._seen :]!r}"
                )

    def send(self, text: str) -> None:
        os.write(self._primary, text.encode())

    def press(self, key: str) -> None:
        """A letter together with Ctrl."""
        time.sleep(0.1)  # readline does not notice a signal that comes while it still handles the last key
        self.send(chr(ord(key) & 0x1F))

    def end(self) -> int:
        """Wait until the process has ended; its exit code."""
        until = time.monotonic() + SECONDS
        while self.process.poll() is None:
            assert time.monotonic() < until, f"it does not end: {self.text!r}"
            self._read(0.1)
        while self._read(0.1):
            pass
        return self.process.returncode

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        os.close(self._primary)

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self._primary], [], [], seconds)
        if not ready:
            return False
        try:
            data = os.read(self._primary, 65536)
        except OSError:  # Linux says so at the end of the other side
            return False
        self.text += data.decode(errors="replace").replace("\r\n", "\n")
        return bool(data)


def _take_terminal() -> None:
    """The pty becomes the controlling terminal, so that Ctrl-C typed there is a SIGINT here."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
