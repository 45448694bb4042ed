"""Transports on real sockets, on both event loops, and somebody to deliver to."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import uvloop

from raftcore.core.messages import Message
from raftcore.core.types import Configuration, Member
from raftcore.storage.base import Identity
from raftcore.transport.options import TransportOptions
from raftcore.transport.tcp import TcpTransport

CLUSTER_ID = "c0ffee"
#: Long enough for a busy machine; only a failing test waits for it.
PATIENCE_S = 20.0


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Every asynchronous test here runs on both loops."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def incarnation_of(node_id: str) -> bytes:
    return node_id.encode().ljust(16, b"-")


async def until(condition: Callable[[], object]) -> None:
    """Come back when ``condition`` holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 (nothing signals that a connection stands)
            await asyncio.sleep(0.002)


@dataclass
class Recorder:
    """A receiver that keeps what it gets; ``answer`` does the requests, ``decide`` the joiners."""

    answer: Callable[[str, bytes], Awaitable[bytes]] | None = None
    decide: Callable[[Member], Awaitable[Configuration]] | None = None
    messages: list[Message] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)

    def on_message(self, message: Message) -> None:
        self.messages.append(message)

    def on_peer_lost(self, peer: str) -> None:
        self.lost.append(peer)

    async def on_request(self, sender: str, payload: bytes) -> bytes:
        assert self.answer is not None, "no request was expected"
        return await self.answer(sender, payload)

    async def on_join(self, joiner: Member) -> Configuration:
        assert self.decide is not None, "no joiner was expected"
        return await self.decide(joiner)

    def on_removed(self, detail: str) -> None:
        self.removed.append(detail)


class Cluster:
    """Some transports that know each other."""

    def __init__(self, *ids: str, **options: Any) -> None:
        self.ports = {node_id: free_port() for node_id in ids}
        self.configuration = Configuration(
            CLUSTER_ID,
            tuple(Member(i, f"127.0.0.1:{self.ports[i]}", incarnation_of(i)) for i in sorted(ids)),
        )
        self.options = TransportOptions(**options)
        self.transports: dict[str, TcpTransport] = {}
        self.receivers: dict[str, Recorder] = {}

    def with_member(self, node_id: str, **changes: object) -> Configuration:
        """The configuration with one member changed."""
        return replace(
            self.configuration,
            members=tuple(
                replace(m, **changes) if m.node_id == node_id else m
                for m in self.configuration.members
            ),
        )

    async def start(
        self,
        node_id: str,
        *,
        identity: Identity | None = None,
        configuration: Configuration | None = None,
        **settings: Any,
    ) -> TcpTransport:
        settings.setdefault("founding", configuration or self.configuration)
        settings.setdefault("options", self.options)
        transport = TcpTransport(
            identity or Identity(CLUSTER_ID, node_id, incarnation_of(node_id)),
            ("127.0.0.1", self.ports[node_id]),
            configuration or self.configuration,
            **(
                {"founding": configuration or self.configuration, "options": self.options}
                | settings
            ),
            rng=random.Random(7),
        )
        self.transports[node_id] = transport
        self.receivers[node_id] = Recorder()
        await transport.start(self.receivers[node_id])
        return transport

    async def start_all(self, **settings: Any) -> None:
        for node_id in self.ports:
            await self.start(node_id, **settings)
        others = len(self.ports) - 1
        await until(lambda: all(len(t.connected()) == others for t in self.transports.values()))

    async def close(self) -> None:
        for transport in self.transports.values():
            await transport.close()


@pytest.fixture
async def make_cluster() -> AsyncIterator[Callable[..., Cluster]]:
    clusters: list[Cluster] = []

    def make(*ids: str, **options: float) -> Cluster:
        clusters.append(Cluster(*ids, **options))
        return clusters[-1]

    yield make
    for cluster in clusters:
        await cluster.close()
    # Whatever was started is gone: only the test's own task (this one) is left.
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture
def recorder() -> type[Recorder]:
    return Recorder


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], Awaitable[None]]:
    return until


@pytest.fixture
def port() -> int:
    return free_port()


class RawPeer:
    """A bare socket that says what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def say(self, data: bytes) -> None:
        self.writer.write(data)

    async def hear_all(self) -> bytes:
        """Everything until the other side hangs up."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


@pytest.fixture
async def dial() -> AsyncIterator[Callable[[int], Awaitable[RawPeer]]]:
    peers: list[RawPeer] = []

    async def connect(port: int) -> RawPeer:
        peers.append(RawPeer(*await asyncio.open_connection("127.0.0.1", port)))
        return peers[-1]

    yield connect
    for peer in peers:
        await peer.close()
