"""Where a server is reached: an address, a name, and what listens everywhere."""

from __future__ import annotations

import pytest

from forebay.primitives.addresses import from_here, origin


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("0:0:0:0:0:0:0:0", "http://[::1]:80"),
        ("fe80::1", "http://[fe80::1]:80"),
        ("localhost", "http://localhost:80"),
        ("", "http://:80"),
    ],
)
def test_where_it_is_reached(host: str, url: str) -> None:
    assert origin(from_here(host), 80) == url
