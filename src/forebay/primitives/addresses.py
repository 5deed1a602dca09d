"""Where a server that listens is reached."""

from __future__ import annotations

from ipaddress import ip_address


def origin(host: str, port: int) -> str:
    """`http://host:port`, with an IPv6 address in brackets."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def from_here(host: str) -> str:
    """The host that reaches, from this machine, what listens on `host`: the loopback, for what listens everywhere."""
    try:
        address = ip_address(host)
    except ValueError:  # a name
        return host
    if not address.is_unspecified:
        return host
    return "127.0.0.1" if address.version == 4 else "::1"
