"""A small wandb server on the loopback device, which keeps what arrives and can misbehave.

It speaks as much of the protocol as the client needs for a run, for going on with it, and for
`wandb sync`: GraphQL for the run and its files' addresses, a stream for lines, PUT for files.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

KEY = "0123456789" * 4
ENTITY = {"id": "1", "name": "someone"}

Fault = Literal["error 500", "hang", "die", "refuse"]


@dataclass
class Stored:
    """A run as the server holds it."""

    id: str
    name: str
    project: str
    config: dict[str, Any] = field(default_factory=dict)
    streams: dict[str, list[str]] = field(default_factory=dict)  # the lines of each, by its name
    files: dict[str, bytes] = field(default_factory=dict)
    complete: bool = False

    @property
    def history(self) -> list[dict[str, Any]]:
        """The logged rows."""
        return [json.loads(line) for line in self.streams.get("wandb-history.jsonl", [])]

    @property
    def summary(self) -> dict[str, Any]:
        """As last reported."""
        return json.loads(self.streams.get("wandb-summary.json", ["{}"])[-1])

    def describe(self) -> dict[str, Any]:
        """What the client calls a bucket."""
        history, events = (
            self.streams.get(f"wandb-{name}.jsonl", []) for name in ("history", "events")
        )
        return {
            "id": self.id,
            "name": self.id,
            "displayName": self.name,
            "project": {"id": "1", "name": self.project, "entity": ENTITY},
            "config": json.dumps(self.config),
            "summaryMetrics": json.dumps(self.summary),
            "historyLineCount": len(history),
            "historyTail": json.dumps(history[-1:]),
            "eventsLineCount": len(events),
            "eventsTail": json.dumps(events[-1:]),
            "logLineCount": 0,
            "tags": [],
            "wandbConfig": json.dumps({"t": 1}),  # it has been started
        }  # fmt: skip


class Server(ThreadingHTTPServer):
    """Listens on a free port; misbehaves from some request on if it is told to."""

    daemon_threads = True

    def __init__(self, fault: Fault | None = None, after: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault, self.after = fault, after
        self.runs: dict[str, Stored] = {}
        self.requests: list[str] = []  # the path of each
        self.keys: set[str] = set()
        self.healed = threading.Event()

    def heal(self) -> None:
        """Answer from now on."""
        self.fault = None
        self.healed.set()

    @property
    def variables(self) -> dict[str, str]:
        """The environment that sends a client here."""
        address = f"http://127.0.0.1:{self.server_port}"
        return {"WANDB_BASE_URL": address, "WANDB_API_KEY": KEY}


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server

    def do_POST(self) -> None:
        """Misbehave, or answer as the path demands."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append(self.path)
        scheme, _, credentials = self.headers.get("Authorization", "").partition(" ")
        if scheme == "Basic":
            self.server.keys.add(base64.b64decode(credentials).decode().removeprefix("api:"))
        fault = self.server.fault if len(self.server.requests) > self.server.after else None
        if fault == "error 500":
            self.reply({"error": "out of order"}, 500)
        elif fault == "refuse":
            self.reply({"errors": [{"message": "user is not logged in"}]}, 401)
        elif fault == "hang":
            self.server.healed.wait()
        elif fault == "die":
            self.close_connection = True
        elif self.path == "/graphql":
            request = json.loads(body)
            self.reply({"data": self.answer(request["operationName"], request.get("variables"))})
        elif self.path.startswith("/sdk/"):  # the client's reports on itself
            self.reply({}, 404)
        elif self.path.endswith("/file_stream"):
            self.store_lines(self.server.runs[self.path.split("/")[4]], json.loads(body))
            self.reply({})
        else:
            run, name = self.path.removeprefix("/storage/").split("/", 1)
            self.server.runs[run].files[name] = body
            self.reply({})

    do_PUT = do_POST

    def reply(self, content: object, status: int = 200) -> None:
        """Send JSON."""
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, *_: object) -> None:
        """Say nothing: the requests are kept."""

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """To a GraphQL query or mutation; nothing to one of which a run does not depend."""
        runs = self.server.runs
        if operation == "UpsertBucket":
            name = variables["name"]
            inserted = name not in runs
            run = runs.setdefault(
                name, Stored(name, variables["displayName"], variables["project"])
            )
            run.config |= json.loads(variables["config"] or "{}")
            return {"upsertBucket": {"bucket": run.describe(), "inserted": inserted}}
        if operation == "RunResumeStatus":
            known = runs.get(variables["name"])
            return {
                "model": {
                    "id": "1",
                    "name": variables["project"],
                    "entity": ENTITY,
                    "bucket": known and known.describe(),
                }
            }
        if operation == "CreateRunFiles":
            address = f"http://{self.headers['Host']}/storage/{variables['run']}"
            files = [
                {"name": name, "uploadUrl": f"{address}/{name}"} for name in variables["files"]
            ]
            return {
                "createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}
            }
        return {}

    def store_lines(self, run: Stored, request: dict[str, Any]) -> None:
        """What a run logs arrives as lines that begin at an offset."""
        for name, chunk in request.get("files", {}).items():
            lines = run.streams.setdefault(name, [])
            lines[chunk["offset"] :] = chunk["content"]
        run.complete = request.get("complete", run.complete)


@contextmanager
def serving(fault: Fault | None = None, after: int = 0) -> Iterator[Server]:
    """A server that answers, for `after` requests if it has a fault."""
    with Server(fault, after) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
        try:
            yield server
        finally:
            server.heal()
            server.shutdown()
