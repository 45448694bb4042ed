"""From a data directory to a member: founded, joined, or come back."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raftcore import (
    Configuration,
    DataDirectory,
    Facts,
    Founder,
    Identity,
    Join,
    ListenError,
    Member,
    PlainTransportError,
    RemovedError,
    TlsError,
    TlsOptions,
    TransportOptions,
    open_member,
)
from raftcore.startup import founding_configuration
from raftcore.storage.lmdb_log import open_log
from raftcore.transport.tcp import TcpTransport

PATIENCE_S = 20.0


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[DataDirectory]:
    opened = DataDirectory.open(tmp_path / "d", "d", allow_unsupported_fs=True)
    yield opened
    opened.close()


class Cluster:
    """One member that adds whoever asks."""

    def __init__(self) -> None:
        self.configuration = Configuration("c0ffee", ())
        self.asked: list[Member] = []

    async def start(self, **settings: Any) -> None:
        identity = Identity("c0ffee", "a", b"a" * 16)
        self.transport = TcpTransport(
            identity, ("127.0.0.1", 0), self.configuration, rng=None, **settings
        )
        await self.transport.start(self)
        self.address = f"127.0.0.1:{self.transport.port}"
        self.put(Member("a", self.address, b"a" * 16))

    def put(self, member: Member) -> None:
        members = sorted((*self.configuration.members, member), key=lambda m: m.node_id)
        self.configuration = replace(self.configuration, members=tuple(members))
        self.transport.configure(self.configuration, self.configuration.members)

    def on_message(self, message: object) -> None: ...

    def on_peer_lost(self, peer: str) -> None: ...

    def on_removed(self, detail: str) -> None: ...

    async def on_request(self, sender: str, payload: bytes) -> bytes:
        raise AssertionError("no request was expected")

    async def on_join(self, joiner: Member) -> Configuration:
        self.asked.append(joiner)
        self.put(joiner)
        return self.configuration


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    cluster = Cluster()
    await cluster.start()
    async with asyncio.timeout(PATIENCE_S):
        yield cluster
    await cluster.transport.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


async def opened(directory: DataDirectory, **arguments: Any) -> Any:
    return await open_member(directory, listen=("127.0.0.1", free_port()), **arguments)


async def test_a_joiner_makes_its_directory_first_and_asks_to_be_added_then(
    cluster: Cluster, directory: DataDirectory
) -> None:
    join = Join([cluster.address], "127.0.0.1:9", voter=False, attributes=(("http", "h:1"),))
    told: list[str] = []
    member = await opened(directory, join=join, on_progress=told.append)
    assert member.identity.cluster_id == "c0ffee"
    assert directory.identity == member.identity
    assert (member.founded_now, member.joining) == (True, join)
    assert cluster.asked == []
    configuration = await member.become_member(told.append)
    incarnation = member.identity.incarnation
    expected = Member("d", "127.0.0.1:9", incarnation, False, (("http", "h:1"),))
    assert cluster.asked == [expected]
    assert configuration.member("d") == expected
    member.storage.close()


async def test_a_joiner_that_is_started_again_before_it_was_added_asks_again(
    cluster: Cluster, directory: DataDirectory
) -> None:
    join = Join([cluster.address], "127.0.0.1:9")
    first = await opened(directory, join=join)
    first.storage.close()
    again = await opened(directory, join=join)
    assert again.identity == first.identity
    assert (again.founded_now, again.joining) == (False, join)
    assert (await again.become_member()).member("d").incarnation == first.identity.incarnation
    again.storage.close()


async def test_the_incarnation_of_a_joiner_survives_a_search_that_was_cut_off(
    cluster: Cluster, directory: DataDirectory
) -> None:
    nowhere = Join(["127.0.0.1:1"], "127.0.0.1:9")
    told = asyncio.Event()
    task = asyncio.ensure_future(opened(directory, join=nowhere, on_progress=lambda _: told.set()))
    await told.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert directory.identity is None
    drawn = directory.founding_incarnation()
    member = await opened(directory, join=Join([cluster.address], "127.0.0.1:9"))
    assert member.identity.incarnation == drawn
    member.storage.close()


async def test_a_removed_joiner_makes_nothing(cluster: Cluster, directory: DataDirectory) -> None:
    retired = replace(cluster.configuration, retired=(directory.founding_incarnation(),))
    cluster.transport.configure(retired, retired.members)
    with pytest.raises(RemovedError):
        await opened(directory, join=Join([cluster.address], "127.0.0.1:9"))
    assert directory.identity is None


async def test_a_member_has_nothing_to_ask_for(directory: DataDirectory) -> None:
    member = await opened(directory, founders=[Founder("d", "127.0.0.1:9")])
    assert (member.founded_now, member.joining) == (True, None)
    assert await member.become_member() is None
    founding = founding_configuration(member.storage)
    assert founding == member.storage.configuration
    member.storage.close()
    again = await opened(directory, join=Join(["127.0.0.1:1"], "127.0.0.1:9"))
    assert (again.founded_now, again.joining) == (False, None)
    assert again.storage.configuration == founding
    again.storage.close()


async def test_the_transport_says_how_often_the_log_was_opened(directory: DataDirectory) -> None:
    founders = [Founder("d", "127.0.0.1:9")]
    for run in (1, 2):
        member = await opened(directory, founders=founders, facts=Facts(2, 99, 450))
        assert member.transport._membership.facts == Facts(2, run, 450)
        member.storage.close()


@pytest.mark.parametrize(
    ("facts", "options", "level"),
    [
        (None, None, 2),
        (Facts(feature_level=1), None, 1),
        (None, TransportOptions(max_protocol_version=1), 1),
    ],
)
async def test_the_feature_level_of_a_new_cluster_is_what_the_founders_know(
    directory: DataDirectory, facts: Any, options: Any, level: int
) -> None:
    founders = [Founder("d", "127.0.0.1:9")]
    member = await opened(directory, founders=founders, facts=facts, options=options)
    assert member.storage.configuration.level == level
    member.storage.close()


async def test_a_founder_that_comes_too_late_for_the_first_configuration_begins_empty(
    cluster: Cluster, directory: DataDirectory
) -> None:
    port = free_port()
    founders = [Founder("a", cluster.address), Founder("d", f"127.0.0.1:{port}")]
    cluster.put(Member("d", f"127.0.0.1:{port}", directory.founding_incarnation()))
    member = await open_member(directory, founders=founders, listen=("127.0.0.1", port))
    assert member.identity.cluster_id == "c0ffee"
    assert member.storage.configuration.members == ()
    assert member.joining is None  # it is a member; the leader fills its log
    member.storage.close()


@pytest.mark.parametrize("how", ["founders", "join"])
async def test_without_tls_nothing_is_made_where_others_could_connect(
    directory: DataDirectory, how: str
) -> None:
    wishes: dict[str, Any] = {
        "founders": [Founder("d", "127.0.0.1:9")],
        "join": Join(["127.0.0.1:1"], "127.0.0.1:9"),
    }
    with pytest.raises(PlainTransportError):
        await open_member(directory, listen=("0.0.0.0", 0), **{how: wishes[how]})
    assert directory.identity is None
    assert not (directory.path / "FOUNDING").exists()


async def test_a_founder_whose_port_is_taken_says_so(directory: DataDirectory) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        founders = [Founder("d", f"127.0.0.1:{port}"), Founder("e", "127.0.0.1:9")]
        with pytest.raises(ListenError, match=f"127.0.0.1, port {port}"):
            await open_member(directory, founders=founders, listen=("127.0.0.1", port))
    assert directory.identity is None


async def test_an_opened_log_knows_its_configuration(directory: DataDirectory) -> None:
    member = await opened(directory, founders=[Founder("d", "127.0.0.1:9")])
    member.storage.close()
    log = await asyncio.to_thread(open_log, directory)
    assert log.configuration.voters == ("d",)
    log.close()


async def test_certificates_that_can_not_be_used_are_noticed_before_anything_is_made(
    directory: DataDirectory,
) -> None:
    tls = TlsOptions("/nowhere.pem", "/nowhere.key", "/nowhere.ca")
    with pytest.raises(TlsError):
        await opened(directory, founders=[Founder("d", "127.0.0.1:9")], tls=tls)
    assert directory.identity is None
    assert not (directory.path / "FOUNDING").exists()
    (await opened(directory, founders=[Founder("d", "127.0.0.1:9")])).storage.close()
    with pytest.raises(TlsError):
        await opened(directory, tls=tls)
    assert (directory.path / "log" / "CLEAN").exists()  # no log was left open


async def test_a_start_that_fails_closes_the_log_that_it_opened_and_no_other(
    directory: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    (await opened(directory, founders=[Founder("d", "127.0.0.1:9")])).storage.close()

    def broken(*_: Any, **__: Any) -> TcpTransport:
        raise RuntimeError("nobody thought of this")

    monkeypatch.setattr("raftcore.startup.TcpTransport", broken)
    with pytest.raises(RuntimeError):
        await opened(directory)
    assert (directory.path / "log" / "CLEAN").exists()  # so it was closed
    log = await asyncio.to_thread(open_log, directory)
    with pytest.raises(RuntimeError):
        await opened(directory, storage=log)
    assert log.read(1, 1, 1)  # it is the caller's
    log.close()


async def test_a_start_that_is_cancelled_while_the_log_opens_leaves_it_closed(
    directory: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    (await opened(directory, founders=[Founder("d", "127.0.0.1:9")])).storage.close()
    opening, go_on = threading.Event(), threading.Event()

    def slow(directory: DataDirectory) -> Any:
        opening.set()
        assert go_on.wait(PATIENCE_S)
        return open_log(directory)

    monkeypatch.setattr("raftcore.startup.open_log", slow)
    task = asyncio.ensure_future(opened(directory))
    await asyncio.to_thread(opening.wait, PATIENCE_S)
    task.cancel()
    await asyncio.wait({task}, timeout=0.05)
    assert not task.done()  # the directory is in use, and is the caller's to close
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (directory.path / "log" / "CLEAN").exists()
    (await asyncio.to_thread(open_log, directory)).close()
