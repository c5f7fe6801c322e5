"""Headless Chromium, driven over its DevTools protocol: opens pages of this machine, reads them, clicks, looks."""

import base64
import contextlib
import json
import subprocess
import tempfile
from pathlib import Path

from helpers.requirements import require
from helpers.waiting import until

CHROMIUM = Path("/usr/bin/chromium")


@contextlib.contextmanager
def chromium():
    """Start a browser that reaches loopback alone, and stop it."""
    require(CHROMIUM.exists(), f"{CHROMIUM} is not installed (apt install chromium)")
    with (
        tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile,
        _started(profile) as tab,
    ):
        yield tab


@contextlib.contextmanager
def _started(profile):
    process = subprocess.Popen(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--user-data-dir={profile}",
            "--remote-debugging-port=0", "--remote-allow-origins=*", "about:blank",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        told = Path(profile) / "DevToolsActivePort"
        until(lambda: told.exists() and len(told.read_text().splitlines()) == 2, 60, "Chromium starts")
        port, path = told.read_text().splitlines()
        with contextlib.closing(Browser(f"ws://127.0.0.1:{port}{path}")) as browser:
            yield browser
            browser.end()
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(30)


class Browser:
    """One tab."""

    def __init__(self, address):
        import websocket

        self._address = address
        self._socket = websocket.create_connection(address, timeout=60, suppress_origin=True)
        self._count, self._session = 0, None
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._ask("Page.enable")

    def other_tab(self):
        """Open another tab, to be closed after use."""
        return contextlib.closing(Browser(self._address))

    def end(self):
        """Close the browser with all its processes."""
        self._session = None
        self._ask("Browser.close")

    def close(self):
        self._socket.close()

    def _ask(self, method, **parameters):
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        while (answer := json.loads(self._socket.recv())).get("id") != self._count:
            pass  # an event; whoever waits for something looks at the page instead
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def open(self, address):
        """Go to a page."""
        answer = self._ask("Page.navigate", url=address)
        assert not answer.get("errorText"), f"{address}: {answer['errorText']}"

    def size(self, width, height):
        """Have a window of this size [px]; one narrower than a tablet is a phone."""
        self._ask(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip

    def evaluate(self, expression):
        """Give the value of an expression of JavaScript."""
        answer = self._ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, f"{expression}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def wait(self, expression, seconds=30):
        """Wait until an expression is true, for at most so long; give it."""

        def now():
            with contextlib.suppress(AssertionError):  # while a page loads, what it is made of is missing
                return self.evaluate(expression)

        return until(now, seconds, expression)

    def click(self, selector):
        """Click with the mouse on the middle of an element."""
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        x, y = self.evaluate(f"(box => [box.x + box.width / 2, box.y + box.height / 2])({box})")
        for kind in ("mousePressed", "mouseReleased"):
            self._ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, path):
        """Write what is seen as a PNG file."""
        Path(path).write_bytes(base64.b64decode(self._ask("Page.captureScreenshot")["data"]))
