"""The members of a cluster change while it runs: found one, join two, promote, lease, remove.

Run it: three nodes on loopback, real logs in a temporary directory, one process so that it fits in
one file. docs/members.md explains each step.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from raftcore import (
    ChangeInProgressError,
    Configuration,
    CoreConfig,
    DataDirectory,
    Founder,
    Join,
    Lease,
    Member,
    Node,
    RefusedError,
    open_member,
)
from raftcore.testing import MemoryLedger

Changed = tuple[Configuration, int]


@dataclass(frozen=True)
class Running:
    """One started node, and what it holds."""

    node: Node
    ledger: MemoryLedger
    directory: DataDirectory

    async def stop(self) -> None:
        await self.node.stop()
        self.directory.close()


async def may_join(joiner: Member) -> bool:
    """Learners may come as they like; a vote is given by whoever runs the cluster."""
    return not joiner.voter


# -- shown in docs/members.md ----------------------------------------------------------------------


async def start(data: Path, node_id: str, address: str, join: Join | None = None) -> Running:
    """Found a cluster of one on an empty directory or, with ``join``, become a member of one."""
    host, _, port = address.rpartition(":")
    directory = DataDirectory.open(data / node_id, node_id)
    founders = [] if join else [Founder(node_id, address)]
    member = await open_member(directory, founders=founders, listen=(host, int(port)), join=join)
    ledger = MemoryLedger()
    node = Node(
        config=CoreConfig(node_id),
        storage=member.storage,
        transport=member.transport,
        state_machine=ledger,
        on_join=may_join,
    )
    await node.start()
    await member.become_member()  # asks until a configuration has this node
    return Running(node, ledger, directory)


async def when_free(ask: Callable[[], Awaitable[Changed]]) -> Changed:
    """One change at a time: a joiner is a member before the change that brought it is over."""
    while True:
        try:
            return await ask()
        except ChangeInProgressError:
            await asyncio.sleep(0.02)


async def change(data: Path, addresses: dict[str, str]) -> None:
    n1 = await start(data, "n1", addresses["n1"])
    await leader_of([n1])  # a lone voter elects itself
    join = {name: Join([addresses["n1"]], addresses[name], voter=False) for name in ("n2", "n3")}
    n2 = await start(data, "n2", addresses["n2"], join["n2"])
    n3 = await start(data, "n3", addresses["n3"], join["n3"])
    print("joined:", words(n1.node))

    await when_free(lambda: n1.node.promote("n2"))  # catches up first, then its vote counts
    _, version = await when_free(lambda: n1.node.promote("n3"))
    print(f"promoted: {words(n1.node)} (version {version})")
    written = await n1.node.propose(b"three of three")

    lease = Lease(election_timeout_ms=500, clock_error_ppm=10_000)
    await when_free(lambda: n1.node.set_lease(lease))
    index = await n1.node.read_barrier(lease=True)
    print(f"the leader n1 reads at {index} by lease; written was {written.index}")

    await when_free(lambda: n1.node.remove("n1"))  # hands leadership over first
    leader = await leader_of([n2, n3])
    print(f"left: {words(leader.node)}; n1 says: {n1.node.removed}")
    written = await leader.node.propose(b"two of two")
    for running in (n2, n3):
        await running.node.wait_applied(written.index)  # reads its own write on any member
        print(running.node.config.node_id, "holds", [c.decode() for c in running.ledger.commands])
    for running in (n1, n2, n3):
        await running.stop()


# -- the rest --------------------------------------------------------------------------------------


async def leader_of(nodes: list[Running]) -> Running:
    """Whoever leads and can be written to."""
    while True:
        for running in nodes:
            if running.node.is_leader:
                try:
                    await running.node.read_barrier()
                except RefusedError:
                    continue
                return running
        await asyncio.sleep(0.02)


def words(node: Node) -> str:
    return ", ".join(
        f"{member.node_id} {'voter' if member.voter else 'learner'}"
        for member in node.configuration.members
    )


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def main() -> None:
    logging.disable(logging.WARNING)  # a node that is removed says so there too
    ports = zip(("n1", "n2", "n3"), free_ports(3), strict=True)
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(change(Path(directory), {name: f"127.0.0.1:{port}" for name, port in ports}))


if __name__ == "__main__":
    main()
