"""One whole node in this process, as ``guardian serve`` wires it, on a real PostgreSQL.

It runs on an event loop in a thread of its own; tests talk to it over HTTP and share it, each with
users, projects and schemas of its own.
"""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql

from guardian.adapters.postgres.embedded import EmbeddedPostgres
from guardian.app import FirstAdmin, Guardian
from guardian.settings import load_settings
from raftcore.storage.directory import DataDirectory

ADMIN, PASSWORD = "admin@example.com", "correct horse battery"
SCHEMA = {
    "type": "object",
    "properties": {"rate": {"type": "integer", "minimum": 0}, "name": {"type": "string"}},
}
START_TIMEOUT_S = 60.0

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)

    @property
    def revision(self) -> int:
        return int(self.headers["X-Guardian-Revision"])


class Server:
    """A node, and somebody to ask it."""

    def __init__(self, root: Path, database_url: str, **flags: str | None) -> None:
        self.root = root
        self.database_url = database_url
        self.created: list[tuple[str, str]] = []
        self.failure: BaseException | None = None
        self._flags: dict[str, str | None] = {**flags}
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._raft_port = probe.getsockname()[1]
        self._tokens: dict[str, str] = {}

    # -- its life -----------------------------------------------------------------------------

    def start(self) -> None:
        ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()

        def run() -> None:
            try:
                self._loop.run_until_complete(self._serve(ready))
            except BaseException as error:  # noqa: BLE001 - raised in the test
                self.failure = error
            finally:
                self._loop.run_until_complete(self._loop.shutdown_default_executor())
                self._loop.close()
                ready.set()

        self._thread = threading.Thread(target=run, name="guardian-under-test")
        self._thread.start()
        assert ready.wait(START_TIMEOUT_S), "the node did not start"
        if self.failure is not None:
            raise self.failure

    async def _serve(self, ready: threading.Event) -> None:
        flags: dict[str, str | None] = {
            "data_dir": str(self.root / "data"),
            "http": "127.0.0.1:0",
            "raft": f"127.0.0.1:{self._raft_port}",
            "database_url": self.database_url,
            **self._flags,
        }
        settings = load_settings(flags, environ={})
        directory = await asyncio.to_thread(DataDirectory.open, settings.data_dir, settings.node_id)
        self.guardian = Guardian(
            settings,
            directory,
            database_url=self.database_url,
            jwt_secret=b"0123456789abcdef0123456789abcdef",
            first_admin=FirstAdmin(ADMIN, PASSWORD, lambda *who: self.created.append(who)),
        )
        await self.guardian.start()
        self.port = self.guardian.http.address.port
        ready.set()
        await self._stopping.wait()
        await self.guardian.stop()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(START_TIMEOUT_S)
        assert not self._thread.is_alive(), "the node did not stop"

    # -- asking it ----------------------------------------------------------------------------

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        as_user: str | None = ADMIN,
        raw: bytes | None = None,
        **headers: str,
    ) -> Answer:
        """One request; below ``/api/v1`` unless the path says otherwise."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if as_user is not None:
            sent.setdefault("Authorization", f"Bearer {self.token(as_user)}")
        if body is not None:
            raw = json.dumps(body).encode()
        if raw is not None:
            sent.setdefault("Content-Type", "application/json")
        target = path.removeprefix("!") if path.startswith("!") else f"/api/v1{path}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, target, raw, sent)
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def must(self, status: int, method: str, path: str, body: object = None, **more: Any) -> Answer:
        answer = self.ask(method, path, body, **more)
        assert answer.status == status, (method, path, answer.status, answer.raw)
        return answer

    def refused(
        self, status: int, code: str, method: str, path: str, body: object = None, **more: Any
    ) -> Any:
        """A problem document of that code; it is returned."""
        answer = self.must(status, method, path, body, **more)
        assert answer.headers["Content-Type"].startswith("application/problem+json")
        problem = answer.json
        assert (problem["code"], problem["status"]) == (code, status), problem
        assert problem["request_id"] == answer.headers["X-Request-ID"]
        return problem

    def token(self, email: str) -> str:
        if email not in self._tokens:
            body = {"email": email, "password": PASSWORD}
            answer = self.must(200, "POST", "/auth/login", body, as_user=None)
            self._tokens[email] = answer.json["access_token"]
        return self._tokens[email]

    # -- furnishing ---------------------------------------------------------------------------

    def user(self, **more: object) -> tuple[str, str]:
        """A new user's e-mail and id."""
        email = f"user{next(_numbers)}@example.com"
        body = {"email": email, "password": PASSWORD, **more}
        return email, self.must(201, "POST", "/users", body).json["id"]

    def project(self, as_user: str = ADMIN) -> tuple[str, str]:
        """A new project's path and its API key."""
        body = {"name": f"project {next(_numbers)}"}
        made = self.must(201, "POST", "/projects", body, as_user=as_user).json
        return f"/projects/{made['id']}", made["api_key"]

    def schema(self, schema: object = None, as_user: str = ADMIN) -> str:
        body = {"name": f"schema {next(_numbers)}", "schema": SCHEMA if schema is None else schema}
        return str(self.must(201, "POST", "/schemas", body, as_user=as_user).json["id"])

    def config(self, content: object, key: str = "app/web") -> tuple[str, str]:
        """The path of a new config in a new project, and an API key to read it."""
        project, api_key = self.project()
        body = {"key": key, "schema_id": self.schema(), "content": content}
        self.must(201, "POST", f"{project}/configs", body)
        return f"{project}/configs/{quote(key, safe='')}", api_key


@pytest.fixture(scope="session")
def make_server(
    postgres_server: EmbeddedPostgres,
    postgres_template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., Server]]:
    """Makes nodes, each with an empty database of its own; not started."""
    made: list[Server] = []

    def make(**flags: str) -> Server:
        name = f"end_to_end_{next(_numbers)}"
        with psycopg.connect(postgres_server.dsn, autocommit=True) as connection:
            create = sql.SQL("CREATE DATABASE {} TEMPLATE template0")
            connection.execute(create.format(sql.Identifier(name)))
        root = tmp_path_factory.mktemp(name)
        made.append(Server(root, postgres_server.dsn_of(name), **flags))
        return made[-1]

    yield make
    for server in made:
        server.stop()


@pytest.fixture(scope="session")
def node(make_server: Callable[..., Server]) -> Server:
    """A running node with the shipped settings."""
    server = make_server()
    server.start()
    return server
