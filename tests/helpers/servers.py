"""A real XRootD server on loopback that tests can stop, freeze and start again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def new_key(path):
    """Make a file with one shared secret of XRootD's sss protocol."""
    path.unlink(missing_ok=True)
    subprocess.run(
        ["xrdsssadmin", "-k", "hepdask", "-u", "nobody", "-g", "nogroup", "-x", "2", "add", str(path)],
        input=b"y\n", check=True, capture_output=True,
    )  # fmt: skip
    return path


class XRootDServer:
    """Serves one folder; with `key`, only to who holds the same shared secret."""

    def __init__(self, folder, work, key=None):
        self.folder = folder
        self.port = free_port()
        self.url = f"root://127.0.0.1:{self.port}/"
        self._config = work / "xrootd.cfg"
        self._log = work / "xrootd.log"
        lines = [
            "all.role server", "all.export /", f"oss.localroot {folder}", f"xrd.port {self.port}",
            "xrd.allow host 127.0.0.1", "xrd.allow host localhost",
            f"all.adminpath {work}/admin", f"all.pidpath {work}/pid",
        ]  # fmt: skip
        if key is not None:
            own = Path(shutil.copy(key, work / "server.keytab"))
            own.chmod(0o600)
            if os.geteuid() == 0:
                shutil.chown(own, "nobody")
            lines += [
                "xrootd.seclib libXrdSec.so", f"sec.protocol sss -s {own}", "sec.protbind * only sss",
            ]  # fmt: skip
        self._config.write_text("\n".join(lines) + "\n")
        self.process = None

    def start(self):
        """Start, also again after `stop`: on the same port."""
        user = ["-R", "nobody"] if os.geteuid() == 0 else []
        self.process = subprocess.Popen(
            ["xrootd", "-c", str(self._config), "-l", str(self._log), *user],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.process.poll() is None:
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        log = self._log.read_text() if self._log.exists() else "it wrote no log"
        raise RuntimeError(f"xrootd did not start: {log}")

    def stop(self):
        """Kill it, as a machine that is lost."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def freeze(self):
        """Let it hang: connections are accepted, nothing is answered."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)


@contextmanager
def xrootd_server(paths, key=None):
    """Serve copies of some files, from a folder that an unprivileged server can reach."""
    with tempfile.TemporaryDirectory(prefix="hepdask-xrootd-") as root:
        folder, work = Path(root, "served"), Path(root, "work")
        folder.mkdir()
        work.mkdir()
        for path in paths:
            shutil.copy(path, folder)
        os.chmod(root, 0o755)
        if os.geteuid() == 0:
            shutil.chown(work, "nobody")
        server = XRootDServer(folder, work, key)
        server.start()
        try:
            yield server
        finally:
            server.stop()
