"""TLS as a PostgreSQL URL asks for it: libpq's `ssl…` parameters -> a context for the driver.

The context is made here and not by the driver, which would look into the home folder for files that nobody
named, and would not know the system's authorities.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from forebay.errors import SettingsError

_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_UNCHECKED = ("disable", "allow", "prefer")
_ALIASES = {"true": "require", "1": "require", "false": "disable", "0": "disable", "no-verify": "require"}
_ACCEPT = {"strict": "verify-full", "accept_invalid_certs": "require"}  # Prisma's `sslaccept`
_VERSIONS = {
    "TLSv1.2": ssl.TLSVersion.TLSv1_2,
    "TLSv1.3": ssl.TLSVersion.TLSv1_3,
}
_VERIFYING = "sslmode=verify-ca or sslmode=verify-full"


def take_tls(query: dict[str, Any]) -> dict[str, Any]:
    """The driver's arguments for the TLS that a query asks for; its parameters are taken out of the query.

    `verify-ca` and `verify-full` trust the system's authorities unless `sslrootcert` names a file. As the driver
    knows no channel binding, `channel_binding=require`, which proves who the server is, makes the certificate do it.
    Raises SettingsError, which names a file that can't be read.
    """
    mode = _take_mode(query)
    authority = query.pop("sslrootcert", None)
    certificate, key = query.pop("sslcert", None), query.pop("sslkey", None)
    revoked, minimum = query.pop("sslcrl", None), query.pop("ssl_min_protocol_version", None)
    direct = {"direct_tls": True} if _take_negotiation(query, mode) == "direct" else {}
    if authority == "system" and mode is None:
        mode = "verify-full"  # libpq's rule
    if authority is not None and mode == "require":
        mode = "verify-ca"  # libpq's rule
    named = {"sslrootcert": authority, "sslcrl": revoked}
    if mode in (None, *_UNCHECKED):
        _refuse_unchecked({**named, "sslcert": certificate, "sslkey": key})
        return {"ssl": mode} if mode else {}
    if mode == "require":
        _refuse_unchecked(named)
    if authority == "system" and mode != "verify-full":
        raise _wrong("sslrootcert=system needs sslmode=verify-full: anybody can get a certificate of those")
    context = _context(str(mode), None if authority == "system" else authority)
    _add_revoked(context, revoked)
    _add_own(context, certificate, key)
    if minimum is not None:
        context.minimum_version = _version(minimum)
    return {"ssl": context} | direct


def tls_context(*, verify: bool) -> ssl.SSLContext:
    """A context that demands TLS; `verify` also checks the server's certificate and host name."""
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _take_mode(query: dict[str, Any]) -> str | None:
    accept = query.pop("sslaccept", None)
    if accept is not None and accept not in _ACCEPT:
        raise _wrong(f"sslaccept takes one of {', '.join(_ACCEPT)}")
    found = [query.pop(name) for name in ("sslmode", "ssl") if name in query]
    mode = _ALIASES.get(found[0], found[0]) if found else None
    if mode is not None and mode not in _SSL_MODES:
        raise _wrong(f"sslmode takes one of {', '.join(_SSL_MODES)}")
    if accept is not None and mode in (None, "prefer", "require"):
        mode = _ACCEPT[accept]
    return _bound(mode, query.pop("channel_binding", "prefer"))


def _bound(mode: str | None, binding: str) -> str | None:
    if binding not in ("disable", "prefer", "require"):
        raise _wrong("channel_binding takes one of disable, prefer, require")
    if binding != "require":
        return mode
    if mode == "disable":
        raise _wrong("channel_binding=require needs TLS, and sslmode=disable has none; leave out one of them")
    return "verify-full"


def _take_negotiation(query: dict[str, Any], mode: str | None) -> str:
    negotiation = str(query.pop("sslnegotiation", "postgres"))
    if negotiation not in ("postgres", "direct"):
        raise _wrong("sslnegotiation takes postgres or direct")
    if negotiation == "direct" and mode in (None, *_UNCHECKED):
        raise _wrong(f"sslnegotiation=direct needs sslmode=require, {_VERIFYING}")
    return negotiation


def _refuse_unchecked(files: dict[str, str | None]) -> None:
    for name, file in files.items():
        if file is not None and name in ("sslrootcert", "sslcrl"):
            raise _wrong(f"{name} needs {_VERIFYING}, or the certificate would not be checked")
        if file is not None:
            raise _wrong(f"{name} needs sslmode=require, {_VERIFYING}, or it might not be used")


def _context(mode: str, authority: str | None) -> ssl.SSLContext:
    if mode == "require":
        return tls_context(verify=False)
    try:
        context = ssl.create_default_context(cafile=authority)
    except OSError as error:  # ssl.SSLError is one
        raise _unreadable("sslrootcert", "names no file of certificates", authority, error) from None
    context.check_hostname = mode == "verify-full"
    return context


def _add_revoked(context: ssl.SSLContext, file: str | None) -> None:
    if file is None:
        return
    try:
        context.load_verify_locations(cafile=file)
    except OSError as error:
        raise _unreadable("sslcrl", "names no list of revoked certificates", file, error) from None
    context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF


def _add_own(context: ssl.SSLContext, certificate: str | None, key: str | None) -> None:
    if certificate is None and key is None:
        return
    if certificate is None:
        raise _wrong("sslkey needs sslcert, the certificate of that key")
    for name, file in (("sslcert", certificate), ("sslkey", key or certificate)):
        try:
            with Path(file).open("rb"):
                pass
        except OSError as error:
            raise _unreadable(name, "names no file that can be read", file, error) from None
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except OSError as error:
        raise _unreadable(
            "sslcert", "and sslkey are no certificate with its key", certificate, error
        ) from None


def _no_password() -> str:
    """OpenSSL would ask on the terminal."""
    return ""


def _version(name: str) -> ssl.TLSVersion:
    if name not in _VERSIONS:
        raise _wrong(f"ssl_min_protocol_version takes one of {', '.join(_VERSIONS)}")
    return _VERSIONS[name]


def _unreadable(name: str, what: str, file: str | None, error: OSError) -> SettingsError:
    reason = error.strerror if not isinstance(error, ssl.SSLError) and error.strerror else "not in PEM form"
    return _wrong(f"{name} {what}: {file} ({reason})")


def _wrong(what: str) -> SettingsError:
    return SettingsError(f"FOREBAY_DATABASE_URL: {what}")
