"""A lost quorum from end to end: real nodes, real directories, the command as it is typed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shutil
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from raftcore import (
    AppliedPosition,
    CoreConfig,
    DataDirectory,
    Entry,
    EntryType,
    Founder,
    Member,
    Node,
    NodeOptions,
    open_member,
)
from raftcore.cli.main import main
from raftcore.errors import RefusedError
from raftcore.storage.lmdb_log import open_log
from raftcore.transport.handshake import RefusalCode
from raftcore.transport.memory import MemoryNetwork, MemoryTransport
from raftcore.transport.tcp import TcpTransport

NAMES = ("a", "b", "c")
PATIENCE_S = 30.0


class View:
    def __init__(self, position: AppliedPosition, commands: list[bytes]) -> None:
        self.position = position
        self._commands = commands

    def records(self) -> Iterator[bytes]:
        yield from self._commands

    def close(self) -> None:
        self._commands = []


class Ledger:
    """All commands in order, until the process ends."""

    def __init__(self) -> None:
        self.commands: list[bytes] = []
        self._position = AppliedPosition()

    def last_applied(self) -> AppliedPosition:
        return self._position

    def apply(self, entries: Sequence[Entry], position: AppliedPosition) -> list[int]:
        self.commands += [e.data for e in entries if e.type is EntryType.COMMAND]
        self._position = position
        return [len(self.commands)] * len(entries)

    def open_snapshot(self) -> View:
        return View(self._position, list(self.commands))

    def install_snapshot(self, records: Iterable[bytes], position: AppliedPosition) -> None:
        self.commands = list(records)
        self._position = position

    def discard(self) -> None:
        self.commands = []
        self._position = AppliedPosition()

    def close(self) -> None: ...


class Running:
    """Nodes in this process, by the name of their directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        with ExitStack() as held:
            sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in NAMES]
            ports = [s.getsockname()[1] for s in sockets]
        self.founders = {n: Founder(n, f"127.0.0.1:{p}") for n, p in zip(NAMES, ports, strict=True)}
        self.nodes: dict[str, Node] = {}
        self.ledgers: dict[str, Ledger] = {}
        self.transports: dict[str, TcpTransport] = {}
        self._directories: dict[str, DataDirectory] = {}

    async def start(self, name: str, node_id: str | None = None) -> None:
        founder = self.founders[node_id or name]
        directory = DataDirectory.open(self.root / name, founder.node_id, allow_unsupported_fs=True)
        self._directories[name] = directory
        host, port = founder.address.split(":")
        member = await open_member(
            directory, founders=tuple(self.founders.values()), listen=(host, int(port))
        )
        self.transports[name], self.ledgers[name] = member.transport, Ledger()
        self.nodes[name] = Node(
            config=CoreConfig(founder.node_id, heartbeat_ms=30, election_timeout_ms=300),
            storage=member.storage,
            transport=member.transport,
            state_machine=self.ledgers[name],
            options=NodeOptions(snapshot_entries=1_000_000),
        )
        await self.nodes[name].start()

    async def leader(self) -> Node:
        def found() -> Node | None:
            return next((node for node in self.nodes.values() if node.is_leader), None)

        async with asyncio.timeout(PATIENCE_S):
            while (node := found()) is None:  # noqa: ASYNC110 (nothing signals it)
                await asyncio.sleep(0.01)
        return node

    async def write(self, *commands: bytes) -> None:
        """Acknowledged writes, whoever leads meanwhile."""
        for command in commands:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    try:
                        await (await self.leader()).propose(command)
                        break
                    except RefusedError:
                        await asyncio.sleep(0.01)

    async def until_applied(self, name: str, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while len(self.ledgers[name].commands) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def stop(self, *names: str) -> None:
        for name in names or tuple(self.nodes):
            await self.nodes.pop(name).stop(handover=False)
            self._directories.pop(name).close()


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    found = Running(tmp_path)
    yield found
    await found.stop()


def typed(*words: object) -> int:
    return main([str(word) for word in words])


async def test_one_survivor_of_three_becomes_a_new_cluster_with_everything_it_held(
    running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    root = running.root
    await asyncio.gather(*(running.start(name) for name in NAMES))
    first = [b"write %d" % n for n in range(20)]
    await running.write(*first)
    await asyncio.gather(*(running.until_applied(name, 20) for name in NAMES))
    await running.nodes["c"].snapshot()
    second = [b"later %d" % n for n in range(10)]
    await running.write(*second)
    await asyncio.gather(*(running.until_applied(name, 30) for name in NAMES))
    cluster = running.nodes["c"].configuration.cluster_id
    await running.stop()
    shutil.move(root / "b", root / "kept")
    shutil.rmtree(root / "a")

    assert typed("recover", root / "c", "--json") == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert plan["loss"]["possible"] is True
    into = ("--execute", "--into", root / "new", "--confirm", cluster)
    assert typed("recover", root / "c", *into) == 0
    assert typed("verify", root / "new") == 0

    await running.start("new", "c")
    assert (await running.leader()).configuration.cluster_id != cluster
    await running.write(b"after")
    assert running.ledgers["new"].commands == [*first, *second, b"after"]

    shutil.move(root / "kept", root / "b")
    await running.start("b")
    refused = running.transports["new"].stats.refused
    async with asyncio.timeout(PATIENCE_S):
        while not refused[RefusalCode.CLUSTER_ID]:  # noqa: ASYNC110 (nothing signals it)
            await asyncio.sleep(0.01)
    assert not running.nodes["b"].is_leader
    assert running.nodes["new"].status().connected == frozenset()
    await running.write(b"undisturbed")
    assert not {b"after", b"undisturbed"} & set(running.ledgers["b"].commands)


async def test_a_running_node_is_backed_up_and_restored_into_a_new_cluster(
    running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    root = running.root
    await asyncio.gather(*(running.start(name) for name in NAMES))
    await running.write(b"one", b"two", b"three")
    leader = await running.leader()
    made = await leader.backup(root / "b.tar")
    assert made.identity.cluster_id == leader.configuration.cluster_id
    await running.write(b"four")
    with pytest.raises(RefusedError, match="exists"):
        await leader.backup(root / "b.tar")
    await running.stop()
    node_id = made.identity.node_id
    assert typed("restore", made.path, root / "new", "--digest", made.digest) == 0
    await running.start("new", node_id)
    await running.write(b"after")
    assert running.ledgers["new"].commands == [b"one", b"two", b"three", b"after"]


@pytest.fixture
def survivor(directories: Any) -> Any:
    """``n3`` of three, with a snapshot at 20 and entries to 30."""
    directories.found("n1", "n2", "n3")
    directories.fill("n3", 30)
    directories.snapshot("n3", 20, compact_to=21)
    return directories


async def test_a_recovered_cluster_grows_again_by_nodes_with_empty_directories(
    survivor: Any,
) -> None:
    """What was written before and after the disaster reaches members that never saw the old one;
    the snapshot and the log that they are sent name no cluster but the new one."""
    cluster = survivor.configuration.cluster_id
    into = ("--execute", "--into", survivor.path("new"), "--confirm", cluster)
    assert typed("recover", survivor.path("n3"), *into) == 0

    network = MemoryNetwork(random.Random(7))
    with contextlib.ExitStack() as held:
        directory = DataDirectory.open(survivor.path("new"), "n3")
        first, ledger = await on_memory(held, network, directory)
        async with first:
            await until(lambda: first.is_leader)
            made = first.configuration.cluster_id
            joiner = DataDirectory.open(survivor.path("n4"), "n4")
            identity = joiner.join(made)
            second, copy = await on_memory(held, network, joiner)
            async with second:
                await first.add_voter(Member("n4", "127.0.0.1:7004", identity.incarnation))
                await first.propose(b"after")
                await until(lambda: copy.commands == ledger.commands)
                assert copy.commands[:20] == [b"record %d" % n for n in range(1, 21)]
                assert copy.commands[20:] == [b"data"] * 10 + [b"after"]
                assert second.configuration.voters == ("n3", "n4")
                assert second.configuration.cluster_id == made != cluster
    for name in ("new", "n4"):
        assert typed("verify", survivor.path(name)) == 0
    assert typed("compare", survivor.path("new"), survivor.path("n4")) == 0


class Welcoming(MemoryTransport):
    """Answers also whom our configuration does not hold: a joiner's is empty at first."""

    def _is_peer(self, node_id: str) -> bool:
        return node_id != self.node_id


async def on_memory(
    held: contextlib.ExitStack, network: MemoryNetwork, directory: DataDirectory
) -> tuple[Node, Ledger]:
    """A node on a real log and a network in memory; the directory is closed with ``held``."""
    held.callback(directory.close)
    ledger = Ledger()
    node = Node(
        config=CoreConfig(directory.node_id, heartbeat_ms=30, election_timeout_ms=300),
        storage=await asyncio.to_thread(open_log, directory),
        transport=Welcoming(network, directory.node_id),
        state_machine=ledger,
    )
    return node, ledger


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 (nothing signals it)
            await asyncio.sleep(0.01)
