"""Nodes with the parts that users have: LMDB logs and TCP, founded by ``open_member``."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from raftcore import (
    AlreadyBootstrappedError,
    AppliedPosition,
    BootstrapError,
    CoreConfig,
    DataDirectory,
    Entry,
    EntryType,
    Founder,
    Join,
    Member,
    Node,
    NodeOptions,
    open_member,
)
from raftcore.trace import Kind, MemoryTracer

NAMES = ("a", "b", "c")


class View:
    def __init__(self, position: AppliedPosition, commands: list[bytes]) -> None:
        self.position = position
        self._commands = commands

    def records(self) -> Iterator[bytes]:
        yield from self._commands

    def close(self) -> None:
        self._commands = []


class Memory:
    """Remembers all commands until the process ends."""

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


class Cluster:
    def __init__(self, root: Path, names: tuple[str, ...]) -> None:
        self.root = root
        self.names = names
        with ExitStack() as held:
            sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in names]
            ports = [s.getsockname()[1] for s in sockets]
        self.founders = [Founder(n, f"127.0.0.1:{p}") for n, p in zip(names, ports, strict=True)]
        self.nodes: dict[str, Node] = {}
        self.machines: dict[str, Memory] = {}
        self.traces: dict[str, MemoryTracer] = {}
        self.welcomed: set[str] = set()
        self._directories: dict[str, DataDirectory] = {}

    async def _start_one(self, founder: Founder, *, join: bool = False, **options: Any) -> Any:
        name = founder.node_id
        directory = DataDirectory.open(self.root / name, name, allow_unsupported_fs=True)
        self._directories[name] = directory
        host, port = founder.address.split(":")
        told: list[str] = []
        targets = [f.address for f in self.founders]
        member = await open_member(
            directory,
            founders=() if join else self.founders,
            listen=(host, int(port)),
            join=Join(targets, founder.address) if join else None,
            on_progress=told.append,
        )
        self.machines[name], self.traces[name] = Memory(), MemoryTracer()
        self.nodes[name] = Node(
            config=CoreConfig(name, heartbeat_ms=30, election_timeout_ms=300),
            storage=member.storage,
            transport=member.transport,
            state_machine=self.machines[name],
            options=NodeOptions(**options),
            tracer=self.traces[name],
            on_join=self._welcome,
        )
        await self.nodes[name].start()
        return member

    async def _welcome(self, joiner: Member) -> bool:
        return joiner.node_id in self.welcomed

    async def start(self, **options: Any) -> None:
        async with asyncio.timeout(20):
            await asyncio.gather(*(self._start_one(f, **options) for f in self.founders))

    async def join(self, name: str) -> Node:
        """Start a node with an empty directory, and let it ask until it is a member."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        async with asyncio.timeout(20):
            member = await self._start_one(Founder(name, f"127.0.0.1:{port}"), join=True)
            configuration = await member.become_member()
        assert configuration.member(name).incarnation == member.identity.incarnation
        return self.nodes[name]

    def release(self, name: str) -> None:
        """Let go of a directory that no node came to use."""
        self._directories.pop(name).close()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110 (nothing signals it)
                await asyncio.sleep(0.01)

    async def restart(self, founder: Founder) -> Node:
        """Start that member again, stopped or not, at the founder's address."""
        if founder.node_id in self.nodes:
            await self.stop_one(founder.node_id)
        async with asyncio.timeout(20):
            await self._start_one(founder)
        return self.nodes[founder.node_id]

    async def start_one(self, name: str) -> None:
        async with asyncio.timeout(20):
            await self._start_one(next(f for f in self.founders if f.node_id == name))

    async def stop_one(self, name: str) -> None:
        await self.nodes.pop(name).stop(handover=False)
        del self.machines[name]
        self._directories.pop(name).close()

    async def leader(self) -> Node:
        async with asyncio.timeout(20):
            while True:
                for node in self.nodes.values():
                    if node.is_leader and {n.leader_id for n in self.nodes.values()} == {
                        node.config.node_id
                    }:
                        return node
                await asyncio.sleep(0.01)

    async def until_equal(self, commands: list[bytes]) -> None:
        async with asyncio.timeout(20):
            while any(  # noqa: ASYNC110 (a state machine tells nobody)
                machine.commands != commands for machine in self.machines.values()
            ):
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        for node in self.nodes.values():
            await node.stop(handover=False)
        for directory in self._directories.values():
            directory.close()


@pytest.fixture
async def make_cluster(tmp_path: Path) -> AsyncIterator[Callable[..., Cluster]]:
    made: list[Cluster] = []

    def make(*names: str) -> Cluster:
        made.append(Cluster(tmp_path, names))
        return made[-1]

    yield make
    for cluster in made:
        await cluster.stop()


async def test_three_found_a_cluster_and_find_it_again_after_a_restart_of_all(
    make_cluster: Any,
) -> None:
    cluster = make_cluster(*NAMES)
    await cluster.start()
    leader = await cluster.leader()
    cluster_ids = {node.configuration.cluster_id for node in cluster.nodes.values()}
    assert len(cluster_ids) == 1
    proposed = await asyncio.gather(*(leader.propose(b"%d" % n) for n in range(30)))
    assert leader.status().counters.writes < 30, "proposals of one turn share a write"
    await cluster.until_equal([b"%d" % n for n in range(30)])
    await cluster.stop()
    await cluster.start()
    leader = await cluster.leader()
    assert await leader.read_barrier() > max(p.index for p in proposed)
    await cluster.until_equal([b"%d" % n for n in range(30)])
    assert {n.configuration.cluster_id for n in cluster.nodes.values()} == cluster_ids
    assert leader.status().connected == set(NAMES) - {leader.config.node_id}


async def test_an_empty_state_machine_is_filled_from_snapshot_and_log(make_cluster: Any) -> None:
    cluster = make_cluster("a")
    await cluster.start(snapshot_entries=20)
    leader = await cluster.leader()
    for number in range(100):
        await leader.propose(b"%d" % number)
    async with asyncio.timeout(20):
        while leader.status().counters.snapshots_taken < 2:  # noqa: ASYNC110 (nothing signals it)
            await asyncio.sleep(0.01)
    await cluster.stop()
    await cluster.start()
    await (await cluster.leader()).read_barrier()
    assert cluster.machines["a"].commands == [b"%d" % n for n in range(100)]


async def test_a_member_that_moves_is_found_at_its_new_address(make_cluster: Any) -> None:
    cluster = make_cluster(*NAMES)
    await cluster.start()
    leader = await cluster.leader()
    moving = next(f for f in cluster.founders if f.node_id != leader.config.node_id)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    await leader.propose(b"before")
    configuration, _ = await leader.update_address(moving.node_id, address)
    assert configuration.member(moving.node_id).address == address
    node = await cluster.restart(Founder(moving.node_id, address))
    leader = await cluster.leader()
    await leader.propose(b"after")
    await cluster.until_equal([b"before", b"after"])
    assert node.configuration.member(moving.node_id).address == address
    assert moving.node_id in leader.status().connected


async def test_a_member_whose_log_rotted_is_filled_again_by_the_others(make_cluster: Any) -> None:
    cluster = make_cluster(*NAMES)
    await cluster.start()
    leader = await cluster.leader()
    commands = [b"precious-%03d" % n for n in range(30)]
    for command in commands:
        await leader.propose(command)
    await cluster.until_equal(commands)
    rotten = next(f for f in cluster.founders if f.node_id != leader.config.node_id)
    await cluster.stop_one(rotten.node_id)
    flip_a_bit_of(commands[17], cluster.root / rotten.node_id)
    node = await cluster.restart(rotten)
    trace = cluster.traces[rotten.node_id]
    assert trace.of(Kind.QUARANTINE_STARTED)
    await cluster.until_equal(commands)
    async with asyncio.timeout(20):
        while node.status().quarantine is not None:  # noqa: ASYNC110 (its trace is looked at)
            await asyncio.sleep(0.01)
    (ended,) = trace.of(Kind.QUARANTINE_ENDED)
    assert ended.fields["index"] >= len(commands)
    await node.read_barrier()
    # and it is a member like any other again: with it alone another one is a quorum
    await cluster.stop_one(
        next(n for n in NAMES if n not in {leader.config.node_id, rotten.node_id})
    )
    await leader.propose(b"with it")
    assert cluster.machines[leader.config.node_id].commands[-1] == b"with it"


async def test_a_node_joins_by_asking_and_is_a_voter_like_the_others(make_cluster: Any) -> None:
    cluster = make_cluster(*NAMES)
    await cluster.start()
    leader = await cluster.leader()
    for number in range(20):
        await leader.propose(b"%d" % number)
    cluster.welcomed.add("d")
    node = await cluster.join("d")
    await cluster.until(lambda: "d" in node.configuration.voters)
    await cluster.until(lambda: node.status().stage == "stable")
    await cluster.until_equal([b"%d" % n for n in range(20)])
    assert await node.read_barrier() > 0
    # with one of the four gone a quorum of three needs the new one
    await cluster.stop_one(next(n for n in NAMES if n != leader.config.node_id))
    await leader.propose(b"with d")
    restarted = await cluster.restart(Founder("d", node.configuration.member("d").address))
    await cluster.until(lambda: cluster.machines["d"].commands[-1:] == [b"with d"])
    assert restarted.configuration.voters == ("a", "b", "c", "d")


async def test_a_wiped_member_joins_again_once_it_was_removed(
    make_cluster: Any, tmp_path: Path
) -> None:
    cluster = make_cluster(*NAMES)
    await cluster.start()
    leader = await cluster.leader()
    await leader.propose(b"x")
    gone = next(n for n in NAMES if n != leader.config.node_id)
    cluster.welcomed.add(gone)
    await cluster.stop_one(gone)
    (tmp_path / gone).rename(tmp_path / "lost")
    with pytest.raises(AlreadyBootstrappedError):
        await cluster.join(gone)
    cluster.release(gone)
    await leader.remove(gone)
    node = await cluster.join(gone)
    await cluster.until(lambda: gone in node.configuration.voters)
    await cluster.until_equal([b"x"])


def flip_a_bit_of(payload: bytes, directory: Path) -> None:
    """Damage every copy of it in the log's file."""
    (file,) = directory.rglob("data.mdb")
    content = bytearray(file.read_bytes())
    found = content.find(payload)
    assert found >= 0, "the log holds what was written"
    while found >= 0:
        content[found + len(payload) - 1] ^= 1
        found = content.find(payload)
    file.write_bytes(content)


async def test_only_a_founder_may_begin_on_an_empty_directory(tmp_path: Path) -> None:
    directory = DataDirectory.open(tmp_path / "x", "x", allow_unsupported_fs=True)
    with pytest.raises(BootstrapError, match="not among the founders"):
        await open_member(
            directory, founders=[Founder("a", "127.0.0.1:1")], listen=("127.0.0.1", 0)
        )
    directory.close()


async def test_a_lost_directory_is_not_silently_founded_anew(
    make_cluster: Any, tmp_path: Path
) -> None:
    cluster = make_cluster("a")
    await cluster.start()
    await (await cluster.leader()).propose(b"precious")
    await cluster.stop()
    (tmp_path / "a").rename(tmp_path / "moved away")
    with pytest.raises(BootstrapError, match="lived there"):
        await cluster.start()
    assert not (tmp_path / "a" / "log").exists()


# -- quarantine (D3) ------------------------------------------------------------------------------


def damage_an_entry(path: Path) -> None:
    data_file = path / "log" / "data.mdb"
    data_file.write_bytes(data_file.read_bytes().replace(b"the tenth", b"the tanth"))


def put_back_an_older_log(path: Path) -> None:
    shutil.copy(path.parent / "older.mdb", path / "log" / "data.mdb")


def lose_the_floor(path: Path) -> None:
    (path / "FLOOR").unlink()


@pytest.mark.parametrize("harm", [damage_an_entry, put_back_an_older_log])
async def test_a_member_that_lost_something_is_filled_again_and_takes_part_again(
    make_cluster: Any, harm: Callable[[Path], None]
) -> None:
    cluster = make_cluster(*NAMES)
    await cluster.start()
    leader = await cluster.leader()
    name = next(n for n in NAMES if n != leader.config.node_id)
    path = cluster.root / name
    said = [b"the first", *(b"the tenth" for _ in range(10)), b"the last"]
    await leader.propose(said[0])
    await cluster.until_equal(said[:1])
    await cluster.stop_one(name)
    shutil.copy(path / "log" / "data.mdb", cluster.root / "older.mdb")
    await cluster.start_one(name)
    for data in said[1:]:
        await leader.propose(data)
    await cluster.until_equal(said)
    await cluster.stop_one(name)
    harm(path)
    await cluster.start_one(name)
    assert (path / "QUARANTINE").exists()
    assert cluster.nodes[name].status().quarantine
    await leader.propose(b"meanwhile")
    await cluster.until_equal([*said, b"meanwhile"])
    async with asyncio.timeout(20):
        while cluster.nodes[name].status().quarantine:  # noqa: ASYNC110 (nothing signals it)
            await asyncio.sleep(0.01)
    assert not (path / "QUARANTINE").exists()
    for other in NAMES:
        if other not in (name, leader.config.node_id):
            await cluster.stop_one(other)
    await leader.propose(b"with its voice")
    assert cluster.machines[leader.config.node_id].commands[-1] == b"with its voice"


async def test_a_member_whose_floor_is_lost_follows_and_is_to_be_removed(make_cluster: Any) -> None:
    """Nothing vouches for the votes it gave: it is filled again, and never counts (D3)."""
    cluster = make_cluster(*NAMES)
    await cluster.start()
    leader = await cluster.leader()
    name = next(n for n in NAMES if n != leader.config.node_id)
    await leader.propose(b"before")
    await cluster.until_equal([b"before"])
    await cluster.stop_one(name)
    lose_the_floor(cluster.root / name)
    await cluster.start_one(name)
    await leader.propose(b"after")
    await cluster.until_equal([b"before", b"after"])
    await cluster.stop_one(name)
    await cluster.start_one(name)
    assert "remove it and let it join again" in (cluster.nodes[name].status().quarantine or "")
