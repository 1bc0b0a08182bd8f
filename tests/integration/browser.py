"""A headless Chromium, driven over its DevTools pipe: no driver and no network port are needed.

https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One page. `profile` is an empty folder for what the browser writes."""

    def __init__(self, profile: Path, width: int = 1000, height: int = 640) -> None:
        assert CHROMIUM is not None
        commands_out, self._commands = os.pipe()
        self._answers, answers_in = os.pipe()
        # The browser reads commands from descriptor 3 and answers on 4.
        shell = f'exec "$0" "$@" 3<&{commands_out} 4>&{answers_in}'
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        flags += ["--remote-debugging-pipe", f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        self._process = subprocess.Popen(
            ["bash", "-c", shell, CHROMIUM, *flags, "about:blank"],
            pass_fds=(commands_out, answers_in),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands_out)
        os.close(answers_in)
        self._rest = b""
        self.complaints: list[str] = []
        """Errors that pages have logged since `Log.enable` and `Runtime.enable` were called."""
        self._number = 0
        self._session: str | None = None
        # It takes commands before its first page is there.
        end_s = time.monotonic() + 60
        while not (pages := self._pages()):
            assert time.monotonic() < end_s, "the browser opens no page"
            time.sleep(0.05)
        (page,) = pages
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        self.call("Page.enable")  # without it scripts for new documents are ignored
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def _pages(self) -> list[str]:
        targets = self.call("Target.getTargets")["targetInfos"]
        return [target["targetId"] for target in targets if target["type"] == "page"]

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command; events that come in between are passed over."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                assert select.select([self._answers], [], [], 60)[0], f"no answer to {method}"
                more = os.read(self._answers, 1 << 16)
                assert more, "the browser has ended"
                self._rest += more
            answer, _, self._rest = self._rest.partition(b"\0")
            told = json.loads(answer)
            self.complaints += _complaints(told)
            if told.get("id") == self._number:
                assert "error" not in told, told["error"]
                return told["result"]

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        told = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def wait_for(self, expression: str, timeout_s: float = 60.0) -> None:
        """Returns once the expression is true; fails after the time, showing the page's text."""
        end_s = time.monotonic() + timeout_s
        while not self.run(expression):
            assert time.monotonic() < end_s, f"{expression}:\n{self.run('document.body.innerText')}"
            time.sleep(0.05)

    def press(self, key: str, text: str = "", code: int = 0) -> None:
        """A key goes down and up, as a person's does."""
        key_event = {"key": key, "text": text, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", **key_event)
        self.call("Input.dispatchKeyEvent", type="keyUp", **key_event)

    def screenshot(self, path: Path) -> None:
        """Writes what is seen as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        """Ends the browser."""
        with suppress(AssertionError, OSError):
            self._session = None
            self.call("Browser.close")
        self._process.terminate()
        self._process.wait(60)
        os.close(self._commands)
        os.close(self._answers)


def _complaints(event: dict[str, Any]) -> list[str]:
    """What an event says of a fault in the page: an error logged, or an exception."""
    method, params = event.get("method"), event.get("params", {})
    if method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
        return [params["entry"]["text"]]
    if method == "Runtime.exceptionThrown":
        return [str(params["exceptionDetails"])]
    if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
        return [str(params["args"])]
    return []
