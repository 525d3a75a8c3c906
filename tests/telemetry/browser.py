"""A page in a real browser: Debian's chromium without a window, driven through pipes by the DevTools protocol."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

__all__ = ["Browser", "Page"]

SECONDS = 30.0
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)
Scheme = Literal["light", "dark"]


class Browser:
    """chromium as a child process; it ends with the block."""

    def __init__(self, *, program: str = "/usr/bin/chromium") -> None:
        assert os.access(program, os.X_OK), f"there is no {program}: ./dev servers installs it"
        self._folder = tempfile.mkdtemp(prefix="agentrt-browser-")
        ours_in, theirs_out = _pipe()
        theirs_in, ours_out = _pipe()
        self._in, self._out = ours_in, ours_out
        # chromium reads commands from descriptor 3 and writes to 4, whatever numbers our pipes have.
        line = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", line, program, *FLAGS, f"--user-data-dir={self._folder}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(theirs_in, theirs_out),
            start_new_session=True,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._buffer = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._out)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        os.close(self._in)
        shutil.rmtree(self._folder, ignore_errors=True)

    def open(self, path: Path, *, width: int = 1400, height: int = 900, scheme: Scheme = "light") -> Page:
        """A page of its own with this file, loaded."""
        target = self.send("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.send("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.send(f"{domain}.enable")
        page.resize(width, height)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.send("Emulation.setEmulatedMedia", {"features": features})
        page.send("Page.navigate", {"url": path.as_uri()})
        page.wait_for("document.readyState === 'complete'")
        return page

    def send(
        self, method: str, params: dict[str, Any] | None = None, session: str | None = None
    ) -> dict[str, Any]:
        """Send a command and wait for its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params or {}}
        if session is not None:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + SECONDS
        while True:
            answer = self._receive(until)
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def _receive(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, until - time.monotonic()))
            assert ready, "chromium does not answer"
            data = os.read(self._in, 1 << 20)
            assert data, "chromium has ended"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message


class Page:
    """A page that a user looks at and types into."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    def send(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._browser.send(method, params, self._session)

    def value(self, expression: str) -> Any:
        """What an expression is, in the page."""
        got = self.send("Runtime.evaluate", {"expression": expression, "returnByValue": True})
        assert "exceptionDetails" not in got, got["exceptionDetails"]
        return got["result"].get("value")

    def wait_for(self, expression: str) -> None:
        until = time.monotonic() + SECONDS
        while not self.value(expression):
            assert time.monotonic() < until, f"never true: {expression}"
            time.sleep(0.02)

    def click(self, selector: str, *, times: int = 1) -> None:
        """Click on the middle of the first element that fits."""
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        place = self.value(
            f"(() => {{ const b = {box}; return [b.x + b.width / 2, b.y + b.height / 2]; }})()"
        )
        mouse = {"x": place[0], "y": place[1], "button": "left"}
        for count in range(1, times + 1):
            for kind in ("mousePressed", "mouseReleased"):
                self.send("Input.dispatchMouseEvent", {"type": kind, "clickCount": count, **mouse})

    def drag(self, selector: str, begin: float, end: float) -> None:
        """Draw the mouse across an element, from one share of its width to another."""
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        x, y, width = self.value(
            f"(() => {{ const b = {box}; return [b.x, b.y + b.height / 2, b.width]; }})()"
        )
        steps = (("mousePressed", begin), ("mouseMoved", (begin + end) / 2), ("mouseMoved", end))
        for kind, share in (*steps, ("mouseReleased", end)):
            mouse = {"type": kind, "x": x + share * width, "y": y, "button": "left", "buttons": 1}
            self.send("Input.dispatchMouseEvent", {**mouse, "clickCount": 1})

    def press(self, key: str, *, shift: bool = False) -> None:
        codes = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        text = "\r" if key == "Enter" else key if len(key) == 1 else ""
        event: dict[str, Any] = {"key": key, "modifiers": 8 if shift else 0}
        event["windowsVirtualKeyCode"] = codes.get(key, ord(key[0].upper()))
        self.send("Input.dispatchKeyEvent", {"type": "keyDown", "text": text, **event})
        self.send("Input.dispatchKeyEvent", {"type": "keyUp", **event})

    def type(self, text: str) -> None:
        self.send("Input.insertText", {"text": text})

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", size)

    def screenshot(self, path: Path) -> None:
        data = self.send("Page.captureScreenshot")["data"]
        path.write_bytes(base64.b64decode(data))

    def problems(self) -> list[str]:
        """What the browser complained about, and what it fetched besides the file itself."""
        self.value("1")
        found = []
        for event in self._browser.events:
            if event.get("sessionId") != self._session:
                continue
            params = event["params"]
            match event["method"]:
                case "Runtime.exceptionThrown":
                    found.append(f"exception: {params['exceptionDetails']}")
                case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                    found.append(f"log: {params['entry']['text']}")
                case "Runtime.consoleAPICalled":
                    found.append(f"console: {params['args']}")
                case "Network.requestWillBeSent" if params["type"] != "Document":
                    found.append(f"request: {params['request']['url']}")
                case _:
                    pass
        return found


def _pipe() -> tuple[int, int]:
    """A pipe out of the way of the descriptors that chromium wants."""
    ends = os.pipe()
    read, write = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return read, write
