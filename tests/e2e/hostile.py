"""What somebody sends who means harm, and knows each id of another's chat, as a share link shows them."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

ESCAPES = "\x1b]8;;http://evil\x07link\x1b[2J\x1b[31m\x9b31m\r\nforged line\u202e\u2066\x00\x7f"
TEXTS = (
    "", " ", "\x00", "a\x00b", "\ud800", "\udc00\ud800", "\ufeff", "\U0010ffff",
    "\u1e9e\u0130\u0131\u017f\u212a", ESCAPES,
    "' OR 1=1 --", "'; DROP TABLE steps; --", "$1", ":id", "%s", "{0.__class__}", "\\", "\\u0000", '"',
    "</script><script>alert(1)</script>",
    "../../../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "..\\..\\x", "CON", "a/../b", ".", "..",
    "~", "-rf",
    "%00", "%2e%2e%2f", "%", "_", "***=", "(?=", "[", "(", "*", "(a+)+$", "a" * 5_000, "☠" * 5_000, "null",
    "true", "0", "-1", "1e999", "[x]", "[/x]", "[link=http://x]",
)  # fmt: skip
NUMBERS = (0, -1, 1, 2**31, -(2**31) - 1, 2**63, -(2**63) - 1, 10**30, 10**90, 1e308, -0.0, 1.5, 5e-324)
SHAPES: tuple[Any, ...] = (None, True, False, [], {}, [[]], {"a": {}}, ["x", None], {"": ""}, {"id": "x"})
ANYTHING: tuple[Any, ...] = (*TEXTS, *NUMBERS, *SHAPES)


def deep(levels: int) -> Any:
    """A list in a list, so many times."""
    found: Any = []
    for _ in range(levels):
        found = [found]
    return found


DEEP = tuple(deep(levels) for levels in (90, 101, 253, 255, 500, 900))


def spellings(key: str) -> tuple[str, ...]:
    """Other ways to write a UUID, which a database may take, and what is nearly one."""
    plain = key.replace("-", "")
    return (
        key.upper(), plain, f"{{{key}}}", f"urn:uuid:{key}", f" {key}", f"{key} ", f"{key}\n", f"{key}\x00",
        key[:-1], f"{key}0",
        f"{plain[:4]}-{plain[4:]}", key.replace("-", "\u2010"), f"{key}/", f"{key}?", f"{key}#", f"{key};",
        f"{key}'", f"../{key}",
    )  # fmt: skip


@dataclass(frozen=True)
class Victim:
    """Ids of another's chat."""

    thread_id: str
    step_id: str
    element_id: str
    feedback_id: str
    user_id: str


@dataclass(frozen=True)
class Own:
    """Of one's own."""

    thread_id: str
    session_id: str
    step_id: str


def ids(key: str) -> tuple[Any, ...]:
    """What is given for an id."""
    return (*spellings(key), *ANYTHING)


Sent = tuple[str, str, Any]  # method, path, body


def requests(victim: Victim, own: Own) -> Iterator[Sent]:
    """Requests to all that Chainlit asks the data layer for."""
    for key in (victim.thread_id, *ids(victim.thread_id)):
        if isinstance(key, str):
            path = quote(key, safe="", errors="surrogatepass")
            yield "GET", f"/project/thread/{path}", None
            yield "GET", f"/project/share/{path}", None
            yield "GET", f"/project/thread/{path}/element/{victim.element_id}", None
            yield "GET", f"/project/thread/{own.thread_id}/element/{path}", None
        yield "PUT", "/project/thread", {"threadId": key, "name": "taken"}
        yield "PUT", "/project/thread/share", {"threadId": key, "isShared": True}
        yield "DELETE", "/project/thread", {"threadId": key}
    yield "GET", f"/project/thread/{own.thread_id}/element/{victim.element_id}", None
    for name in ANYTHING:
        yield "PUT", "/project/thread", {"threadId": own.thread_id, "name": name}
    yield from _lists(victim)
    yield from _feedbacks(victim, own)
    yield from _elements(victim, own)


def _lists(victim: Victim) -> Iterator[Sent]:
    for first in (*NUMBERS, 10**4000):
        yield "POST", "/project/threads", {"pagination": {"first": first}, "filter": {}}
    for value in ANYTHING:
        cursor = {"first": 5, "cursor": value}
        yield "POST", "/project/threads", {"pagination": cursor, "filter": {}}
        for name in ("search", "feedback", "userId"):
            yield "POST", "/project/threads", {"pagination": {"first": 5}, "filter": {name: value}}
    for key in (victim.thread_id, *spellings(victim.thread_id)):
        yield "POST", "/project/threads", {"pagination": {"first": 5, "cursor": key}, "filter": {}}
    whose = {"userId": victim.user_id}
    yield "POST", "/project/threads", {"pagination": {"first": 5}, "filter": whose}
    yield "POST", "/project/threads", {"pagination": {"first": 5}, "filter": {"search": "x" * 400_000}}


def _feedbacks(victim: Victim, own: Own) -> Iterator[Sent]:
    for key in (*ids(own.step_id), *spellings(victim.step_id)):
        feedback = {"forId": key, "threadId": own.thread_id, "value": 1}
        yield "PUT", "/feedback", {"feedback": feedback, "sessionId": own.session_id}
        yield "PUT", "/feedback", {"feedback": {**feedback, "forId": own.step_id, "threadId": key}}
        yield "PUT", "/feedback", {"feedback": {**feedback, "forId": own.step_id, "id": key}}
        yield "DELETE", "/feedback", {"feedbackId": key}
    for value in ANYTHING:
        feedback = {"forId": own.step_id, "threadId": own.thread_id, "value": value}
        yield "PUT", "/feedback", {"feedback": feedback}
        yield "PUT", "/feedback", {"feedback": {**feedback, "value": 1, "comment": value}}
    # Another's feedback, put into one's own thread, and taken for one's own.
    for for_id, thread_id in itertools.product((own.step_id, victim.step_id), (own.thread_id, None)):
        feedback = {
            "id": victim.feedback_id,
            "forId": for_id,
            "threadId": thread_id,
            "value": 0,
            "comment": "taken",
        }
        if for_id == victim.step_id and thread_id is None:
            continue  # who knows the step and the feedback may: see the page on security
        yield "PUT", "/feedback", {"feedback": feedback, "sessionId": own.session_id}


def _elements(victim: Victim, own: Own) -> Iterator[Sent]:
    plain: dict[str, Any] = {
        "id": str(uuid.uuid4()),
        "type": "custom",
        "name": "Tally",
        "display": "inline",
        "props": {},
    }
    mine = {**plain, "forId": own.step_id, "threadId": own.thread_id}
    theirs = {**plain, "id": victim.element_id, "forId": victim.step_id, "threadId": victim.thread_id}
    mixed = (
        {**theirs, "threadId": own.thread_id}, {**theirs, "threadId": ""}, {**theirs, "threadId": None},
        {**mine, "threadId": "", "id": victim.element_id}, {**mine, "id": victim.element_id},
        {**mine, "forId": victim.step_id}, {**mine, "threadId": victim.thread_id},
        {**mine, "objectKey": "../x", "url": "file:///etc/passwd", "path": "/etc/passwd"},
    )  # fmt: skip
    changed = [
        {**mine, name: value}
        for name in ("id", "forId", "threadId", "name", "props", "display")
        for value in ANYTHING
    ]
    changed += [{**mine, "props": {"deep": value}} for value in (*DEEP, *ANYTHING)]
    spelled = [{**theirs, name: key} for name in ("id", "threadId") for key in spellings(theirs[name])]
    for element in (theirs, *mixed, *changed, *spelled):
        yield "PUT", "/project/element", {"element": element, "sessionId": own.session_id}
    for element in (theirs, *mixed[:4], *spelled):
        yield "DELETE", "/project/element", {"element": element, "sessionId": own.session_id}


Event = tuple[str, Any]


def events(victim: Victim, own: Own) -> Iterator[Event]:
    """Events on the websocket: messages and edits whose every field is somebody's choice."""
    plain = {
        "threadId": own.thread_id,
        "name": "eve",
        "type": "user_message",
        "output": "x",
        "createdAt": "now",
    }

    def message(**values: Any) -> Any:
        return {"message": {"id": str(uuid.uuid4()), **plain, **values}, "fileReferences": []}

    yield "client_message", message(id=victim.step_id, output="taken")
    for key in (
        victim.step_id.upper(),
        victim.step_id.replace("-", ""),
        f"{{{victim.step_id}}}",
        f"urn:uuid:{victim.step_id}",
    ):
        yield "client_message", message(id=key, output="taken")
    yield "client_message", message(threadId=victim.thread_id, parentId=victim.step_id, output="taken")
    fields = (
        "parentId",
        "threadId",
        "name",
        "type",
        "output",
        "createdAt",
        "command",
        "modes",
        "language",
        "metadata",
    )
    for field, value in itertools.product(fields, ANYTHING):
        yield "client_message", message(**{field: value})
    for value in DEEP:
        yield "client_message", message(metadata={"deep": value}, modes={"deep": value})
    for key in ids(victim.step_id):
        yield "client_message", message(parentId=key)
        yield "message_favorite", {"message": {"id": key, "metadata": {"favorite": False}}}
        yield "message_favorite", {"message": {"id": key, "metadata": {"favorite": True}}}
    yield "edit_message", message(id=victim.step_id, output="taken")
    # An edit removes what came after it.
    mine = message(output="first")
    yield from (
        ("client_message", mine),
        ("client_message", message(id=victim.step_id)),
        ("edit_message", mine),
    )
    odd: list[Any] = [[{"id": victim.element_id}], [{"id": "../x"}], [{"id": 1}], [{}]]
    for references in odd:
        yield "client_message", {**message(), "fileReferences": references}
    for value in ANYTHING:
        yield "chat_settings_change", value
        yield "window_message", value
        yield "stop", value


def connects(victim: Victim) -> Iterator[dict[str, Any]]:
    """What a websocket is opened with, but for the cookie."""
    plain = {"clientType": "webapp", "threadId": "", "userEnv": "{}", "chatProfile": ""}
    for key in (victim.thread_id, victim.step_id, *ids(victim.thread_id)):
        yield {**plain, "threadId": key}
    for name in ("clientType", "chatProfile"):
        for value in ANYTHING:
            yield {**plain, name: value}


def uploads() -> Iterator[tuple[str, str]]:
    """Names and MIME types of files."""
    names = [
        name
        for name in TEXTS
        if name.strip() and len(name) < 1_000 and not set(name) & {"\x00", "\r", "\n", '"'}
    ]
    for name in (*names, "a" * 6_000, "x.html", "x.svg", "x;y.html", "x\\", "é" * 200, "x" * 254 + "é"):
        yield name, "text/plain"
    for mime in (
        "text/html", "image/svg+xml", "text/plain; charset=utf-7", "text/html;charset=utf-8", "TEXT/HTML",
        "x", "x/y/z", "text/plain,text/html",
        "application/xhtml+xml", "multipart/x-mixed-replace", "image/png;x=</script>", "a/" + "b" * 3_000,
        "text/xml", "application/javascript",
    ):  # fmt: skip
        yield "x.txt", mime


def urls(genuine: str, other_key: str) -> Iterator[tuple[str, dict[str, str]]]:
    """A file's signed URL, changed, with headers."""
    path, _, query = genuine.partition("?")
    given = dict(part.split("=", 1) for part in query.split("&"))

    def changed(**values: str) -> str:
        return path + "?" + "&".join(f"{name}={value}" for name, value in {**given, **values}.items())

    for value in (*map(quote_any, TEXTS), "99999999999", "-1", "1e9", "%D9%A3", "9" * 5_000, ""):
        for name in ("key", "expires", "signature"):
            yield changed(**{name: value}), {}
    yield changed(key=other_key), {}
    yield changed(expires=str(int(given["expires"]) + 1)), {}
    yield changed(key=given["key"] + "="), {}
    yield changed(signature=given["signature"].upper()), {}
    yield path, {}
    yield genuine + f"&key={other_key}", {}
    yield f"/forebay/files/../../{quote('etc/passwd', safe='')}?{query}", {}


def quote_any(text: str) -> str:
    """As a part of a URL."""
    return quote(text, safe="", errors="surrogatepass")


RANGES = (
    "bytes=0-0", "bytes=-1", "bytes=0-", "bytes=5-2", "bytes=999999999999-", "bytes=-999999999999",
    "bytes=a-b", "bytes=", "x=0-1",
    "bytes=0-0,2-2,4-4", "bytes=" + ",".join(f"{n * 2}-{n * 2}" for n in range(5_000)),
    "bytes=" + ",".join(["0-"] * 5_000), "bytes=--1", "bytes=1--1",
    "bytes=" + "9" * 5_000 + "-", "bytes=0-" + "9" * 5_000,
)  # fmt: skip
