"""Clusters of real ``guardian serve`` processes on loopback, and clients to talk to them.

One cluster serves most tests. Each test gets it with all three nodes up, whatever the test before
did to them, and works in a project of its own. Figures that tests :func:`figure` are printed at the
end of the run; no test judges a time.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import random
import re
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import psycopg
import pytest
from psycopg import sql

from guardian.adapters.postgres.embedded import EmbeddedPostgres
from guardian.cli.local_nodes import LocalNode, layout
from guardian.fsm.machine import GuardianMachine
from raftcore.storage.directory import DataDirectory

SECRET = "a secret of all nodes, 32 bytes or more"
PASSWORD = "correct horse battery"
SCHEMA = {"type": "object", "properties": {"count": {"type": "integer", "minimum": 0}}}
#: Only a failing test waits this long.
PATIENCE_S = 60.0
REQUEST_S = 15.0
POLL_S = 0.02
LOG_LINES = 25
#: One line per request, and that the tests' PostgreSQL is not durable.
NOISE = ('"guardian.access"', '"PostgreSQL runs with')
#: Small, so that every longer test also takes snapshots and compacts.
SMALL_SNAPSHOTS = ("--snapshot-entries", "200", "--trailing-entries", "50")

_numbers = itertools.count(1)
_figures: list[str] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _figures:
        terminalreporter.section("figures of the cluster tests")
        for line in _figures:
            terminalreporter.line(line)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """A failing test shows the last lines of its nodes' logs."""
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, Cluster):
                report.sections.append(("node logs", value.logs()))
    return report


@pytest.fixture
def figure() -> Callable[[str], None]:
    """Say a measured figure at the end of the run."""
    return _figures.append


def free_ports(count: int) -> list[int]:
    """Ports that stay free while their node is down: none of those that the kernel gives to
    outgoing connections."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(10_000, low)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in ports:
                ports.append(port)
    return ports


@pytest.fixture
def ports() -> list[int]:
    """Two ports, each followed by two more free ones, for the demo."""

    def all_free(first: int) -> bool:
        try:
            for port in range(first, first + 3):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True

    http_port = next(port for (port,) in iter(lambda: free_ports(1), None) if all_free(port))
    raft_port = next(
        port
        for (port,) in iter(lambda: free_ports(1), None)
        if all_free(port) and abs(port - http_port) > 2
    )
    return [http_port, raft_port]


@dataclass(frozen=True)
class Answer:
    """What a node said."""

    status: int
    headers: Mapping[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)

    @property
    def code(self) -> str:
        return str(self.json["code"])


def ask(
    url: str,
    method: str,
    path: str,
    body: object = None,
    *,
    token: str = "",
    timeout_s: float = REQUEST_S,
    **headers: str,
) -> Answer:
    """One request on a connection of its own; OSError when the node is not there."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if token:
        sent["Authorization"] = f"Bearer {token}"
    if body is not None:
        sent["Content-Type"] = "application/json"
    try:
        connection.request(method, path, None if body is None else json.dumps(body), sent)
        response = connection.getresponse()
        return Answer(response.status, dict(response.getheaders()), response.read())
    except http.client.HTTPException as error:
        raise ConnectionError(repr(error)) from error
    finally:
        connection.close()


def until(what: str, condition: Callable[[], Any], timeout_s: float = PATIENCE_S) -> Any:
    """The first true value of ``condition``; nodes that do not answer are asked again."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            found = condition()
        except OSError as error:
            found, trouble = None, repr(error)
        else:
            trouble = repr(found)
        if found:
            return found
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout_s:.0f} s in vain until {what}; last: {trouble}")
        time.sleep(POLL_S)


@pytest.fixture(name="until")
def until_fixture() -> Callable[..., Any]:
    return until


@dataclass(frozen=True)
class Furniture:
    """A project with a schema, for one test."""

    project: str
    schema: str
    api_key: str

    def path(self, key: str = "", *more: str) -> str:
        base = f"/api/v1/projects/{self.project}/configs"
        return "/".join((base, quote(key, safe=""), *more)) if key else base


@dataclass(frozen=True)
class Picture:
    """The replicated state in a data directory."""

    index: int
    state_hash: str
    chain_head: str
    changes: int


def option_of(node: LocalNode, flag: str) -> str:
    """The value that a node is started with."""
    return node.arguments[node.arguments.index(flag) + 1]


def set_option(node: LocalNode, flag: str, value: str) -> None:
    node.arguments[node.arguments.index(flag) + 1] = value


@dataclass
class Cluster:
    """Nodes, and what a test does to them.

    Args:
        root: where data directories and logs are.
        database_url: of the PostgreSQL they share.
        nodes: the processes.
    """

    root: Path
    database_url: str
    nodes: list[LocalNode]
    token: str = ""
    #: nodes that somebody else has started
    elsewhere: set[str] = field(default_factory=set)
    _stopped: set[str] = field(default_factory=set)

    # -- processes ------------------------------------------------------------------------------

    def data_dir(self, node: LocalNode) -> Path:
        return self.root / node.name

    def answers(self, node: LocalNode) -> bool:
        """Whether it makes sense to ask that node."""
        return (node.running and node.name not in self._stopped) or node.name in self.elsewhere

    def start(self, *nodes: LocalNode) -> None:
        """Start those (or all) and wait until they are ready. On the main thread: a node ends with
        the thread that started it."""
        for node in nodes or self.nodes:
            node.start()
        for node in nodes or self.nodes:
            self.until_ready(node)
        if not self.token:
            self.token = self.log_in()

    def newcomer(self, name: str, *flags: str, via: LocalNode | None = None) -> LocalNode:
        """A node that will ask ``via`` (or the first) whether it may join; it is not started."""
        http, raft = (f"127.0.0.1:{port}" for port in free_ports(2))
        target = via or self.nodes[0]
        arguments = [
            "--node-id", name, "--data-dir", str(self.root / name), "--http", http, "--raft", raft,
            "--join", option_of(target, "--raft"), *flags,
        ]  # fmt: skip
        environment = {k: v for k, v in target.environment.items() if k != "GUARDIAN_BOOTSTRAP"}
        node = LocalNode(name, f"http://{http}", arguments, environment, self.root / f"{name}.log")
        self.nodes.append(node)
        return node

    def kill(self, *nodes: LocalNode) -> None:
        """``kill -9``, all at once."""
        for node in nodes:
            assert node.pid is not None
            os.kill(node.pid, signal.SIGKILL)
        for node in nodes:
            node.kill()

    def pause(self, node: LocalNode) -> None:
        assert node.pid is not None
        os.kill(node.pid, signal.SIGSTOP)
        self._stopped.add(node.name)

    def resume(self, node: LocalNode) -> None:
        assert node.pid is not None
        os.kill(node.pid, signal.SIGCONT)
        self._stopped.discard(node.name)

    def run(self, node: LocalNode, timeout_s: float = PATIENCE_S) -> int:
        """Start a node that is expected to end by itself; its exit code."""
        node.start()
        return self.wait_exit(node, timeout_s)

    def wait_exit(self, node: LocalNode, timeout_s: float = PATIENCE_S) -> int:
        process = node._process
        assert process is not None
        return process.wait(timeout_s)

    def whole(self) -> Cluster:
        """With all nodes up and ready again, whatever was done to them."""
        for node in self.nodes:
            if node.name in self._stopped:
                self.resume(node)
        self.start()
        return self

    def close(self) -> None:
        for node in self.nodes:
            if node.name in self._stopped and node.running:
                self.resume(node)
        for node in self.nodes:
            node.kill()

    def logs(self) -> str:
        parts = []
        for node in self.nodes:
            text = node.log_path.read_text(errors="replace") if node.log_path.exists() else ""
            lines = [x for x in text.splitlines() if not any(noise in x for noise in NOISE)]
            parts.append(
                f"--- {node.name} (running: {node.running})\n" + "\n".join(lines[-LOG_LINES:])
            )
        return "\n".join(parts)

    # -- waiting --------------------------------------------------------------------------------

    def until_ready(self, node: LocalNode) -> None:
        def ready() -> bool:
            if not self.answers(node):
                pytest.fail(f"{node.name} ended: {node.last_log_line()}")
            return ask(node.url, "GET", "/ready", timeout_s=2.0).status == 200

        until(f"{node.name} is ready", ready)

    def view(self, node: LocalNode) -> Any:
        """``GET /cluster`` as that node sees it."""
        answer = ask(
            node.url, "GET", "/api/v1/cluster?consistency=local", token=self.token, timeout_s=2.0
        )
        return answer.json if answer.status == 200 else None

    def leader(self, *, after_term: int = -1) -> LocalNode:
        """The node that leads, in a term above ``after_term``; waits for one."""

        def leading() -> LocalNode | None:
            best: tuple[int, LocalNode] | None = None
            for node in self.nodes:
                if not self.answers(node):
                    continue
                with contextlib.suppress(OSError):
                    view = self.view(node)
                    if view and view["role"] == "leader" and view["term"] > after_term:
                        best = max(best or (-1, node), (view["term"], node), key=lambda b: b[0])
            return best[1] if best else None

        found: LocalNode = until("somebody leads", leading)
        return found

    def others(self, *nodes: LocalNode) -> list[LocalNode]:
        return [node for node in self.nodes if node not in nodes]

    def members(self, node: LocalNode) -> dict[str, Any]:
        """The members by name, as that node sees them."""
        view = self.view(node)
        return {member["id"]: member for member in view["members"]} if view else {}

    def until_members(self, node: LocalNode, *voters: str, learners: tuple[str, ...] = ()) -> Any:
        """Until that node sees these members, with nothing under way; its view."""

        def arrived() -> Any:
            view = self.view(node)
            if not view or view["stage"] != "stable":
                return None
            seen = {m["id"]: m["voter"] for m in view["members"]}
            wanted = dict.fromkeys(voters, True) | dict.fromkeys(learners, False)
            return view if seen == wanted else None

        return until(f"{node.name} sees {voters} and learners {learners}", arrived)

    def change_members(
        self, node: LocalNode, voters: Sequence[str], learners: Sequence[str] = (), **more: Any
    ) -> Answer:
        """Ask that node for these members, under the version that it shows."""
        version = more.pop("version", None) or self.view(node)["members_version"]
        wanted = [{"id": name} for name in voters]
        wanted += [{"id": name, "voter": False} for name in learners]
        body = {"expected_version": version, "members": wanted}
        return self.ask(node, "PUT", "/api/v1/cluster/members", body, **more)

    def until_changed(
        self, node: LocalNode, voters: Sequence[str], learners: Sequence[str] = ()
    ) -> Any:
        """As :meth:`change_members`, again while others are at it; what came of it."""

        def changed() -> Answer | None:
            answer = self.change_members(node, voters, learners)
            if answer.status in (409, 503):
                return None
            return answer

        answer = until(f"{node.name} takes {voters} and {learners}", changed)
        assert answer.status == 200, answer.raw
        return answer.json

    def until_level(self, *nodes: LocalNode) -> int:
        """Until those (or all) have applied the same index, with nothing in between; the index."""

        def level() -> int:
            views = [self.view(node) for node in nodes or self.nodes]
            if not all(views):
                return 0
            applied = {v["applied_index"] for v in views} | {v["commit_index"] for v in views}
            return applied.pop() if len(applied) == 1 else 0

        return int(until("all nodes have applied the same", level))

    def metric(self, node: LocalNode, name: str) -> float:
        text = ask(node.url, "GET", "/metrics").raw.decode()
        found = re.search(rf"^guardian_{name}(?:_total)? (\S+)$", text, re.MULTILINE)
        assert found is not None, f"no metric {name} in\n{text}"
        return float(found[1])

    # -- talking --------------------------------------------------------------------------------

    def log_in(self) -> str:
        body = {"email": "admin@localhost", "password": PASSWORD}

        def answered() -> str | None:
            for node in self.nodes:
                if self.answers(node):
                    answer = ask(node.url, "POST", "/api/v1/auth/login", body)
                    assert answer.status in (200, 503), answer.raw
                    return str(answer.json["access_token"]) if answer.status == 200 else None
            return None

        return str(until("somebody lets us log in", answered))

    def log_in_when_created(self) -> str:
        """As :meth:`log_in`, while the administrator may not be there yet."""
        body = {"email": "admin@localhost", "password": PASSWORD}

        def answered() -> str | None:
            answer = ask(self.nodes[0].url, "POST", "/api/v1/auth/login", body)
            return str(answer.json["access_token"]) if answer.status == 200 else None

        return str(until("the administrator can log in", answered))

    def ask(
        self, node: LocalNode, method: str, path: str, body: object = None, **more: Any
    ) -> Answer:
        return ask(node.url, method, path, body, token=self.token, **more)

    def get(self, method: str, path: str, body: object = None, status: int = 200) -> Any:
        """The body of an answer that must come, from whichever node; asked again under one
        Idempotency-Key when it may be asked again."""
        key = f"k-{secrets.token_hex(8)}"

        def answered() -> Answer | None:
            for node in self.nodes:
                if not self.answers(node):
                    continue
                with contextlib.suppress(OSError):
                    answer = self.ask(node, method, path, body, Idempotency_Key=key)
                    if answer.status not in (503, 504):
                        return answer
            return None

        answer: Answer = until(f"{method} {path} is answered", answered)
        assert answer.status == status, answer.raw
        return answer.json if answer.raw else None

    def furnish(self, schema: object = None) -> Furniture:
        """A project and a schema of the test's own."""
        number = next(_numbers)
        project = self.get("POST", "/api/v1/projects", {"name": f"test {number}"}, 201)
        body = {"name": f"test {number}", "schema": schema or SCHEMA}
        made = self.get("POST", "/api/v1/schemas", body, 201)
        return Furniture(project["id"], made["id"], project["api_key"])

    def store(self, place: Furniture, key: str, content: object) -> Any:
        body = {"key": key, "schema_id": place.schema, "content": content}
        return self.get("POST", place.path(), body, 201)

    def everything(self, place: Furniture, node: LocalNode) -> Any:
        """All configs of a project with their histories, read linearizably on one node."""

        def listed() -> Any:
            answer = self.ask(node, "GET", f"{place.path()}?limit=1000")
            return answer if answer.status == 200 else None

        items = until("the configs can be listed", listed).json["items"]
        histories = {}
        for item in items:
            path = place.path(item["key"], "revisions?limit=1000")
            histories[item["key"]] = self.ask(node, "GET", path).json["items"]
        return items, histories

    def sql(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run a statement on the shared PostgreSQL; the rows if it has any."""
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    # -- looking into the stores of a dead node -------------------------------------------------

    def picture(self, node: LocalNode) -> Picture:
        """The state that a dead node left."""
        assert not node.running
        directory = DataDirectory.open(self.data_dir(node), node.name)
        try:
            identity = directory.identity
            assert identity is not None
            machine = GuardianMachine.open(
                directory.path / "state",
                cluster_id=identity.cluster_id,
                incarnation=identity.incarnation,
            )
            try:
                state = machine.state
                return Picture(
                    state.applied().index,
                    state.state_hash().hex(),
                    state.chain_head().hex(),
                    state.verify_chain(),
                )
            finally:
                machine.close()
        finally:
            directory.close()


MakeCluster = Callable[..., Cluster]


@pytest.fixture(scope="session")
def new_database(postgres_server: EmbeddedPostgres, postgres_template: str) -> Callable[[], str]:
    """Makes a migrated database on the session's server; it goes with the server."""

    def make() -> str:
        name = f"cluster_{next(_numbers)}"
        with psycopg.connect(postgres_server.dsn, autocommit=True) as connection:
            create = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
            connection.execute(
                create.format(sql.Identifier(name), sql.Identifier(postgres_template))
            )
        return postgres_server.dsn_of(name)

    return make


def build_cluster(
    root: Path, database_url: str, *flags: str, size: int = 3, **environment: str
) -> Cluster:
    """A cluster that is not started."""
    ports = free_ports(2 * size)
    nodes = layout(
        root,
        list(zip(ports[::2], ports[1::2], strict=True)),
        database_url=database_url,
        secret=SECRET,
        password=PASSWORD,
        extra=flags,
    )
    for node in nodes:
        node.environment.update(environment)
    return Cluster(root, database_url, nodes)


@pytest.fixture
def make_cluster(tmp_path: Path, new_database: Callable[[], str]) -> Iterator[MakeCluster]:
    """Builds clusters of the test's own; they are killed at its end."""
    made: list[Cluster] = []

    def make(*flags: str, database_url: str = "", size: int = 3, **environment: str) -> Cluster:
        root = tmp_path / f"cluster-{len(made)}"
        root.mkdir()
        made.append(
            build_cluster(root, database_url or new_database(), *flags, size=size, **environment)
        )
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


@pytest.fixture(scope="session")
def shared_cluster(
    tmp_path_factory: pytest.TempPathFactory, new_database: Callable[[], str]
) -> Iterator[Cluster]:
    cluster = build_cluster(tmp_path_factory.mktemp("shared"), new_database(), *SMALL_SNAPSHOTS)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Cluster:
    """Three nodes, all up. The test may kill, pause and restart them, but not wipe them."""
    return shared_cluster.whole()
