"""What ``kill -9`` can not show, because it keeps the page cache: durability of real nodes.

The nodes are the shipped program under a tracer that sees every system call. It checks that nothing
is promised before it is synced, and it takes back whatever was not when the power goes.
"""

from __future__ import annotations

import secrets
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from jepsen_like.durability import RaftOrdering, TracedProcess, Verdict, cut_power
from raftcore.errors import RaftcoreError
from raftcore.storage.directory import DataDirectory
from raftcore.storage.lmdb_log import open_log

pytestmark = pytest.mark.slow

WITHOUT_SYNC = ("-m", "jepsen_like.durability.without_sync")
#: Disposable by design: a node rebuilds it from its log.
DISPOSABLE = ("*/state", "*/state/*", "*/state.new", "*/state.new/*")
#: Tracing slows everything down; elections are tested elsewhere.
PATIENT = ("--heartbeat-ms", "200", "--election-timeout-ms", "2000")
#: Enough for several rounds of writes on every node.
ENOUGH, WRITERS = 40, 4


class Traced:
    """A cluster whose nodes run under tracers; once the power is gone it may be started again."""

    def __init__(self, cluster: Any, prefix: tuple[str, ...], ordering: dict[str, Any]) -> None:
        self.cluster = cluster
        self.acknowledged: dict[str, str] = {}  #: key by the token stored under it
        self.failures: list[BaseException] = []
        self._processes: list[TracedProcess] = []
        for node in cluster.nodes:
            disk = cluster.root / f"disk-{node.name}"
            disk.mkdir()
            at = node.arguments.index("--data-dir") + 1
            node.arguments[at] = str(disk / "data")
            with node.log_path.open("ab") as log:
                process = TracedProcess(
                    [sys.executable, *prefix, "-m", "guardian.cli.main", "serve", *node.arguments],
                    watch=disk,
                    env=node.environment,
                    exempt=DISPOSABLE,
                    ordering=RaftOrdering(log="data/log", **ordering),
                    stdout=log,
                    stderr=log,
                )
                process.start()
            self._processes.append(process)
            cluster.elsewhere.add(node.name)

    def until_ready(self) -> None:
        for node in self.cluster.nodes:
            self.cluster.until_ready(node)
        self.cluster.token = self.cluster.log_in_when_created()

    def write_until_enough(self, place: Any, until: Any) -> list[Verdict]:
        """Write through all nodes; the power goes in the middle of it."""
        stopping = threading.Event()

        def write(number: int) -> None:
            nodes = self.cluster.nodes
            while not stopping.is_set():
                number += 1
                token = secrets.token_hex(12)
                body = {"key": f"k/{token}", "schema_id": place.schema, "content": {"token": token}}
                try:
                    answer = self.cluster.ask(
                        nodes[number % len(nodes)], "POST", place.path(), body
                    )
                except OSError:
                    continue  # the power is gone
                if answer.status == 201:
                    self.acknowledged[token] = f"k/{token}"
                elif answer.status not in (503, 504):
                    self.failures.append(AssertionError(answer.raw))

        writers = [threading.Thread(target=write, args=(i,)) for i in range(WRITERS)]
        for writer in writers:
            writer.start()
        try:
            until("enough is acknowledged", lambda: len(self.acknowledged) >= ENOUGH)
            verdicts = cut_power(self._processes)
        finally:
            stopping.set()
            for writer in writers:
                writer.join()
        self.cluster.elsewhere.clear()
        assert not self.failures, self.failures
        return verdicts

    def holders(self) -> dict[str, int]:
        """On how many disks each acknowledged token is."""
        logs = [commands_of(node) for node in self.cluster.nodes]
        return {token: sum(token.encode() in log for log in logs) for token in self.acknowledged}

    def close(self) -> None:
        for process in self._processes:
            process.close()


def commands_of(node: Any) -> bytes:
    """Everything in the log that a node left; nothing if that can not be opened."""
    path = node.arguments[node.arguments.index("--data-dir") + 1]
    with ExitStack() as opened:
        try:
            directory = DataDirectory.open(path, node.name)
            opened.callback(directory.close)
            log = open_log(directory)
        except RaftcoreError:
            return b""
        opened.callback(log.close)
        recovered = log.load()
        entries = log.read(recovered.first_index, recovered.last_index, 1 << 30)
    return b"\0".join(entry.data for entry in entries)


@pytest.fixture
def trace(make_cluster: Any) -> Iterator[Callable[..., Traced]]:
    """Starts a traced cluster of a size, with ``prefix`` between Python and the program."""
    started: list[Traced] = []

    def start(size: int, prefix: tuple[str, ...] = (), **ordering: Any) -> Traced:
        cluster = make_cluster(*PATIENT, size=size)
        started.append(Traced(cluster, prefix, ordering))
        started[-1].until_ready()
        return started[-1]

    yield start
    for traced in started:
        traced.close()


def check_all_there(traced: Traced, place: Any, until: Any) -> None:
    """Started again as usual, the cluster has every acknowledged document."""
    cluster = traced.cluster
    cluster.start()
    for token, key in traced.acknowledged.items():
        assert cluster.get("GET", place.path(key))["content"] == {"token": token}


def test_a_node_answers_nobody_before_its_write_is_durable(
    trace: Callable[..., Traced], until: Any
) -> None:
    traced = trace(1, revision_base=0, require=["client_reply"])
    place = traced.cluster.furnish()
    (verdict,) = traced.write_until_enough(place, until)
    assert verdict.ok, verdict
    assert verdict.checked["client_reply"] >= ENOUGH
    assert verdict.power_lost
    assert min(traced.holders().values()) == 1
    check_all_there(traced, place, until)


def test_a_node_that_does_not_sync_is_found_out(trace: Callable[..., Traced], until: Any) -> None:
    traced = trace(1, WITHOUT_SYNC, revision_base=0, require=["client_reply"])
    (verdict,) = traced.write_until_enough(traced.cluster.furnish(), until)
    assert not verdict.ok
    assert any("client_reply" in line for line in verdict.violations), verdict.violations[:5]
    assert min(traced.holders().values()) == 0


def test_when_three_nodes_lose_power_at_once_nothing_acknowledged_is_lost(
    trace: Callable[..., Traced], until: Any
) -> None:
    traced = trace(3)
    place = traced.cluster.furnish()
    verdicts = traced.write_until_enough(place, until)
    assert [verdict.violations for verdict in verdicts] == [[], [], []]
    assert all(verdict.power_lost for verdict in verdicts)
    for kind in ("vote_request", "vote", "append_ack"):
        assert sum(verdict.checked.get(kind, 0) for verdict in verdicts) > 0, kind
    assert min(traced.holders().values()) >= 2
    check_all_there(traced, place, until)


def test_three_nodes_that_do_not_sync_lose_what_they_acknowledged(
    trace: Callable[..., Traced], until: Any
) -> None:
    traced = trace(3, WITHOUT_SYNC)
    verdicts = traced.write_until_enough(traced.cluster.furnish(), until)
    assert not any(verdict.ok for verdict in verdicts)
    assert any("append_ack" in line for verdict in verdicts for line in verdict.violations)
    assert min(traced.holders().values()) < 2
