"""People at a Chainlit server, over its websocket, as Locust's users. `make load` runs it; see `load.py`.

Rows: connect, first_token, turn, history, resume, feedback, upload, each in milliseconds as a person sees it. What
the people saw is written to the file `LOAD_SEEN`, a line a turn, for the audit.
"""

from __future__ import annotations

import json
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests
import socketio
from gevent.event import Event
from locust import User, between, task
from locust.exception import StopUser

_TIMEOUT = 60.0
_SEEN = Path(os.environ.get("LOAD_SEEN", "seen.jsonl"))
_TURNS_A_CHAT = 10


class Chat:
    """One connection of one person, in one thread."""

    def __init__(self, host: str, http: requests.Session, thread_id: str = "") -> None:
        self.thread_id = thread_id
        self.steps: dict[str, dict[str, Any]] = {}
        self.session_id = str(uuid.uuid4())
        self.began: float | None = None
        self._ready, self._over = Event(), Event()
        self._host = host
        self._http = http
        self._sio = socketio.Client(reconnection=False)
        for event in ("new_message", "update_message", "stream_start"):
            self._sio.on(event, self._see)
        self._sio.on("first_interaction", self._note_thread)
        self._sio.on("resume_thread" if thread_id else "clear_call_fn", lambda *_: self._ready.set())

    def connect(self) -> None:
        """Open the websocket, and wait until the chat may begin or goes on."""
        cookies = "; ".join(f"{cookie.name}={cookie.value}" for cookie in self._http.cookies)
        self._sio.connect(
            self._host, socketio_path="/ws/socket.io", transports=["websocket"], headers={"Cookie": cookies},
            auth={
                "clientType": "webapp", "sessionId": self.session_id, "threadId": self.thread_id,
                "userEnv": "{}", "chatProfile": "",
            },
        )  # fmt: skip
        self._sio.emit("connection_successful")
        _wait(self._ready, "the chat does not begin")

    def disconnect(self) -> None:
        """Leave, as closing the window does."""
        if self._sio.connected:
            self._sio.disconnect()

    def say(self, text: str, file: str | None = None) -> dict[str, Any]:
        """Ask, wait until the turn is over; the line for the audit."""
        self._over.clear()
        before, self.began = set(self.steps), None
        moment = datetime.now(UTC).replace(tzinfo=None).isoformat() + "Z"
        message = {"id": str(uuid.uuid4()), "threadId": self.thread_id, "name": "me", "type": "user_message"}
        message |= {"output": text, "createdAt": moment}
        references = [{"id": file}] if file else []
        self._sio.emit("client_message", {"message": message, "fileReferences": references})
        _wait(self._over, "the turn does not end")
        new = {key: step for key, step in self.steps.items() if key not in before}
        [answer] = [step for step in new.values() if step["type"] == "assistant_message"]
        self.thread_id = answer["threadId"]
        shown = {
            key: step["output"] for key, step in new.items() if step["type"] in ("tool", "assistant_message")
        }
        if answer["output"] != f"Answer to {text}, and all of it":
            raise RuntimeError("the answer is not whole")
        return {
            "thread_id": self.thread_id,
            "answer_id": answer["id"],
            "steps": shown,
            "rated": None,
            "file": None,
        }

    def _see(self, step: dict[str, Any]) -> None:
        self.steps[step["id"]] = step
        if step["type"] == "assistant_message" and self.began is None:
            self.began = time.perf_counter()
        if step["type"] == "run" and step["name"] == "on_message" and step.get("end"):
            self._over.set()

    def _note_thread(self, interaction: dict[str, Any]) -> None:
        self.thread_id = interaction["thread_id"]


class Person(User):
    """Logs in, chats, looks at the history, goes on with an old chat, rates answers, sends a file."""

    wait_time = between(0.5, 1.5)

    def on_start(self) -> None:
        """Log in and begin a chat."""
        self.name = f"person{uuid.uuid4()}"
        self.http = requests.Session()
        self.asked = 0
        login = {"username": self.name, "password": "any"}
        if self.http.post(f"{self.host}/login", data=login, timeout=_TIMEOUT).status_code != 200:
            raise StopUser
        self.chat = self._begin()

    def on_stop(self) -> None:
        """Leave."""
        self.chat.disconnect()

    @task(12)
    def turn(self) -> None:
        """Ask; now and then in a new chat."""
        if self.asked and self.asked % _TURNS_A_CHAT == 0:
            self.chat.disconnect()
            self.chat = self._begin()
        self._ask()

    @task(3)
    def rate(self) -> None:
        """Ask, and put the thumb up or down."""
        seen = self._ask(keep=False)
        if seen is None:
            return
        value = random.choice((0, 1))
        feedback = {"forId": seen["answer_id"], "threadId": seen["thread_id"], "value": value}
        body = {"feedback": feedback, "sessionId": self.chat.session_id}
        done = self._timed("feedback", lambda: self._request("PUT", "/feedback", json=body))
        _keep(seen | {"rated": value if done is not None else None})

    @task(1)
    def send_file(self) -> None:
        """Ask with a file."""
        name = f"{uuid.uuid4()}.txt"
        path = f"/project/file?session_id={self.chat.session_id}"
        files = {"file": (name, b"what is in it\n" * 1000, "text/plain")}
        done = self._timed("upload", lambda: self._request("POST", path, files=files))
        if done is not None:
            seen = self._ask(file=done["id"], keep=False)
            if seen is not None:
                _keep(seen | {"file": name})

    @task(2)
    def history(self) -> None:
        """Look at the sidebar."""
        body = {"pagination": {"first": 20}, "filter": {}}
        self._timed("history", lambda: self._request("POST", "/project/threads", json=body))

    @task(1)
    def resume(self) -> None:
        """Leave, and go on with the chat."""
        if not self.chat.thread_id:
            return
        self.chat.disconnect()
        again = Chat(self.host or "", self.http, self.chat.thread_id)
        self._timed("resume", again.connect)
        self.chat = again

    def _begin(self) -> Chat:
        chat = Chat(self.host or "", self.http)
        self._timed("connect", chat.connect)
        return chat

    def _ask(self, *, file: str | None = None, keep: bool = True) -> dict[str, Any] | None:
        self.asked += 1
        started = time.perf_counter()
        seen: dict[str, Any] | None = self._timed(
            "turn", lambda: self.chat.say(f"{self.name} asks {self.asked}", file)
        )
        if self.chat.began is not None:
            self._fire("first_token", self.chat.began - started)
        if keep and seen is not None:
            _keep(seen)
        return seen

    def _request(self, method: str, path: str, **body: Any) -> Any:
        response = self.http.request(method, f"{self.host}{path}", timeout=_TIMEOUT, **body)
        response.raise_for_status()
        return response.json()

    def _timed(self, name: str, act: Callable[[], Any]) -> Any:
        with self._row(name) as result:
            result.append(act())
        return result[0] if result else None

    @contextmanager
    def _row(self, name: str) -> Iterator[list[Any]]:
        started, result = time.perf_counter(), list[Any]()
        try:
            yield result
        except Exception as error:
            self._fire(name, time.perf_counter() - started, error)
        else:
            self._fire(name, time.perf_counter() - started)

    def _fire(self, name: str, seconds: float, error: Exception | None = None) -> None:
        self.environment.events.request.fire(
            request_type="chat",
            name=name,
            response_time=seconds * 1e3,
            response_length=0,
            exception=error,
            context={},
        )


def _keep(seen: dict[str, Any]) -> None:
    with _SEEN.open("a") as file:
        file.write(json.dumps(seen) + "\n")


def _wait(event: Event, otherwise: str) -> None:
    if not event.wait(_TIMEOUT):
        raise TimeoutError(otherwise)
