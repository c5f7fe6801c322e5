"""Encryption: a certificate made for one cluster, which is also the key to it."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from distributed.security import Security

from hepdask.errors import ClusterError

_OPENSSL_TIMEOUT = 60.0


def make_certificate(folder: Path) -> Path:
    """Write a new key and its self-signed certificate into one file that only its owner can read.

    Parameters
    ----------
    folder : Path
        Where all nodes of the cluster see it.

    Raises
    ------
    ClusterError
        There is no openssl, or it fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix="certificate-", suffix=".pem", dir=folder)  # mode 600
    os.close(handle)
    words = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "30",
        "-subj",
        "/CN=hepdask",
    ]
    try:
        done = subprocess.run(
            [*words, "-keyout", "-", "-out", "-"], capture_output=True, text=True, timeout=_OPENSSL_TIMEOUT
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ClusterError(f"tls needs the program openssl to make a certificate: {error}") from None
    if done.returncode:
        raise ClusterError(f"openssl could not make a certificate: {done.stderr.strip()}")
    path = Path(name)
    path.write_text(done.stdout)
    return path.absolute()


def security_of(certificate: Path | str) -> Security:
    """Let in those who hold the file, and trust nobody else."""
    path = str(certificate)
    roles = {
        f"tls_{role}_{part}": path for role in ("client", "scheduler", "worker") for part in ("cert", "key")
    }
    return Security(require_encryption=True, tls_ca_file=path, **roles)
