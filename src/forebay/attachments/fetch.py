"""Fetching an element's URL, which may come from a user: bounded in size, time and redirects, from public addresses.

The address is looked at when it is connected to, so neither a redirect nor a name that changes its address
between a check and its use leads elsewhere.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import aiohttp
from aiohttp.abc import AbstractCookieJar

from forebay.errors import FetchError
from forebay.primitives import threads
from forebay.settings import Settings

_MOST_REDIRECTS = 5
_CHUNK_BYTES = 256 * 1024
_SCHEMES = ("http://", "https://")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# What IANA's registries of special addresses keep from the public internet, and `is_global` of some of the supported
# Pythons does not; and the services that two clouds give their machines at addresses which look public.
_NOT_PUBLIC_V4 = tuple(
    map(
        ipaddress.IPv4Network,
        ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32"),
    )
)
# All that is given out for use is in here. What is not given out yet is no one's to be fetched from.
_GIVEN_OUT_V6 = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_V6 = tuple(
    map(
        ipaddress.IPv6Network,
        ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20"),
    )
)


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was fetched: its type, as the server says, and its size in bytes."""

    mime: str
    size: int


def can_fetch(url: str) -> bool:
    """Whether it is of http or https; others, such as `data:` and paths, stay what they are."""
    return url.lower().startswith(_SCHEMES)


async def fetch(url: str, into: Path, settings: Settings) -> Fetched:
    """Write what is at `url` to a new file `into`. Raises FetchError, and OSError for the file."""
    timeout = aiohttp.ClientTimeout(total=settings.fetch_timeout)
    connector = aiohttp.TCPConnector(socket_factory=None if settings.fetch_private else _public_socket)
    jar: AbstractCookieJar = aiohttp.DummyCookieJar()
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, connector=connector, cookie_jar=jar) as session,
            session.get(url, max_redirects=_MOST_REDIRECTS) as response,
        ):
            if not response.ok:
                raise FetchError(f"the server answers {response.status}")
            size = await _save(response, into, settings.fetch_max_bytes)
            return Fetched(response.content_type, size)
    except aiohttp.TooManyRedirects:
        raise FetchError(f"more than {_MOST_REDIRECTS} redirects") from None
    except TimeoutError:
        raise FetchError("the server takes longer than FOREBAY_FETCH_TIMEOUT") from None
    except aiohttp.ClientConnectorError as error:
        raise FetchError(_why(error)) from None
    except (aiohttp.ClientError, ValueError) as error:  # ValueError: what yarl makes of a broken URL
        raise FetchError(f"it can't be fetched ({type(error).__name__})") from None


def _why(error: aiohttp.ClientConnectorError) -> str:
    if isinstance(error.os_error, _NotPublic):
        return "its address is not public; FOREBAY_FETCH_PRIVATE=true allows that"
    return "the server can't be reached"


async def _save(response: aiohttp.ClientResponse, into: Path, most: int) -> int:
    """The size. What is compressed counts unpacked, as it arrives here."""
    if (response.content_length or 0) > most:
        raise FetchError("it is larger than FOREBAY_FETCH_MAX_BYTES")
    size = 0
    file: IO[bytes] = await threads.run(lambda: into.open("xb"))
    try:
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            size += len(chunk)
            if size > most:
                raise FetchError("it is larger than FOREBAY_FETCH_MAX_BYTES")
            await threads.run(partial(file.write, chunk))
    finally:
        await threads.run(file.close)
    return size


class _NotPublic(OSError):
    """An address that is not open to everybody; an OSError, for that is what a connection may raise."""


def _public_socket(address: Any) -> socket.socket:
    """aiohttp's socket factory: a socket for this address, if it is public."""
    family, kind, protocol, _, place = address
    if not is_public(str(place[0])):
        raise _NotPublic
    return socket.socket(family, kind, protocol)


def is_public(address: str) -> bool:
    """Whether an IP address is of the public internet, also where it stands within another one."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = _within(found)
        if inner is None:
            return found in _GIVEN_OUT_V6 and not any(found in network for network in _NOT_PUBLIC_V6)
        found = inner
    return (
        found.is_global
        and not found.is_multicast
        and not found.is_reserved
        and not any(found in network for network in _NOT_PUBLIC_V4)
    )


def _within(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that this one stands for. Tunnels, which also hold one, are not public at all."""
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped
