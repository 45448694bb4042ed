"""Real configuration on a real cluster: what a user of Guardian does, from start to disaster.

Run it: it starts three nodes and a PostgreSQL in a temporary directory, registers the public JSON
Schemas of GitHub workflows, Compose files, GitLab CI and Dependabot, stores a document for each,
lets six clients race for the lock, has broken documents refused, rolls back, reads with an API key,
kills all three nodes at once, starts them again, and checks that everything is still there.

The schemas come with the package check-jsonschema; the documents are in ``examples/documents``.
The exit code is 0 only if every answer was the expected one.
"""

from __future__ import annotations

import asyncio
import copy
import importlib.resources
import json
import re
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from guardian.adapters.postgres.embedded import EmbeddedPostgres
from guardian.cli.local_nodes import LocalNode, layout

DOCUMENTS = Path(__file__).parent / "documents"
PASSWORD = secrets.token_urlsafe(15)
REQUEST_S = 15.0
PATIENCE_S = 45.0
CLIENTS = 6
ROUNDS = 4


class Surprise(Exception):  # noqa: N818 - that is what it is
    """Something was not as it must be; the message says what."""


def expect(condition: object, message: str) -> None:
    """Raise :class:`Surprise` unless ``condition`` holds."""
    if not condition:
        raise Surprise(message)


# -- what is stored -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One kind of document: its schema, a real example, an edit of it, and a way to break it.

    Args:
        key: where the config is stored; a slash is part of the name.
        schema: file name of the schema inside check-jsonschema, without ``.json``.
        document: file name in ``examples/documents``.
        edited: path of the member that clients change while they race.
        broken: path of a member, and the value that makes the document invalid.
    """

    key: str
    schema: str
    document: str
    edited: tuple[str | int, ...]
    broken: tuple[tuple[str | int, ...], object]


CASES = (
    Case(
        "ci/github/workflow",
        "github-workflows",
        "github-workflow.yml",
        ("jobs", "test", "timeout-minutes"),
        (("jobs", "test", "runs-on"), 24),
    ),
    Case(
        "deploy/compose",
        "compose-spec",
        "compose.yaml",
        ("services", "app", "deploy", "replicas"),
        (("services", "app", "healthcheck", "retries"), ["three"]),
    ),
    Case(
        "ci/gitlab",
        "gitlab-ci",
        "gitlab-ci.yml",
        ("variables", "BUILD_NUMBER"),
        (("unit", "artifacts", "paths"), "report.xml"),
    ),
    Case(
        "updates/dependabot",
        "dependabot",
        "dependabot.yml",
        ("updates", 0, "open-pull-requests-limit"),
        (("updates", 1, "schedule", "interval"), "sometimes"),
    ),
)


class _Yaml12(yaml.SafeLoader):
    """YAML 1.1 reads ``on:`` as true; the tools that own these files read it as a word."""


_Yaml12.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if tag != "tag:yaml.org,2002:bool"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Yaml12.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|false)$"), list("tf"))


def load_document(name: str) -> Any:
    """A document of ``examples/documents`` as JSON values."""
    return yaml.load((DOCUMENTS / name).read_text(), _Yaml12)


def schema_text(name: str) -> str:
    """A public schema, as check-jsonschema ships it."""
    package = importlib.resources.files("check_jsonschema")
    return (package / "builtin_schemas" / "vendor" / f"{name}.json").read_text()


def with_member(document: Any, path: Iterable[str | int], value: object) -> Any:
    """A copy of ``document`` in which the member at ``path`` is ``value``."""
    changed = copy.deepcopy(document)
    *parents, last = path
    place = changed
    for step in parents:
        place = place[step]
    place[last] = value
    return changed


# -- a client -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """Status, headers and body of a response."""

    status: int
    headers: Mapping[str, str]
    body: Any


class Client:
    """Asks one node, then the next. Every write carries an Idempotency-Key, so that a request whose
    outcome is unknown can be sent again."""

    def __init__(self, session: aiohttp.ClientSession, urls: list[str]) -> None:
        self._session = session
        self._urls = urls
        self.headers: dict[str, str] = {}

    async def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        node: int = 0,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """The first answer that is not "later" (503) or "unknown" (504)."""
        sent = {**self.headers, **(headers or {})}
        if method != "GET":
            sent.setdefault("Idempotency-Key", secrets.token_hex(16))
        deadline = time.monotonic() + PATIENCE_S
        while True:
            url = f"{self._urls[node % len(self._urls)]}/api/v1{path}"
            try:
                answer = await self._send(method, url, body, sent)
            except (aiohttp.ClientError, TimeoutError) as error:
                expect(time.monotonic() < deadline, f"{method} {path}: {error!r}")
            else:
                if answer.status not in (503, 504):
                    return answer
                expect(time.monotonic() < deadline, f"{method} {path}: {answer}")
            node += 1
            await asyncio.sleep(0.1)

    async def _send(self, method: str, url: str, body: object, headers: dict[str, str]) -> Answer:
        data = None if body is None else json.dumps(body)
        if data is not None:
            headers = {**headers, "Content-Type": "application/json"}
        async with self._session.request(method, url, data=data, headers=headers) as answer:
            raw = await answer.read()
            return Answer(answer.status, answer.headers, json.loads(raw) if raw else None)

    async def is_ready(self, url: str) -> bool:
        try:
            async with self._session.get(f"{url}/ready") as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def must(self, status: int, method: str, path: str, body: object = None) -> Any:
        """The body of an answer that has to have ``status``."""
        answer = await self.ask(method, path, body)
        expect(answer.status == status, f"{method} {path}: {answer.status} {answer.body}")
        return answer.body


# -- the story ----------------------------------------------------------------------------------


@dataclass
class Story:
    """What is done, and what must be there afterwards."""

    nodes: list[LocalNode]
    client: Client
    project: str = ""
    api_key: str = ""
    schemas: dict[str, str] = field(default_factory=dict)
    #: by config key: every version that was acknowledged
    acknowledged: dict[str, dict[int, Any]] = field(default_factory=dict)

    def path(self, key: str) -> str:
        return f"/projects/{self.project}/configs/{key.replace('/', '%2F')}"

    def newest(self, key: str) -> int:
        return max(self.acknowledged[key])

    async def start(self) -> None:
        """Start all nodes and wait until each is ready."""
        for node in self.nodes:
            node.start()
        for node in self.nodes:
            await self._until_ready(node)

    async def _until_ready(self, node: LocalNode) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not await self.client.is_ready(node.url):
                expect(node.running, f"{node.name} ended: {node.last_log_line()}")
                await asyncio.sleep(0.05)

    async def log_in(self) -> None:
        credentials = {"email": "admin@localhost", "password": PASSWORD}
        tokens = await self.client.must(200, "POST", "/auth/login", credentials)
        self.client.headers["Authorization"] = f"Bearer {tokens['access_token']}"

    async def show_cluster(self) -> None:
        for number, node in enumerate(self.nodes):
            view = (await self.client.ask("GET", "/cluster", node=number)).body
            print(f"  {node.name}  {view['role']:<9} term {view['term']}, "
                  f"commit {view['commit_index']}")  # fmt: skip

    async def register(self) -> None:
        """A project, and the schemas in it."""
        project = await self.client.must(201, "POST", "/projects", {"name": "real documents"})
        self.project, self.api_key = project["id"], project["api_key"]
        for case in CASES:
            text = schema_text(case.schema)
            schema = json.loads(text)
            body = {"name": case.schema, "schema": schema}
            registered = await self.client.must(201, "POST", "/schemas", body)
            self.schemas[case.schema] = registered["id"]
            draft = schema["$schema"].rstrip("#").rpartition("json-schema.org/")[2]
            print(f"  {case.schema:<18}{len(text):>9} bytes  {draft}")
        await self._register_too_large("renovate")

    async def _register_too_large(self, name: str) -> None:
        text = schema_text(name)
        answer = await self.client.ask(
            "POST", "/schemas", {"name": name, "schema": json.loads(text)}
        )
        expect(answer.status == 413, f"the schema of {name}: {answer.status}")
        print(f"  {name:<18}{len(text):>9} bytes  refused: {answer.status} {answer.body['code']}")

    async def store(self) -> None:
        for case in CASES:
            content = load_document(case.document)
            body = {"key": case.key, "schema_id": self.schemas[case.schema], "content": content}
            config = await self.client.must(201, "POST", f"/projects/{self.project}/configs", body)
            expect(config["version"] == 1, f"{case.key} begins at {config['version']}")
            self.acknowledged[case.key] = {1: content}
            again = await self.client.ask("POST", f"/projects/{self.project}/configs", body)
            expect(again.status == 409, f"{case.key} was created twice: {again}")
            print(f"  {case.key:<20}version 1, revision {config['revision']}")

    async def race(self) -> None:
        """Clients on all nodes change the same document, all expecting the same version."""
        for case in CASES:
            for _ in range(ROUNDS):
                await self._race_once(case)
            print(f"  {case.key:<20}{ROUNDS} rounds of {CLIENTS} clients: one winner each, "
                  f"now version {self.newest(case.key)}")  # fmt: skip

    async def _race_once(self, case: Case) -> None:
        version = self.newest(case.key)
        contents = [
            with_member(self.acknowledged[case.key][version], case.edited, 100 * version + number)
            for number in range(CLIENTS)
        ]
        answers = await asyncio.gather(
            *(
                self.client.ask(
                    "PUT",
                    self.path(case.key),
                    {"content": content, "expected_version": version},
                    node=number,
                )
                for number, content in enumerate(contents)
            )
        )
        won = [number for number, answer in enumerate(answers) if answer.status == 200]
        expect(len(won) == 1, f"{case.key}: {[a.status for a in answers]}")
        for number, answer in enumerate(answers):
            if number in won:
                expect(answer.body["version"] == version + 1, f"the winner got {answer.body}")
                self.acknowledged[case.key][version + 1] = contents[number]
            else:
                lost = answer.body
                expect(
                    (answer.status, lost["code"], lost["current_version"])
                    == (409, "version_conflict", version + 1),
                    f"a loser got {answer}",
                )

    async def break_them(self) -> None:
        """Documents that do not fit are refused, with a pointer to each fault."""
        for case in CASES:
            path, value = case.broken
            version = self.newest(case.key)
            content = with_member(self.acknowledged[case.key][version], path, value)
            body = {"content": content, "expected_version": version}
            answer = await self.client.ask("PUT", self.path(case.key), body)
            expect(
                (answer.status, answer.body["code"]) == (422, "document_invalid"),
                f"{case.key} broken at {path}: {answer}",
            )
            print(f"  {case.key}: {answer.status} {answer.body['code']}")
            for fault in answer.body["errors"][:4]:
                print(f"    {fault['pointer']}: {fault['message'][:100]}")
            pointers = [fault["pointer"] for fault in answer.body["errors"]]
            aim = "/" + "/".join(map(str, path))
            hit = any(aim.startswith(p) or p.startswith(aim) for p in pointers)
            expect(hit, f"{pointers} do not point towards {aim}")

    async def roll_back(self) -> None:
        """A new version with the old content, under the same lock."""
        case = CASES[0]
        before = self.newest(case.key)
        stale = {"to_version": 1, "expected_version": before - 1}
        answer = await self.client.ask("POST", f"{self.path(case.key)}/rollback", stale)
        expect(answer.status == 409, f"a stale rollback got {answer}")
        body = {"to_version": 1, "expected_version": before}
        config = await self.client.must(200, "POST", f"{self.path(case.key)}/rollback", body)
        original = self.acknowledged[case.key][1]
        expect(config["version"] == before + 1, f"a rollback gave {config['version']}")
        expect(config["content"] == original, "a rollback did not bring the old content back")
        self.acknowledged[case.key][before + 1] = original
        print(f"  {case.key}: version {before} -> {before + 1} with the content of version 1")

    async def read_with_key(self) -> None:
        """What an application does: no token, no PostgreSQL, a version as the ETag."""
        for number, case in enumerate(CASES):
            path = f"/read/{case.key.replace('/', '%2F')}?consistency=linearizable"
            key = {"X-API-Key": self.api_key}
            answer = await self.client.ask("GET", path, node=number, headers=key)
            version = self.newest(case.key)
            expect(answer.status == 200, f"{path}: {answer}")
            expect(answer.body["content"] == self.acknowledged[case.key][version], case.key)
            etag = answer.headers["ETag"]
            expect(etag == f'"{version}"', f"ETag {etag} of version {version}")
            again = {**key, "If-None-Match": etag}
            unchanged = await self.client.ask("GET", path, node=number, headers=again)
            expect(unchanged.status == 304, f"If-None-Match {etag} got {unchanged}")
            print(f"  {case.key:<20}200 ETag {etag}, then 304")
        forged = await self.client.ask("GET", "/read/any", headers={"X-API-Key": "cfg_forged"})
        expect(forged.status == 401, f"a forged key got {forged}")

    async def kill_all(self) -> None:
        """``kill -9`` of all three nodes, and a start with the same commands."""
        for node in self.nodes:
            node.kill()
        started = time.monotonic()
        await self.start()
        print(f"  all three ready again after {time.monotonic() - started:.1f} s")

    async def check_everything(self) -> None:
        """Every acknowledged version of every document, from every node."""
        checked = 0
        for number in range(len(self.nodes)):
            for case in CASES:
                for version, content in self.acknowledged[case.key].items():
                    path = f"{self.path(case.key)}/revisions/{version}"
                    answer = await self.client.ask("GET", path, node=number)
                    expect(answer.status == 200, f"{case.key} version {version}: {answer}")
                    expect(answer.body["content"] == content, f"{case.key} version {version}")
                    checked += 1
                config = await self.client.ask("GET", self.path(case.key), node=number)
                expect(config.body["version"] == self.newest(case.key), f"{config.body}")
        print(f"  {checked} versions read back from three nodes, all as they were acknowledged")

    async def show_history(self) -> None:
        case = CASES[0]
        page = await self.client.must(200, "GET", f"{self.path(case.key)}/revisions")
        versions = [item["version"] for item in page["items"]]
        expect(versions == sorted(self.acknowledged[case.key], reverse=True), f"{versions}")
        print(f"  {case.key}")
        for item in page["items"]:
            print(f"    {item['version']:>3}  revision {item['revision']:>3}  {item['kind']:<9}"
                  f"{item['content_digest'][:12]}  {item['updated_at']}")  # fmt: skip

    async def tell(self) -> None:
        chapters = (
            ("three nodes", self.start, self.log_in, self.show_cluster),
            ("public schemas", self.register),
            ("real documents", self.store),
            ("a race for the lock", self.race),
            ("broken documents", self.break_them),
            ("rollback", self.roll_back),
            ("reads by API key", self.read_with_key),
            ("kill -9 of all three nodes", self.kill_all),
            ("everything is still there", self.check_everything, self.read_with_key),
            ("history", self.show_history),
        )
        for title, *acts in chapters:
            print(f"\n== {title}", flush=True)
            for act in acts:
                await act()


# -- where it happens ---------------------------------------------------------------------------


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


async def run(root: Path, database_url: str) -> None:
    ports = free_ports(6)
    nodes = layout(
        root,
        list(zip(ports[:3], ports[3:], strict=True)),
        database_url=database_url,
        secret=secrets.token_hex(32),
        password=PASSWORD,
    )
    timeout = aiohttp.ClientTimeout(total=REQUEST_S)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session:
            await Story(nodes, Client(session, [node.url for node in nodes])).tell()
    finally:
        await asyncio.gather(*(asyncio.to_thread(node.stop) for node in nodes))


def main() -> None:
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="guardian-example-") as directory,
        EmbeddedPostgres(Path(directory) / "pg") as postgres,
    ):
        try:
            asyncio.run(run(Path(directory), postgres.dsn))
        except Surprise as surprise:
            sys.exit(f"surprise: {surprise}")
    print(f"\nall as expected, in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
