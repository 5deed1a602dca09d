"""TLS in front of PostgreSQL, which may have been built without; certificates from an authority of the tests' own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
import trustme
from anyio.from_thread import start_blocking_portal

from tests.support.postgres import PostgresServer

_CHUNK = 65536
_TLS_REQUEST = bytes.fromhex("00000008 04d2162f")  # "SSLRequest" in the manual's "Message Formats"


def authority(folder: Path, name: str = "authority") -> tuple[trustme.CA, Path]:
    """An authority, and the file of its certificate."""
    made = trustme.CA()
    path = folder / f"{name}.pem"
    made.cert_pem.write_to_path(str(path))
    return made, path


class TlsFront:
    """Takes connections for a server on a free port of 127.0.0.1, with TLS if the client asks for it.

    `encrypted` tells of each session that began, in order, whether it did.
    """

    def __init__(self, url: str, certificate: trustme.LeafCert) -> None:
        where = urlsplit(url)
        assert where.hostname is not None
        self._upstream = (where.hostname, where.port or 5432)
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        certificate.configure_cert(self._context)
        self._links: set[asyncio.Task[None]] = set()
        self.encrypted: list[bool] = []
        self.port = 0

    @classmethod
    @contextmanager
    def before(cls, url: str, certificate: trustme.LeafCert) -> Iterator[TlsFront]:
        """One in front of the server that a database's URL names. It runs in a loop of its own."""
        front = cls(url, certificate)
        with start_blocking_portal() as portal:
            server = portal.call(front._listen)
            yield front
            portal.call(front._close, server)

    def url(self, url: str, host: str = "127.0.0.1") -> str:
        """The database's URL, by way of the front."""
        where = urlsplit(url)
        user = where.netloc.rpartition("@")[0]
        return urlunsplit(where._replace(netloc=f"{user}@{host}:{self.port}"))

    async def _listen(self) -> asyncio.Server:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _close(self, server: asyncio.Server) -> None:
        server.close()
        for link in self._links:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.current_task()
        assert link is not None
        self._links.add(link)
        # A client that trusts nobody hangs up in the middle of the handshake.
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._link(reader, writer)
        finally:
            writer.close()
            self._links.discard(link)

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.readexactly(len(_TLS_REQUEST))
        if encrypted := first == _TLS_REQUEST:
            writer.write(b"S")
            await writer.start_tls(self._context)
            first = await reader.readexactly(len(_TLS_REQUEST))
        server_reader, server_writer = await asyncio.open_connection(*self._upstream)
        self.encrypted.append(encrypted)
        server_writer.write(first)
        ways = ((reader, server_writer), (server_reader, writer))
        pumps = [asyncio.ensure_future(_pump(*way)) for way in ways]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            server_writer.close()


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(_CHUNK):
            target.write(data)
            await target.drain()


def secure(server: PostgresServer, certificate: trustme.LeafCert) -> None:
    """Give a server of the test's own a certificate, and start it again with TLS. Skips where it can't have any."""
    if not server.execute("SHOW ssl_library")[0]["ssl_library"]:
        pytest.skip("this PostgreSQL was built without TLS; on Debian: apt-get install postgresql")
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
