"""A replicated counter on three nodes, with raftcore alone.

Run it: it founds a cluster of three in a temporary directory, counts to a hundred, stops the leader
in the middle, restarts it, and shows that all three agree. Real logs, real sockets, one process so
that it fits in one file; in production each node is its own process.
"""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from raftcore import (
    AppliedPosition,
    CoreConfig,
    DataDirectory,
    Entry,
    EntryType,
    Founder,
    Node,
    OutcomeUnknownError,
    RefusedError,
    open_member,
)


@dataclass(frozen=True)
class CounterView:
    """A consistent view of a counter: trivially so, it is one number."""

    position: AppliedPosition
    value: int

    def records(self) -> Iterator[bytes]:
        yield self.value.to_bytes(8, "big")

    def close(self) -> None: ...


class Counter:
    """The state machine. Every command adds a number; its result is the new total.

    It lives in memory and starts at nothing, so after a restart the node replays snapshot and log.
    """

    def __init__(self) -> None:
        self.value = 0
        self._position = AppliedPosition()

    def last_applied(self) -> AppliedPosition:
        return self._position

    def apply(self, entries: Sequence[Entry], position: AppliedPosition) -> list[int | None]:
        results: list[int | None] = []
        for entry in entries:
            if entry.type is EntryType.COMMAND:
                self.value += int(entry.data)
                results.append(self.value)
            else:
                results.append(None)
        self._position = position
        return results

    def open_snapshot(self) -> CounterView:
        return CounterView(self._position, self.value)

    def install_snapshot(self, records: Iterable[bytes], position: AppliedPosition) -> None:
        (record,) = records
        self.value = int.from_bytes(record, "big")
        self._position = position

    def discard(self) -> None:
        self.value, self._position = 0, AppliedPosition()

    def close(self) -> None: ...


@dataclass(frozen=True)
class Running:
    """One started member, and what it holds."""

    node: Node
    counter: Counter
    directory: DataDirectory

    async def stop(self) -> None:
        await self.node.stop()
        self.directory.close()


async def start(data: Path, node_id: str, founders: list[Founder]) -> Running:
    """One member, from its directory to a running node."""
    address = next(f.address for f in founders if f.node_id == node_id)
    host, _, port = address.rpartition(":")
    directory = DataDirectory.open(data / node_id, node_id)
    member = await open_member(directory, founders=founders, listen=(host, int(port)))
    counter = Counter()
    node = Node(
        config=CoreConfig(node_id),
        storage=member.storage,
        transport=member.transport,
        state_machine=counter,
    )
    await node.start()
    return Running(node, counter, directory)


async def add(members: dict[str, Running], amount: int) -> int:
    """Ask whoever leads. A refusal is safe to repeat; an unknown outcome is not, so it is told."""
    while True:
        for member in members.values():
            try:
                return int((await member.node.propose(b"%d" % amount)).result)
            except OutcomeUnknownError:
                raise
            except RefusedError:
                await asyncio.sleep(0.02)


async def barrier(node: Node) -> None:
    """Afterwards the node's own counter shows everything that was acknowledged before."""
    while True:
        try:
            await node.read_barrier()
        except RefusedError:
            await asyncio.sleep(0.02)
        else:
            return


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


async def run(data: Path) -> None:
    names = ["n1", "n2", "n3"]
    ports = free_ports(len(names))
    founders = [Founder(n, f"127.0.0.1:{p}") for n, p in zip(names, ports, strict=True)]
    started = await asyncio.gather(*(start(data, name, founders) for name in names))
    members = dict(zip(names, started, strict=True))

    for _ in range(50):
        total = await add(members, 1)
    leader = next(name for name, member in members.items() if member.node.is_leader)
    print(f"counted to {total}; {leader} leads and is stopped now")

    await members.pop(leader).stop()
    for _ in range(50):
        total = await add(members, 1)
    print(f"counted to {total} without it; it starts again")

    members[leader] = await start(data, leader, founders)
    for name, member in sorted(members.items()):
        await barrier(member.node)
        print(f"{name} holds {member.counter.value}")
        assert member.counter.value == total
    for member in members.values():
        await member.stop()


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(run(Path(directory)))


if __name__ == "__main__":
    main()
