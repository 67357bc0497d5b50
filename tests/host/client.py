"""A small client of ComfyUI: submits prompts over HTTP, follows them over the websocket, fetches what they made."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass, field
from typing import Any

from .websocket import WebSocket

Link = list[Any]
"""[node id, output number]"""


class HostError(Exception):
    """The host refused a prompt, or a node of it failed."""


@dataclass
class Prompt:
    """A workflow in API form, written node by node."""

    nodes: dict[str, Any] = field(default_factory=dict)

    def add(self, kind: str, output: int = 0, **inputs: Any) -> Link:
        """Add a node; what comes back stands for its output in later calls."""
        name = str(len(self.nodes) + 1)
        self.nodes[name] = {"class_type": kind, "inputs": inputs}
        return [name, output]


@dataclass
class Outcome:
    """How a prompt ended, with every message that named it, each with the time it came."""

    status: str
    """execution_success, execution_error or execution_interrupted."""
    outputs: dict[str, Any]
    messages: list[tuple[float, str, dict[str, Any]]]

    def ui(self, link: Link) -> dict[str, Any]:
        """The `ui` output of the node that `link` belongs to."""
        return self.outputs[link[0]]

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Data of all messages of a kind."""
        return [data for _, name, data in self.messages if name == kind]


class Client:
    """One browser, so to speak. A context manager."""

    def __init__(self, port: int) -> None:
        self.id, self._url = uuid.uuid4().hex, f"http://127.0.0.1:{port}"
        self._socket = WebSocket("127.0.0.1", port, f"/ws?clientId={self.id}")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def get(self, path: str) -> Any:
        """JSON from a route of the host."""
        return json.loads(self.fetch(path))

    def fetch(self, path: str) -> bytes:
        """Bytes from a route of the host."""
        with urllib.request.urlopen(self._url + path, timeout=60) as answer:
            return answer.read()

    def post(self, path: str, data: Any = None) -> bytes:
        """Send JSON; HostError with the host's answer where it refuses."""
        body = json.dumps(data or {}).encode()
        request = urllib.request.Request(self._url + path, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise HostError(error.read().decode()) from error

    def submit(self, prompt: Prompt | dict[str, Any]) -> str:
        """Queue a prompt; its id."""
        nodes = prompt.nodes if isinstance(prompt, Prompt) else prompt
        return json.loads(self.post("/prompt", {"prompt": nodes, "client_id": self.id}))["prompt_id"]

    def follow(self, prompt_id: str, seconds: float = 600, until: Any = None) -> Outcome:
        """Listen until the prompt has ended, or until `until(kind, data)` is true: then the status is "running"."""
        messages: list[tuple[float, str, dict[str, Any]]] = []
        status, end = "running", time.monotonic() + seconds
        while True:
            message = json.loads(self._socket.receive(max(0.1, end - time.monotonic())))
            kind, data = message["type"], message["data"]
            messages.append((time.monotonic(), kind, data))
            if until is not None and until(kind, data):
                break
            if data.get("prompt_id") != prompt_id:
                continue
            if kind in ("execution_success", "execution_error", "execution_interrupted"):
                status = kind
            # The queue is done with the prompt only after this message.
            if kind == "executing" and data["node"] is None:
                break
        outputs = {data["node"]: data["output"] for _, kind, data in messages if kind == "executed"}
        return Outcome(status, outputs, messages)

    def run(self, prompt: Prompt | dict[str, Any], seconds: float = 600) -> Outcome:
        """Submit and follow; HostError where it does not succeed."""
        outcome = self.follow(self.submit(prompt), seconds)
        if outcome.status != "execution_success":
            reasons = outcome.events("execution_error")
            text = "\n".join(f"{r['node_type']}: {r['exception_message']}\n{''.join(r['traceback'])}" for r in reasons)
            raise HostError(f"{outcome.status}: {text}")
        return outcome
