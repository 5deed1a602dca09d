"""PostgreSQL with TLS, its certificate from an authority of the tests' own."""

from __future__ import annotations

import os
from pathlib import Path

import trustme

from tests.support.postgres import PostgresServer


def authority(folder: Path, name: str = "authority") -> tuple[trustme.CA, Path]:
    """An authority, and the file of its certificate."""
    made = trustme.CA()
    path = folder / f"{name}.pem"
    made.cert_pem.write_to_path(str(path))
    return made, path


def secure(server: PostgresServer, certificate: trustme.LeafCert) -> None:
    """Give a server of the test's own a certificate, and start it again with TLS."""
    owner = server.data.stat()
    for name, content in (
        ("server.crt", b"".join(blob.bytes() for blob in certificate.cert_chain_pems)),
        ("server.key", certificate.private_key_pem.bytes()),
    ):
        path = server.data / name
        path.write_bytes(content)
        path.chmod(0o600)
        os.chown(path, owner.st_uid, owner.st_gid)
    with (server.data / "postgresql.conf").open("a") as config:
        config.write("ssl = on\n")
    server.restart()
