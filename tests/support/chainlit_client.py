"""A Chainlit client without a browser: it does over HTTP and the websocket what the web client does."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Self

import aiohttp
import socketio

from tests.support.patience import PATIENCE


class ChainlitClient:
    """One person in one chat. A context manager.

    `steps` and `elements` hold what is shown, by id: each as it was sent last, with the tokens since. With a
    `thread_id` it resumes that thread, which is then in `resumed`. `path` is where Chainlit is mounted.
    """

    def __init__(
        self, url: str, login: str = "demo", password: str = "demo", thread_id: str = "", path: str = ""
    ) -> None:
        self.thread_id = thread_id
        self.question_id = ""  # of what was said last
        self.login = login
        self.steps: dict[str, dict[str, Any]] = {}
        self.elements: dict[str, dict[str, Any]] = {}
        self.resumed: dict[str, Any] | None = None
        self._url = url
        self._path = path
        self._login = {"username": login, "password": password}
        self._session_id = str(uuid.uuid4())
        self._turn_over = asyncio.Event()
        self._has_thread = asyncio.Event()
        self._ready = asyncio.Event()
        self._sio = socketio.AsyncClient(reconnection=False)
        self._listen()

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(self._url, cookie_jar=aiohttp.CookieJar(unsafe=True))
        async with self._http.post(f"{self._path}/login", data=self._login) as response:
            assert response.status == 200, await response.text()
        await self._connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.disconnect()
        await self._http.close()

    async def disconnect(self, *, clear: bool = False) -> None:
        """Leave the chat, as closing the window does; with `clear`, as beginning another chat does."""
        if self._sio.connected:
            if clear:
                await self._sio.emit("clear_session")
            await self._sio.disconnect()

    async def say(self, text: str, files: Sequence[str] = ()) -> dict[str, Any]:
        """Send a message, with uploaded files, and wait until its turn is over; the answer as shown last."""
        self._turn_over.clear()
        before = set(self.steps)
        self.question_id = str(uuid.uuid4())
        message = {
            "id": self.question_id,
            "threadId": self.thread_id,
            "name": self._login["username"],
            "type": "user_message",
            "output": text,
            "createdAt": datetime.now(UTC).replace(tzinfo=None).isoformat() + "Z",
        }
        references = [{"id": file} for file in files]
        await self._sio.emit("client_message", {"message": message, "fileReferences": references})
        await asyncio.wait_for(self._turn_over.wait(), PATIENCE)
        if not self.thread_id:  # it is told apart from the turn, and perhaps later
            await asyncio.wait_for(self._has_thread.wait(), PATIENCE)
        new = [step for key, step in self.steps.items() if key not in before]
        return [step for step in new if step["type"] == "assistant_message"][-1]

    async def upload(self, name: str, content: bytes, mime: str = "text/plain") -> str:
        """Upload a file, for a message that is sent next; its id."""
        form = aiohttp.FormData(quote_fields=False)  # names as browsers send them
        form.add_field("file", content, filename=name, content_type=mime)
        path = f"{self._path}/project/file?session_id={self._session_id}"
        async with self._http.post(path, data=form) as response:
            assert response.status == 200, await response.text()
            return str((await response.json())["id"])

    async def get(self, url: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """What a browser gets for a URL that the page shows: status, headers (names in lower case), body."""
        async with self._http.get(url, headers=headers) as response:
            names = {name.lower(): value for name, value in response.headers.items()}
            return response.status, names, await response.read()

    async def history(self, search: str | None = None) -> list[dict[str, Any]]:
        """The threads in the sidebar."""
        body = {"pagination": {"first": 20}, "filter": {"search": search}}
        found: dict[str, Any] = await self._request("POST", "/project/threads", body)
        return list(found["data"])

    async def thread(self, thread_id: str) -> dict[str, Any]:
        """A thread with its steps."""
        found: dict[str, Any] = await self._request("GET", f"/project/thread/{thread_id}")
        return found

    async def rate(self, step_id: str, value: int) -> str:
        """Give a step a thumb up (1) or down (0); the feedback's id."""
        feedback = {"forId": step_id, "threadId": self.thread_id, "value": value}
        body = {"feedback": feedback, "sessionId": self._session_id}
        done: dict[str, Any] = await self._request("PUT", "/feedback", body)
        return str(done["feedbackId"])

    async def rename(self, thread_id: str, name: str) -> None:
        """Rename a thread."""
        await self._request("PUT", "/project/thread", {"threadId": thread_id, "name": name})

    async def share(self, thread_id: str, is_shared: bool) -> None:
        """Share a thread, or no longer."""
        await self._request("PUT", "/project/thread/share", {"threadId": thread_id, "isShared": is_shared})

    async def delete(self, thread_id: str) -> None:
        """Delete a thread."""
        await self._request("DELETE", "/project/thread", {"threadId": thread_id})

    async def send(self, method: str, path: str, body: Any = None) -> int:
        """A request of any kind; its status, whatever that is."""
        async with self._http.request(method, f"{self._path}{path}", json=body) as response:
            await response.read()
            return response.status

    async def _request(self, method: str, path: str, body: Any = None) -> Any:
        async with self._http.request(method, f"{self._path}{path}", json=body) as response:
            assert response.status == 200, f"{method} {path}: {response.status} {await response.text()}"
            return await response.json()

    async def _connect(self) -> None:
        cookies = self._http.cookie_jar.filter_cookies(self._http._base_url)  # type: ignore[arg-type]
        await self._sio.connect(
            self._url,
            socketio_path=f"{self._path}/ws/socket.io",
            transports=["websocket"],
            wait_timeout=int(PATIENCE),
            headers={"Cookie": "; ".join(f"{name}={morsel.value}" for name, morsel in cookies.items())},
            auth={
                "clientType": "webapp",
                "sessionId": self._session_id,
                "threadId": self.thread_id,
                "userEnv": "{}",
                "chatProfile": "",
            },
        )
        await self._sio.emit("connection_successful")
        await asyncio.wait_for(self._ready.wait(), PATIENCE)

    def _listen(self) -> None:
        self._sio.on("new_message", self._see)
        self._sio.on("update_message", self._see)
        self._sio.on("stream_start", self._see)
        self._sio.on("stream_token", self._see_token)
        self._sio.on("element", self._see_element)
        # A resumed chat has not begun before its thread is here, or it is said that there is none.
        ready = "resume_thread_error" if self.thread_id else "clear_call_fn"
        self._sio.on(ready, lambda *_: self._ready.set())
        self._sio.on("first_interaction", self._note_thread)
        self._sio.on("resume_thread", self._note_resumed)

    async def _see(self, step: dict[str, Any]) -> None:
        self.steps[step["id"]] = step
        # The run that wraps on_message is updated when the handler has returned.
        if step["type"] == "run" and step["name"] == "on_message" and step.get("end"):
            self._turn_over.set()

    async def _see_token(self, token: dict[str, Any]) -> None:
        step, field = self.steps[token["id"]], "input" if token["isInput"] else "output"
        before = "" if token["isSequence"] else step.get(field) or ""
        step[field] = before + token["token"]

    async def _see_element(self, element: dict[str, Any]) -> None:
        self.elements[element["id"]] = element

    async def _note_thread(self, interaction: dict[str, Any]) -> None:
        self.thread_id = interaction["thread_id"]
        self._has_thread.set()

    async def _note_resumed(self, thread: dict[str, Any]) -> None:
        self.resumed = thread
        self._ready.set()
