"""Three real raftcore nodes, each under its tracer, losing power at once."""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from jepsen_like.durability import RaftOrdering, TracedProcess, Verdict, cut_power
from raftcore.core.types import EntryType
from raftcore.storage.directory import DataDirectory
from raftcore.storage.lmdb_log import open_log

pytestmark = pytest.mark.slow

#: One member. While it leads it proposes numbers, and prints the index of each acknowledged one.
MEMBER = """
import asyncio, sys
from pathlib import Path
from raftcore import (
    AppliedPosition, CoreConfig, DataDirectory, EntryType, Founder, Node, RaftcoreError,
    open_member,
)

class Sum:
    def __init__(self):
        self.value, self.position = 0, AppliedPosition()
    def last_applied(self):
        return self.position
    def apply(self, entries, position):
        self.position = position
        return [len(e.data) if e.type is EntryType.COMMAND else None for e in entries]
    def discard(self):
        self.position = AppliedPosition()
    def close(self):
        pass

async def propose(node, number):
    while True:
        try:
            proposed = await node.propose(b"%d" % number)
            print(proposed.index, number, flush=True)
            number += 4
        except RaftcoreError:
            await asyncio.sleep(0.02)

async def main(root, name, *addresses):
    founders = [Founder(f"n{i}", address) for i, address in enumerate(addresses, 1)]
    host, port = next(f.address for f in founders if f.node_id == name).split(":")
    directory = DataDirectory.open(Path(root) / "data", name, allow_unsupported_fs=True)
    member = await open_member(directory, founders=founders, listen=(host, int(port)))
    config = CoreConfig(name, heartbeat_ms=100, election_timeout_ms=1000)
    async with Node(
        config=config, storage=member.storage, transport=member.transport, state_machine=Sum()
    ) as node:
        await asyncio.gather(*(propose(node, 10**6 * int(name[1:]) + i) for i in range(4)))

asyncio.run(main(*sys.argv[1:]))
"""
NAMES = ("n1", "n2", "n3")
WITHOUT_SYNC = ("-m", "jepsen_like.durability.without_sync")
ACKNOWLEDGED = 60
TIMEOUT_S = 60.0


class Cluster:
    """Three traced members and what they acknowledged."""

    def __init__(self, root: Path, prefix: tuple[str, ...]) -> None:
        self.root = root
        self.acknowledged: dict[int, bytes] = {}
        self._pipes = selectors.DefaultSelector()
        script = root / "member.py"
        script.write_text(MEMBER)
        with ExitStack() as held:
            sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in NAMES]
            addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
        self.nodes = [
            TracedProcess(
                [sys.executable, *prefix, str(script), str(root / name), name, *addresses],
                watch=root / name,
                ordering=RaftOrdering(log="data/log"),
                stdout=subprocess.PIPE,
            )
            for name in NAMES
        ]

    def start(self) -> None:
        for name, node in zip(NAMES, self.nodes, strict=True):
            (self.root / name).mkdir()
            node.start()
            os.set_blocking(node.stdout.fileno(), False)
            self._pipes.register(node.stdout, selectors.EVENT_READ, bytearray())

    def close(self) -> None:
        self._pipes.close()
        for node in self.nodes:
            node.close()

    def wait_for(self, count: int) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while len(self.acknowledged) < count:
            assert time.monotonic() < deadline, f"{len(self.acknowledged)} were acknowledged"
            self._read(timeout_s=1.0)

    def lose_power(self) -> list[Verdict]:
        verdicts = cut_power(self.nodes)
        while self._pipes.get_map():
            self._read(timeout_s=1.0)
        return verdicts

    def _read(self, timeout_s: float) -> None:
        for key, _ in self._pipes.select(timeout_s):
            chunk = os.read(key.fd, 65536)
            if not chunk:
                self._pipes.unregister(key.fileobj)
            buffer: bytearray = key.data
            buffer += chunk
            *lines, rest = buffer.split(b"\n")
            buffer[:] = rest
            for line in lines:
                index, number = line.split()
                self.acknowledged[int(index)] = number

    def holders(self) -> dict[int, int]:
        """On how many disks each acknowledged command is, at its index."""
        held = dict.fromkeys(self.acknowledged, 0)
        for name in NAMES:
            for index, data in commands_of(self.root / name / "data", name).items():
                if self.acknowledged.get(index) == data:
                    held[index] += 1
        return held


def commands_of(path: Path, name: str) -> dict[int, bytes]:
    """The commands in a recovered log."""
    with ExitStack() as opened:
        directory = DataDirectory.open(path, name, allow_unsupported_fs=True)
        opened.callback(directory.close)
        log = open_log(directory, map_size_bytes=1 << 26)
        opened.callback(log.close)
        recovered = log.load()
        entries = log.read(recovered.first_index, recovered.last_index, 1 << 30)
    return {entry.index: entry.data for entry in entries if entry.type is EntryType.COMMAND}


@pytest.fixture
def start_cluster(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    clusters: list[Cluster] = []

    def start(prefix: tuple[str, ...] = ()) -> Cluster:
        clusters.append(Cluster(tmp_path, prefix))
        clusters[-1].start()
        return clusters[-1]

    yield start
    for cluster in clusters:
        cluster.close()


def test_nothing_acknowledged_is_lost_and_nothing_was_said_too_early(
    start_cluster: Callable[..., Cluster],
) -> None:
    cluster = start_cluster()
    cluster.wait_for(ACKNOWLEDGED)
    verdicts = cluster.lose_power()
    assert [verdict.violations for verdict in verdicts] == [[], [], []]
    for kind in ("vote_request", "vote", "append_ack"):
        assert sum(verdict.checked.get(kind, 0) for verdict in verdicts) > 0, kind
    assert len(cluster.acknowledged) >= ACKNOWLEDGED
    assert min(cluster.holders().values()) >= 2


def test_without_lmdb_s_sync_both_checks_fail(start_cluster: Callable[..., Cluster]) -> None:
    cluster = start_cluster(WITHOUT_SYNC)
    cluster.wait_for(ACKNOWLEDGED)
    verdicts = cluster.lose_power()
    assert not any(verdict.ok for verdict in verdicts)
    assert any("append_ack" in line for verdict in verdicts for line in verdict.violations)
    assert min(cluster.holders().values()) < 2
