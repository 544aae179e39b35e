"""Pages in headless Chromium, by its debugging protocol over two pipes."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
LAUNCH = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for number, end in zip((3, 4), ends):  # where Chromium looks for its pipes
    os.dup2(end, number)
os.execv(sys.argv[3], sys.argv[3:])
"""
SECONDS = 60  # for anything that a page is waited for


def executable() -> str | None:
    """A Chromium on this machine, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Tab:
    """One tab: `errors` are those of scripts and of what could not be loaded."""

    def __init__(self, said: Any, heard: Any) -> None:
        self._said, self._heard, self._count = said, heard, 0
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    _session: str | None = None

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the protocol, and its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._said.write(json.dumps(message).encode() + b"\0")
        self._said.flush()
        while True:
            answer = json.loads(self._read())
            if answer.get("id") == self._count:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._note(answer)

    def _read(self) -> bytes:
        """A message, which ends with a zero byte."""
        parts = bytearray()
        while (byte := self._heard.read(1)) != b"\0":
            assert byte, "Chromium has ended"
            parts += byte
        return bytes(parts)

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"].get("exception", params)))
        if event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    def size(self, width: int, height: int = 900) -> None:
        """The size of the window, in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip

    def open(self, url: str) -> None:
        """Load a page and wait until it is there."""
        self.call("Page.navigate", url=url)
        self.wait("document.readyState == 'complete' && location.href != 'about:blank'")

    def evaluate(self, script: str) -> Any:
        """The value of an expression of JavaScript."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, script: str) -> None:
        """Wait until an expression of JavaScript is true."""
        for _ in range(SECONDS * 10):
            if self.evaluate(script):
                return
            time.sleep(0.1)
        raise AssertionError(f"not true in {SECONDS} s: {script}")

    def screenshot(self) -> str:
        """The window as a PNG, in base64."""
        return self.call("Page.captureScreenshot")["data"]


@contextmanager
def tab(profile: Path) -> Iterator[Tab]:
    """A tab of a browser of its own, without a network but this machine's."""
    to_browser, said = os.pipe()
    heard, from_browser = os.pipe()
    command = [
        sys.executable, "-c", LAUNCH, str(to_browser), str(from_browser), executable() or "",
        "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--user-data-dir={profile}",
    ]  # fmt: skip
    browser = subprocess.Popen(
        command, pass_fds=(to_browser, from_browser), stderr=subprocess.DEVNULL
    )
    os.close(to_browser)
    os.close(from_browser)
    try:
        with os.fdopen(said, "wb") as to, os.fdopen(heard, "rb") as back:
            yield Tab(to, back)
    finally:
        browser.terminate()
        browser.wait()
