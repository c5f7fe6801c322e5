"""Encryption: a certificate made for one cluster, which is also the key to it, and where it is kept."""

from __future__ import annotations

import datetime
import os
import shutil
import tempfile
from pathlib import Path

from distributed.security import Security

from hepdask.errors import ClusterError
from hepdask.files.atomic import renamed_to
from hepdask.user_environment import is_private

_DAYS = 30  # longer than any cluster stays up


def make_certificate() -> str:
    """Make a new key and its self-signed certificate, as one text in PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hepdask")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # clocks of the nodes differ
        .not_valid_after(now + datetime.timedelta(days=_DAYS))
        .sign(key, hashes.SHA256())
    )
    parts = (
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        certificate.public_bytes(serialization.Encoding.PEM),
    )
    return b"".join(parts).decode()


def write_certificate(folder: Path) -> Path:
    """Make a certificate and write it into a folder of its own that only its owner can enter.

    Parameters
    ----------
    folder : Path
        Where all nodes of the cluster see it; made where it is missing.

    Returns
    -------
    Path
        The file; `remove_certificate` takes it away.

    Raises
    ------
    ClusterError
        The folder cannot be written, or others could read the file there.
    """
    try:
        make_folder(folder)
        path = Path(tempfile.mkdtemp(prefix="certificate-", dir=folder)).absolute() / "cluster.pem"
        write_private(path, make_certificate())
    except OSError as error:
        raise ClusterError(
            f"{folder}: the certificate of the cluster cannot be written ({error.strerror or error}); set "
            "shared_temp_directory to a folder that you can write and all nodes see"
        ) from None
    if (path.stat().st_mode | path.parent.stat().st_mode) & 0o077:
        remove_certificate(path)
        raise ClusterError(
            f"{folder}: on this file system others can read your files; set shared_temp_directory to one that "
            "respects file modes"
        )
    return path


def remove_certificate(path: Path) -> None:
    """Remove what `write_certificate` wrote."""
    shutil.rmtree(path.parent, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Make a folder, where it is missing, that only its owner can enter; one that is there is left as it is."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def log_folder(directory: str) -> Path:
    """Give the folder of the jobs' output, closed to others: the one that was named, or one of the user's in it.

    Batch systems open these files as they please, so that it is the folder that has to be closed.
    """
    folder = Path(directory).absolute()
    return folder if not folder.exists() or is_private(folder) else folder / f"private-{os.getuid()}"


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whatever was there before; whole, or not at all."""
    with (
        renamed_to(path) as temporary,
        open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file,
    ):
        file.write(text)


def security_of(certificate: Path | str) -> Security:
    """Let in those who hold the certificate, and trust nobody else.

    Parameters
    ----------
    certificate : Path or str
        The file, or the text itself: what has more than one line is text.
    """
    held = str(certificate)
    roles = {
        f"tls_{role}_{part}": held for role in ("client", "scheduler", "worker") for part in ("cert", "key")
    }
    return Security(require_encryption=True, tls_ca_file=held, **roles)
