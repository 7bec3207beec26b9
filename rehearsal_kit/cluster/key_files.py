"""Whom a file or folder can be trusted from: keys that only we can read, files that only we can change."""

from __future__ import annotations

import errno
import os
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from distributed.security import Security

from rehearsal_kit.base.errors import ClusterError

READABLE_OR_WRITABLE = 0o077
WRITABLE = 0o022
CLOCKS_DIFFER = timedelta(days=1)
VALID = timedelta(days=365)


def write_key(path: Path) -> None:
    """A new certificate with its private key, for every role of one cluster; PEM, mode 0600.

    ClusterError where there is a file of that name already.
    """
    pem = _new_pair()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ClusterError(
            f"key file {path} cannot be written: {error.strerror}; choose a new name."
        ) from error
    with os.fdopen(descriptor, "w") as file:
        file.write(pem)


def untimely(key: Path, now: datetime) -> str:
    """Why the certificate of this file is not valid now, by the clock of this machine; empty if it is."""
    certificate = x509.load_pem_x509_certificate(read_trusted(key, forbidden=READABLE_OR_WRITABLE).encode())
    since, until = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if since <= now <= until:
        return ""
    cure = (
        "set the clock right, here or where the key was made; `timedatectl` shows whether it follows a server"
        if now < since
        else "write a new one by `rehearsal-kit key NEW`, and start the cluster with it"
    )
    return (
        f"key {key} is valid from {since:%Y-%m-%d %H:%M} to {until:%Y-%m-%d %H:%M} UTC, and the clock of "
        f"this machine says {now:%Y-%m-%d %H:%M}; {cure}"
    )


def _new_pair() -> str:
    """A certificate that vouches for itself, and its private key, as PEM.

    As `Security.temporary` makes it, but valid since yesterday: clocks of two machines differ, and for the
    one that is behind a fresh certificate would be none yet.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "rehearsal-kit")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("rehearsal-kit")]), critical=False)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCKS_DIFFER)
        .not_valid_after(now + VALID)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return (certificate.public_bytes(serialization.Encoding.PEM) + private).decode()


def security_of(key: Path) -> Security:
    """TLS for every role with the certificate and private key of this file, and nothing unencrypted.

    ClusterError unless the file is ours, no link, and of no use to anybody else.
    """
    # The text, not the path: what is used is what was looked at, whatever the path names later.
    pem = read_trusted(key, forbidden=READABLE_OR_WRITABLE, links=False)
    if "CERTIFICATE" not in pem or "PRIVATE KEY" not in pem:
        raise ClusterError(
            f"key file {key} must hold a certificate and its private key, both PEM; `rehearsal-kit key FILE` "
            "writes one."
        )
    roles = ("client", "scheduler", "worker")
    pairs = {f"tls_{role}_{part}": pem for role in roles for part in ("cert", "key")}
    # All of it is given: what is not, Dask takes from the configuration of the site.
    return Security(
        require_encryption=True,
        tls_ca_file=pem,
        tls_ciphers=None,
        tls_min_version=ssl.TLSVersion.TLSv1_2,
        tls_max_version=None,
        **pairs,
    )


def read_trusted(path: Path, *, forbidden: int = WRITABLE, links: bool = True) -> str:
    """The text of a file that is ours and gives others none of the forbidden permissions."""
    try:
        # Not blocking: a pipe in place of the file must not hold us up.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | (0 if links else os.O_NOFOLLOW))
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ClusterError(f"{path} is a symbolic link; give the file itself.") from error
        raise ClusterError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ClusterError(f"{path} must be a file.")
        _require_ours(path, status, forbidden=forbidden, cure="600")
        return os.read(descriptor, status.st_size).decode(errors="replace")
    finally:
        os.close(descriptor)


def require_private_folder(path: Path) -> None:
    """ClusterError unless this folder is ours and nobody else can look into it; it holds keys."""
    try:
        status = path.lstat()
    except OSError as error:
        raise ClusterError(f"{path} cannot be read: {error.strerror}.") from error
    if not stat.S_ISDIR(status.st_mode):
        raise ClusterError(f"{path} must be a folder, and no link to one: it holds keys.")
    _require_ours(path, status, forbidden=READABLE_OR_WRITABLE, cure="700")


def _require_ours(path: Path, status: os.stat_result, *, forbidden: int, cure: str) -> None:
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != os.getuid() or mode & forbidden:
        allowed = "not writable by others" if forbidden == WRITABLE else "yours alone"
        raise ClusterError(
            f"{path} belongs to user {status.st_uid} with mode {mode:o}; it must be yours (user "
            f"{os.getuid()}) and {allowed}: chmod {cure} {path}."
        )
