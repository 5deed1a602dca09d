"""People for Locust: they log in, chat, look at their history, come back to a chat, rate answers, send files.

`python -m loadtests.load` (`make load`) starts it. It needs Locust and python-socketio[client], nothing of forebay.
LOAD_SEEN names the file for what the people saw; LOAD_THINK the seconds between two things that somebody does.
With LOAD_HISTORY=off, for an app without a data layer, they only chat.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import socketio
from locust import HttpUser, between, events, task
from locust.exception import StopUser
from typing_extensions import override

from loadtests import seen, texts
from loadtests.seen import Chat

_THINK = float(os.environ.get("LOAD_THINK", "2"))
_HISTORY = os.environ.get("LOAD_HISTORY", "on") == "on"
_TIMEOUT = 30.0  # seconds
_CHATS: list[Chat] = []
_OVER = threading.Event()
_HOOKS: Any = events  # they have no types


class NotAsSeen(Exception):
    """What came back is not what the person had seen."""


class Connection:
    """A chat's websocket. With the chat's thread it resumes that; what it shows is in `steps`."""

    def __init__(self, host: str, cookies: str, thread_id: str) -> None:
        self.thread_id = thread_id
        self.session_id = str(uuid.uuid4())
        self.steps: dict[str, dict[str, Any]] = {}
        self.resumed: dict[str, Any] | None = None
        self.first_shown: float | None = None
        self._ready, self._over = threading.Event(), threading.Event()
        self._sio = socketio.Client(reconnection=False)
        for name in ("new_message", "update_message", "stream_start"):
            self._sio.on(name, self._see)
        self._sio.on("first_interaction", self._note_thread)
        self._sio.on("resume_thread", self._note_resumed)
        ready = "resume_thread_error" if thread_id else "clear_call_fn"
        self._sio.on(ready, lambda *_: self._ready.set())
        try:
            self._open(host, cookies)
        except BaseException:
            self.close()
            raise

    def _open(self, host: str, cookies: str) -> None:
        self._sio.connect(
            host,
            socketio_path="/ws/socket.io",
            transports=["websocket"],
            headers={"Cookie": cookies},
            auth={
                "clientType": "webapp",
                "sessionId": self.session_id,
                "threadId": self.thread_id,
                "userEnv": "{}",
                "chatProfile": "",
            },
            wait_timeout=_TIMEOUT,
        )
        self._sio.emit("connection_successful")
        _wait(self._ready, "the chat has not begun")

    def ask(self, person: str, question: str, files: list[str]) -> seen.Turn:
        """Send a question, and wait until its turn is over."""
        before, question_id = set(self.steps), str(uuid.uuid4())
        self._over.clear()
        self.first_shown, started = None, time.perf_counter()
        message = {
            "id": question_id,
            "threadId": self.thread_id,
            "name": person,
            "type": "user_message",
            "output": question,
            "createdAt": datetime.now(UTC).replace(tzinfo=None).isoformat() + "Z",
        }
        references = [{"id": file} for file in files]
        self._sio.emit("client_message", {"message": message, "fileReferences": references})
        _wait(self._over, "the turn is not over")
        took = time.perf_counter() - started
        shown = [step for key, step in self.steps.items() if key not in before]
        return seen.turn_of(question_id, question, shown, (self.first_shown or started) - started, took)

    def close(self) -> None:
        """Leave, as closing the window does."""
        with contextlib.suppress(Exception):
            self._sio.disconnect()

    def _see(self, step: dict[str, Any]) -> None:
        self.steps[step["id"]] = step
        if step["type"] == "assistant_message" and self.first_shown is None:
            self.first_shown = time.perf_counter()
        if step["type"] == "run" and step["name"] == "on_message" and step.get("end"):
            self._over.set()

    def _note_thread(self, interaction: dict[str, Any]) -> None:
        self.thread_id = interaction["thread_id"]

    def _note_resumed(self, thread: dict[str, Any]) -> None:
        self.resumed = thread
        self._ready.set()


class Person(HttpUser):
    """Somebody with one chat after the other."""

    wait_time = between(_THINK * 0.5, _THINK * 1.5)

    @override
    def on_start(self) -> None:
        """Log in, and begin a chat."""
        self.name = f"person-{uuid.uuid4().hex[:12]}"
        self.connection: Connection | None = None
        self.post("/login", data={"username": self.name, "password": "load"}, name="login")
        self.begin()

    @override
    def on_stop(self) -> None:
        """Leave."""
        if self.connection is not None:
            self.connection.close()

    def begin(self) -> Connection | None:
        """Begin a chat; None where that fails."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None
        self.chat = Chat(self.name)
        with _row("connect"):
            self.connection = self.connect("")
        _CHATS.append(self.chat)
        return self.connection

    def connect(self, thread_id: str) -> Connection:
        """Open the websocket."""
        cookies = "; ".join(f"{one.name}={one.value}" for one in self.client.cookies)
        return Connection(self.host or "", cookies, thread_id)

    @task(20)
    def turn(self) -> None:
        """Ask something."""
        self.ask()

    def ask(self, files: tuple[str, ...] = ()) -> seen.Turn | None:
        """A turn, after coming in if one is out."""
        connection = self.connection or self.begin()
        if connection is None:
            return None
        question = f"question {len(self.chat.turns)} of {self.name}"
        done: list[seen.Turn] = []
        with _row("turn"):
            done.append(connection.ask(self.name, question, list(files)))
        if not done:
            # How much of the question has come through nobody knows; the next one is another chat's.
            self.begin()
            return None
        turn = done[0]
        self.chat.thread_id = connection.thread_id
        self.chat.turns.append(turn)
        _fire("first_token", turn.first_token)
        return turn

    @task(2 if _HISTORY else 0)
    def history(self) -> None:
        """Look at the sidebar; the chat must be there."""
        with _row("history"):
            body = {"pagination": {"first": 20}, "filter": {"search": None}}
            found = self.post("/project/threads", json=body, name="POST /project/threads").json()["data"]
            if self.chat.turns and self.chat.thread_id not in [thread["id"] for thread in found]:
                raise NotAsSeen("the chat is not in the sidebar")

    @task(2 if _HISTORY else 0)
    def resume(self) -> None:
        """Close the window and come back; all answers must be there, as they were."""
        if not self.chat.turns or self.connection is None:
            return
        self.connection.close()
        self.connection = None
        with _row("resume"):
            self.connection = self.connect(self.chat.thread_id)
            resumed = self.connection.resumed
            if resumed is None:
                raise NotAsSeen("the chat is gone")
            outputs = {step["id"]: step["output"] for step in resumed["steps"]}
            turns = self.chat.turns
            if any(outputs.get(turn.answer_id) != texts.answer(turn.question) for turn in turns):
                raise NotAsSeen("an answer is missing or stale")

    @task(2 if _HISTORY else 0)
    def feedback(self) -> None:
        """Rate the latest answer."""
        if not self.chat.turns or self.connection is None:
            return
        step_id, value = self.chat.turns[-1].answer_id, len(self.chat.turns) % 2
        if step_id in self.chat.feedback:  # a second one would replace the first
            return
        feedback = {"forId": step_id, "threadId": self.chat.thread_id, "value": value}
        with _row("feedback"):
            body = {"feedback": feedback, "sessionId": self.connection.session_id}
            self.put("/feedback", json=body, name="PUT /feedback")
            self.chat.feedback[step_id] = value

    @task(1 if _HISTORY else 0)
    def upload(self) -> None:
        """Send a file, and ask about it."""
        if self.connection is None:
            return
        name, file = f"file-{len(self.chat.turns)}.txt", ""
        with _row("upload"):
            form = {"file": (name, texts.file_content(name), "text/plain")}
            path = f"/project/file?session_id={self.connection.session_id}"
            file = self.post(path, files=form, name="POST /project/file").json()["id"]
        turn = self.ask((file,)) if file else None
        if turn is not None:
            self.chat.files[turn.question_id] = name

    @task(1)
    def another_chat(self) -> None:
        """Begin anew."""
        if self.chat.turns:
            self.begin()

    def post(self, path: str, **arguments: Any) -> Any:
        """A request that raises what the server refuses."""
        return self._checked(self.client.post, path, arguments)

    def put(self, path: str, **arguments: Any) -> Any:
        """A request that raises what the server refuses."""
        return self._checked(self.client.put, path, arguments)

    def _checked(self, send: Callable[..., Any], path: str, arguments: dict[str, Any]) -> Any:
        response = send(path, timeout=_TIMEOUT, **arguments)
        response.raise_for_status()
        return response


@contextlib.contextmanager
def _row(name: str) -> Iterator[None]:
    """Time it as a row of that name. What fails is counted there, and goes no further.

    Once the test is over nothing begins: what a person waits in may have swallowed Locust's own way of ending them.
    """
    if _OVER.is_set():
        raise StopUser
    started, failure = time.perf_counter(), None
    try:
        yield
    except Exception as error:
        failure = error
    _fire(name, time.perf_counter() - started, failure)


def _fire(name: str, seconds: float, failure: Exception | None = None) -> None:
    _HOOKS.request.fire(
        request_type="chat",
        name=name,
        response_time=seconds * 1e3,
        response_length=0,
        exception=failure,
        context={},
    )


def _wait(event: threading.Event, complaint: str) -> None:
    if not event.wait(_TIMEOUT):
        raise TimeoutError(f"{complaint} after {_TIMEOUT:g} s")


def _save(**_: Any) -> None:
    if path := os.environ.get("LOAD_SEEN"):
        seen.save(Path(path), _CHATS)


_HOOKS.quitting.add_listener(_save)
_HOOKS.test_stopping.add_listener(lambda **_: _OVER.set())
