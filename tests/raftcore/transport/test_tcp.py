"""Two and more transports on real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from raftcore.core.errors import PeerViolationError
from raftcore.core.messages import AppendRequest, Heartbeat, SnapshotChunk
from raftcore.core.types import Configuration, Entry, EntryType, SnapshotMeta
from raftcore.errors import (
    EntryTooLargeError,
    ListenError,
    NotLeaderError,
    OutcomeUnknownError,
    OverloadedError,
    RefusedError,
    StoppedError,
    UnknownPeerError,
)
from raftcore.storage.base import Identity
from raftcore.transport import inbound, outbound
from raftcore.transport.connection import worth_a_line
from raftcore.transport.options import TransportOptions
from raftcore.transport.outbound import OutboundConnection
from raftcore.transport.queue import PendingRequest, SendQueue
from raftcore.transport.tcp import TcpTransport

Eventually = Callable[[Callable[[], object]], Awaitable[None]]
MakeCluster = Callable[..., Any]


def configure(transport: TcpTransport, configuration: Configuration) -> None:
    """Make these the members, as a node does when a configuration without overlap comes."""
    own = transport._identity.node_id
    peers = tuple(m for m in configuration.members if m.node_id != own)
    transport.configure(configuration, peers)


def heartbeat(number: int) -> Heartbeat:
    return Heartbeat("a", 1, 0, number)


# -- messages ---------------------------------------------------------------------------------


async def test_messages_arrive_in_order_and_many_in_one_write(
    make_cluster: MakeCluster, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b")
    await cluster.start_all()
    sender = cluster.transports["a"]
    before = sender.stats.writes
    sent = [heartbeat(number) for number in range(1000)]
    for message in sent:
        sender.send("b", message)
    await eventually(lambda: len(cluster.receivers["b"].messages) == 1000)
    assert cluster.receivers["b"].messages == sent
    assert sender.stats.writes == before + 1
    assert sender.stats.messages_out == 1000
    assert cluster.transports["b"].stats.messages_in == 1000
    assert cluster.transports["b"].stats.bytes_in > 1000


async def test_messages_go_both_ways_between_three(
    make_cluster: MakeCluster, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b", "c")
    await cluster.start_all()
    for source, transport in cluster.transports.items():
        for target in cluster.transports.keys() - {source}:
            transport.send(target, Heartbeat(source, 1, 0, 0))
    for node_id, receiver in cluster.receivers.items():
        await eventually(lambda: len(receiver.messages) == 2)  # noqa: B023
        senders = {message.sender for message in receiver.messages}
        assert senders == cluster.receivers.keys() - {node_id}


async def test_large_frames_pass(make_cluster: MakeCluster, eventually: Eventually) -> None:
    cluster = make_cluster("a", "b")
    await cluster.start_all()
    meta = SnapshotMeta(1, 1, bytes(32), cluster.configuration, 8 << 20, bytes(32))
    chunks = [SnapshotChunk("a", 1, meta, k << 20, bytes([k]) * (1 << 20), k, 0) for k in range(8)]
    for chunk in chunks:
        cluster.transports["a"].send("b", chunk)
    await eventually(lambda: len(cluster.receivers["b"].messages) == 8)
    assert cluster.receivers["b"].messages == chunks


async def test_a_frame_larger_than_the_cap_is_not_sent(
    make_cluster: MakeCluster, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b", max_frame_bytes=1000)
    await cluster.start_all()
    entries = (Entry(1, 1, EntryType.COMMAND, bytes(1000)),)
    cluster.transports["a"].send("b", AppendRequest("a", 1, 0, 0, 0, 1, 1, entries))
    cluster.transports["a"].send("b", heartbeat(1))
    await eventually(lambda: cluster.receivers["b"].messages == [heartbeat(1)])
    assert cluster.transports["a"].stats.dropped_oversize == 1


async def test_a_node_does_not_send_to_itself(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("a", "b")
    transport = await cluster.start("a")
    with pytest.raises(ValueError, match="itself"):
        transport.send("a", heartbeat(1))
    with pytest.raises(ValueError, match="itself"):
        await transport.request("a", b"", 1)


async def test_messages_to_strangers_and_to_the_absent_are_dropped_and_counted(
    make_cluster: MakeCluster, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b", backoff_min_s=1000, backoff_max_s=1000)
    transport = await cluster.start("a")
    transport.send("nobody", heartbeat(1))
    assert transport.stats.dropped_disconnected == 1
    transport.send("b", heartbeat(2))  # while dialling it may still succeed
    await eventually(lambda: transport.stats.connect_failures == 1)
    transport.send("b", heartbeat(3))
    assert transport.stats.dropped_disconnected == 3
    assert transport.connected() == frozenset()


async def test_what_is_sent_while_dialling_arrives(
    make_cluster: MakeCluster, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b")
    await cluster.start("b")
    transport = await cluster.start("a")
    transport.send("b", heartbeat(1))
    await eventually(lambda: cluster.receivers["b"].messages == [heartbeat(1)])


# -- bounds -----------------------------------------------------------------------------------


class Mute:
    """Accepts one connection and can stop reading from it, through a proxy in the test."""

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.reading = asyncio.Event()
        self.reading.set()
        self.server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self, port: int) -> None:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            sock.bind(("127.0.0.1", port))
            self.server = await asyncio.start_server(self._accept, sock=sock.dup(), limit=1 << 16)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, here = await asyncio.open_connection("127.0.0.1", self.target_port)
        self._writers += [writer, here]
        for source, sink in ((reader, here), (there, writer)):
            task = asyncio.get_running_loop().create_task(self._pump(source, sink))
            self._tasks.add(task)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(1 << 16):
                await self.reading.wait()
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            pass
        finally:
            sink.close()

    async def close(self) -> None:
        self.reading.set()
        assert self.server is not None
        self.server.close()
        for writer in self._writers:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def muted_pair(
    make_cluster: MakeCluster, eventually: Eventually, port: int, **options: float
) -> tuple[Any, Mute]:
    """a and b, where what a sends to b passes a proxy that can stop reading."""
    cluster = make_cluster("a", "b", **options)
    mute = Mute(cluster.ports["b"])
    await mute.start(port)
    await cluster.start("b")
    await cluster.start("a", configuration=cluster.with_member("b", address=f"127.0.0.1:{port}"))
    await eventually(lambda: "b" in cluster.transports["a"].connected())
    return cluster, mute


async def test_a_full_queue_drops_the_newest_and_keeps_the_order(
    make_cluster: MakeCluster, eventually: Eventually, port: int
) -> None:
    cluster, mute = await muted_pair(
        make_cluster, eventually, port, queue_frames=8, write_bytes=1 << 16, stall_timeout_s=60
    )
    transport, receiver = cluster.transports["a"], cluster.receivers["b"]
    mute.reading.clear()
    sent = 0
    while transport.stats.dropped_full == 0:
        entries = (Entry(1, 1, EntryType.COMMAND, bytes(1 << 20)),)
        transport.send("b", AppendRequest("a", 1, 0, 0, 0, sent, 0, entries))
        sent += 1
        await asyncio.sleep(0)
    taken = transport.stats.messages_out
    assert sent == taken + 1
    mute.reading.set()
    await eventually(lambda: len(receiver.messages) == taken)
    assert [message.sequence for message in receiver.messages] == list(range(taken))
    await mute.close()


async def test_the_queue_is_bounded_in_bytes_too(
    make_cluster: MakeCluster, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b", queue_bytes=5000)
    await cluster.start_all()
    transport = cluster.transports["a"]
    entries = (Entry(1, 1, EntryType.COMMAND, bytes(2000)),)
    for number in range(3):  # in one turn of the loop: nothing leaves in between
        transport.send("b", AppendRequest("a", 1, 0, 0, 0, number, 0, entries))
    assert transport.stats.dropped_full == 1
    await eventually(lambda: len(cluster.receivers["b"].messages) == 2)


async def test_a_connection_that_takes_no_bytes_is_given_up(
    make_cluster: MakeCluster, eventually: Eventually, port: int
) -> None:
    cluster, mute = await muted_pair(
        make_cluster, eventually, port, write_bytes=1 << 16, stall_timeout_s=0.2
    )
    transport = cluster.transports["a"]
    mute.reading.clear()
    entries = (Entry(1, 1, EntryType.COMMAND, bytes(1 << 20)),)

    def stalled() -> bool:
        if cluster.receivers["a"].lost:
            return True
        transport.send("b", AppendRequest("a", 1, 0, 0, 0, 0, 0, entries))
        return False

    await eventually(stalled)
    assert cluster.receivers["a"].lost[0] == "b"
    # Ours or the kernel's timer, whichever was first.
    assert transport.stats.losses >= 1
    await mute.close()


# -- connections ------------------------------------------------------------------------------


async def test_a_peer_that_restarts_is_found_again(
    make_cluster: MakeCluster, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b")
    await cluster.start_all()
    transport = cluster.transports["a"]
    await cluster.transports["b"].close()
    await eventually(lambda: cluster.receivers["a"].lost == ["b"])
    assert transport.connected() == frozenset()
    await cluster.start("b")
    await eventually(lambda: transport.connected() == {"b"})
    transport.send("b", heartbeat(1))
    await eventually(lambda: cluster.receivers["b"].messages == [heartbeat(1)])
    assert transport.stats.connects == 2
    assert transport.stats.losses == 1


async def test_a_peer_that_dials_us_is_dialled_without_waiting_for_the_back_off(
    make_cluster: MakeCluster, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b", backoff_min_s=1000, backoff_max_s=1000)
    transport = await cluster.start("a")
    await eventually(lambda: transport.stats.connect_failures == 1)
    await cluster.start("b")
    await eventually(lambda: transport.connected() == {"b"})


def without(cluster: Any, node_id: str, *, retired: bool = True) -> Configuration:
    """The cluster's configuration after that member was removed."""
    configuration: Configuration = cluster.configuration
    gone = configuration.member(node_id)
    assert gone is not None
    return replace(
        configuration,
        members=tuple(m for m in configuration.members if m.node_id != node_id),
        retired=(gone.incarnation,) if retired else (),
    )


async def test_removing_a_member_ends_its_connections_and_it_is_told(
    make_cluster: MakeCluster, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b", "c")
    await cluster.start_all()
    transport = cluster.transports["a"]
    configure(transport, without(cluster, "c"))
    assert transport.connected() == {"b"}
    with pytest.raises(UnknownPeerError):
        await transport.request("c", b"", 1)
    await eventually(lambda: cluster.receivers["c"].lost == ["a"])
    assert cluster.receivers["a"].lost == []
    await eventually(lambda: transport.stats.refused["removed"] > 0)
    await eventually(lambda: cluster.receivers["c"].removed)
    (detail,) = cluster.receivers["c"].removed
    assert "c with incarnation" in detail
    assert cluster.transports["c"].stats.rejected["removed"] > 0
    configure(transport, cluster.configuration)
    await eventually(lambda: transport.connected() == {"b", "c"})


async def test_what_was_sent_to_a_member_before_its_removal_still_leaves(
    make_cluster: MakeCluster, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b")
    await cluster.start_all()
    sent = [heartbeat(number) for number in range(2000)]
    for message in sent:
        cluster.transports["a"].send("b", message)
    configure(cluster.transports["a"], without(cluster, "b"))
    await eventually(lambda: cluster.receivers["b"].messages == sent)
    await eventually(lambda: not cluster.transports["a"]._retiring)


async def test_what_was_sent_while_dialling_leaves_even_if_the_member_is_removed_meanwhile(
    make_cluster: MakeCluster, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b")
    await cluster.start("b")
    transport = await cluster.start("a")
    transport.send("b", heartbeat(1))
    configure(transport, without(cluster, "b"))
    await eventually(lambda: cluster.receivers["b"].messages == [heartbeat(1)])
    await eventually(lambda: not transport._retiring)


async def test_a_removed_member_that_reads_nothing_is_not_waited_for_longer_than_the_bound(
    make_cluster: MakeCluster, eventually: Eventually, port: int
) -> None:
    cluster, mute = await muted_pair(
        make_cluster, eventually, port, write_bytes=1 << 16, stall_timeout_s=60, drain_timeout_s=0.1
    )
    transport = cluster.transports["a"]
    mute.reading.clear()
    entries = (Entry(1, 1, EntryType.COMMAND, bytes(1 << 20)),)
    for number in range(40):
        transport.send("b", AppendRequest("a", 1, 0, 0, 0, number, 0, entries))
    configure(transport, without(cluster, "b"))
    assert transport._retiring
    await eventually(lambda: not transport._retiring)
    assert cluster.receivers["a"].lost == []
    await mute.close()
    assert len(cluster.receivers["b"].messages) < 40


async def test_a_removed_member_that_is_away_is_not_dialled_again(
    make_cluster: MakeCluster, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b", "c", backoff_min_s=1000, backoff_max_s=1000)
    transport = await cluster.start("a")
    await eventually(lambda: transport.stats.connect_failures == 2)
    configure(transport, without(cluster, "b"))
    await eventually(lambda: not transport._retiring)
    assert set(transport._links) == {"c"}


async def test_a_member_that_moved_is_found_at_its_new_address(
    make_cluster: MakeCluster, eventually: Eventually, port: int
) -> None:
    cluster = make_cluster("a", "b")
    await cluster.start_all()
    await cluster.transports["b"].close()
    cluster.ports["b"] = port
    await cluster.start("b")
    moved = cluster.with_member("b", address=f"127.0.0.1:{port}")
    configure(cluster.transports["a"], moved)
    await eventually(lambda: cluster.transports["a"].connected() == {"b"})
    configure(cluster.transports["a"], moved)
    assert cluster.transports["a"].connected() == {"b"}


@pytest.mark.parametrize("address", ["nonsense", "a..b:7000", "x" * 64 + ":7000", "a\0b:7000"])
async def test_an_unusable_address_is_a_failed_connection(
    make_cluster: MakeCluster, eventually: Eventually, address: str
) -> None:
    cluster = make_cluster("a", "b")
    configuration = cluster.with_member("b", address=address)
    transport = await cluster.start("a", configuration=configuration)
    await eventually(lambda: transport.stats.connect_failures >= 2)


async def test_a_host_that_only_the_dialling_finds_unusable_is_a_failed_connection(
    make_cluster: MakeCluster, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbound, "parse_address", lambda _: ("a..b", 7000))
    cluster = make_cluster("a", "b")
    transport = await cluster.start("a")
    await eventually(lambda: transport.stats.connect_failures >= 2)


async def test_a_link_that_ends_unexpectedly_says_so(
    make_cluster: MakeCluster,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(_: str) -> tuple[str, int]:
        raise RuntimeError("nobody thought of this")

    monkeypatch.setattr(outbound, "parse_address", broken)
    cluster = make_cluster("a", "b")
    await cluster.start("a")
    await eventually(lambda: "no longer dialling b" in caplog.text)
    assert "nobody thought of this" in caplog.text


async def test_a_free_port_is_taken_and_told(make_cluster: MakeCluster, recorder: Any) -> None:
    cluster = make_cluster("a", "b")
    cluster.ports["a"] = 0
    transport = await cluster.start("a")
    assert transport.port > 0
    await transport.close()
    with pytest.raises(StoppedError):
        _ = transport.port


async def test_a_transport_that_was_never_started_closes(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("a", "b")
    await cluster.start("a")
    other = TcpTransport(cluster.transports["a"]._identity, ("127.0.0.1", 0), cluster.configuration)
    configure(other, cluster.configuration)
    other.send("b", heartbeat(1))
    assert other.stats.dropped_disconnected == 1
    await other.close()


async def test_closing_twice_and_in_the_middle_of_everything_leaves_nothing(
    make_cluster: MakeCluster, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b", "c")
    await cluster.start_all()
    hanging = asyncio.Event()

    async def hang(sender: str, payload: bytes) -> bytes:
        await hanging.wait()
        return b""

    cluster.receivers["b"].answer = hang
    request = asyncio.ensure_future(cluster.transports["a"].request("b", b"", 60))
    await eventually(lambda: cluster.transports["b"].stats.requests_in == 1)
    await cluster.transports["b"].close()
    with pytest.raises(OutcomeUnknownError):
        await request
    await cluster.transports["a"].close()
    await cluster.transports["a"].close()
    configure(cluster.transports["a"], cluster.configuration)
    cluster.transports["a"].send("b", heartbeat(1))
    assert cluster.transports["a"].connected() == frozenset()


async def test_what_was_sent_just_before_closing_still_leaves(
    make_cluster: MakeCluster, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b")
    await cluster.start_all()
    cluster.transports["a"].send("b", heartbeat(1))
    await cluster.transports["a"].close()
    await eventually(lambda: cluster.receivers["b"].messages == [heartbeat(1)])


async def test_a_message_that_the_receiver_calls_a_violation_ends_the_connection(
    make_cluster: MakeCluster, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b")
    await cluster.start_all()

    def refuse(message: object) -> None:
        raise PeerViolationError("no correct peer says that")

    cluster.receivers["b"].on_message = refuse
    cluster.transports["a"].send("b", heartbeat(1))
    await eventually(lambda: cluster.receivers["a"].lost == ["b"])
    assert cluster.transports["b"].stats.bad_frames == 1


# -- requests ---------------------------------------------------------------------------------


async def test_a_request_is_answered(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("a", "b")
    await cluster.start_all()

    async def echo(sender: str, payload: bytes) -> bytes:
        return sender.encode() + payload

    cluster.receivers["b"].answer = echo
    answers = await asyncio.gather(
        *(cluster.transports["a"].request("b", b"%d" % k, 20) for k in range(50))
    )
    assert answers == [b"a%d" % k for k in range(50)]
    assert cluster.transports["a"].stats.requests_out == 50


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (NotLeaderError("c"), NotLeaderError),
        (NotLeaderError(None), NotLeaderError),
        (OverloadedError("full"), OverloadedError),
        (StoppedError("stopping"), StoppedError),
        (RefusedError("no"), RefusedError),
        (OutcomeUnknownError("who knows"), OutcomeUnknownError),
        (TimeoutError(), OutcomeUnknownError),
        (KeyError("a bug"), OutcomeUnknownError),
    ],
    ids=lambda e: type(e).__name__ if isinstance(e, Exception) else "",
)
async def test_what_the_handler_raises_reaches_the_asker_as_what_it_means(
    make_cluster: MakeCluster, raised: Exception, expected: type[Exception]
) -> None:
    cluster = make_cluster("a", "b")
    await cluster.start_all()

    async def fail(sender: str, payload: bytes) -> bytes:
        raise raised

    cluster.receivers["b"].answer = fail
    with pytest.raises(expected) as caught:
        await cluster.transports["a"].request("b", b"", 20)
    assert type(caught.value) is expected
    if isinstance(raised, NotLeaderError):
        assert caught.value.leader_id == raised.leader_id


async def test_a_refusal_of_the_applications_own_keeps_its_code(make_cluster: MakeCluster) -> None:
    class TeapotError(RefusedError):
        code = "teapot"

    cluster = make_cluster("a", "b")
    await cluster.start_all()

    async def fail(sender: str, payload: bytes) -> bytes:
        raise TeapotError("short and stout")

    cluster.receivers["b"].answer = fail
    with pytest.raises(RefusedError, match="short and stout") as caught:
        await cluster.transports["a"].request("b", b"", 20)
    assert caught.value.code == "teapot"


async def test_a_request_that_is_not_answered_in_time_has_an_unknown_outcome(
    make_cluster: MakeCluster, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b")
    await cluster.start_all()
    ended = []

    async def hang(sender: str, payload: bytes) -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(payload)
        return b""

    cluster.receivers["b"].answer = _echo
    assert await cluster.transports["a"].request("b", b"connected", 20) == b"connected"
    cluster.receivers["b"].answer = hang
    with pytest.raises(OutcomeUnknownError):  # long enough for a slow machine to get it there
        await cluster.transports["a"].request("b", b"x", 1.0)
    await eventually(lambda: ended == [b"x"])  # nobody waits for it any more: it is cancelled
    cluster.receivers["b"].answer = _echo
    assert await cluster.transports["a"].request("b", b"y", 20) == b"y"


async def _echo(sender: str, payload: bytes) -> bytes:
    return payload


@pytest.mark.parametrize("timeout_s", [30 * 86400.0, float("inf")])
async def test_a_request_may_wait_longer_than_a_frame_can_say(
    make_cluster: MakeCluster, timeout_s: float
) -> None:
    cluster = make_cluster("a", "b")
    await cluster.start_all()

    async def answer(sender: str, payload: bytes) -> bytes:
        return payload

    cluster.receivers["b"].answer = answer
    assert await cluster.transports["a"].request("b", b"x", timeout_s) == b"x"
    assert cluster.transports["b"].stats.bad_frames == 0


async def test_a_timeout_that_is_not_a_number_is_refused(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("a", "b")
    await cluster.start_all()
    with pytest.raises(RefusedError, match="not a number"):
        await cluster.transports["a"].request("b", b"x", float("nan"))
    assert cluster.transports["b"].stats.requests_in == 0


async def test_a_connection_lost_after_sending_leaves_the_outcome_unknown(
    make_cluster: MakeCluster, eventually: Eventually, port: int
) -> None:
    cluster, mute = await muted_pair(make_cluster, eventually, port)
    mute.reading.clear()
    request = asyncio.ensure_future(cluster.transports["a"].request("b", b"", 60))
    await eventually(lambda: cluster.transports["a"].stats.requests_out == 1)
    await asyncio.sleep(0)
    await mute.close()
    with pytest.raises(OutcomeUnknownError):
        await request


async def test_a_request_to_a_peer_that_is_away_was_not_sent(
    make_cluster: MakeCluster, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b", backoff_min_s=1000, backoff_max_s=1000)
    transport = await cluster.start("a")
    # While dialling there is hope; it ends with the dialling.
    with pytest.raises(UnknownPeerError):
        await transport.request("b", b"", 60)
    await eventually(lambda: transport.stats.connect_failures == 1)
    with pytest.raises(UnknownPeerError):
        await transport.request("b", b"", 60)
    with pytest.raises(UnknownPeerError):
        await transport.request("nobody", b"", 60)


async def test_a_request_given_up_before_it_left_was_not_sent(
    make_cluster: MakeCluster, eventually: Eventually, port: int
) -> None:
    with socket.socket() as silent:  # listens and never says a word
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        cluster = make_cluster("a", "b", connect_timeout_s=60)
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        transport = await cluster.start(
            "a", configuration=cluster.with_member("b", address=address)
        )
        with pytest.raises(UnknownPeerError):
            await transport.request("b", b"", 0.05)
        await transport.close()


async def test_requests_are_bounded_on_both_sides(
    make_cluster: MakeCluster, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b", max_requests=2)
    await cluster.start_all()
    asker, asked = cluster.transports["a"], cluster.transports["b"]
    go = asyncio.Event()

    async def wait(sender: str, payload: bytes) -> bytes:
        await go.wait()
        return payload

    cluster.receivers["b"].answer = wait
    requests = [asyncio.ensure_future(asker.request("b", b"x", 60)) for _ in range(2)]
    await eventually(lambda: asked.stats.requests_in == 2)
    with pytest.raises(OverloadedError):
        await asker.request("b", b"x", 60)
    # Two that gave up here are still being answered there.
    for request in requests:
        request.cancel()
    await asyncio.gather(*requests, return_exceptions=True)
    with pytest.raises(OverloadedError, match="are being answered"):
        await asker.request("b", b"x", 60)
    go.set()
    await eventually(lambda: asked._context.handling["a"] == 0)
    assert await asker.request("b", b"x", 60) == b"x"


@pytest.mark.parametrize("side", ["request", "answer"])
async def test_what_is_far_too_large_is_not_even_encoded(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    cluster = make_cluster("a", "b", max_frame_bytes=1000)
    await cluster.start_all()
    encoded: list[int] = []

    def watch(name: str, encode: Callable[[Any], bytes]) -> None:
        def encode_watched(what: Any) -> bytes:
            encoded.append(len(what.payload))
            return encode(what)

        monkeypatch.setattr(name, encode_watched)

    watch("raftcore.transport.outbound.encode_request", outbound.encode_request)
    watch("raftcore.transport.inbound.encode_response", inbound.encode_response)

    async def much(sender: str, payload: bytes) -> bytes:
        return bytes(10_000)

    cluster.receivers["b"].answer = much
    refusal = EntryTooLargeError if side == "request" else OutcomeUnknownError
    with pytest.raises(refusal):
        await cluster.transports["a"].request("b", bytes(10_000 if side == "request" else 10), 60)
    assert max(encoded, default=0) < 1000


async def test_the_address_that_can_not_be_listened_on_is_named(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster("a", "b")
    a = await cluster.start("a")
    identity = Identity("c0ffee", "b", b"b" * 16)
    other = TcpTransport(identity, ("127.0.0.1", a.port), Configuration("c0ffee", ()))
    with pytest.raises(ListenError, match=f"127.0.0.1, port {a.port}") as refused:
        await other.start(cluster.receivers["a"])
    assert refused.value.code == "E_LISTEN"
    await other.close()


async def test_requests_and_answers_that_are_too_large(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("a", "b", max_frame_bytes=1000)
    await cluster.start_all()

    async def much(sender: str, payload: bytes) -> bytes:
        return bytes(1000)

    cluster.receivers["b"].answer = much
    with pytest.raises(EntryTooLargeError):
        await cluster.transports["a"].request("b", bytes(1000), 20)
    with pytest.raises(OutcomeUnknownError, match="too large"):
        await cluster.transports["a"].request("b", b"", 20)


async def test_a_request_that_finds_the_queue_full_was_not_sent(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("a", "b", queue_frames=1)
    await cluster.start_all()
    cluster.transports["a"].send("b", heartbeat(1))
    with pytest.raises(OverloadedError, match="queue"):
        await cluster.transports["a"].request("b", b"", 20)


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="queue_frames"):
        TransportOptions(queue_frames=0)
    with pytest.raises(ValueError, match="backoff"):
        TransportOptions(backoff_min_s=2, backoff_max_s=1)


# -- corners ----------------------------------------------------------------------------------


async def test_the_queue_is_bounded_while_dialling_too(
    make_cluster: MakeCluster, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b", queue_frames=2)
    await cluster.start("b")
    transport = await cluster.start("a")
    for number in range(3):
        transport.send("b", heartbeat(number))
    assert transport.stats.dropped_full == 1
    await eventually(lambda: cluster.receivers["b"].messages == [heartbeat(0), heartbeat(1)])


async def test_closing_does_not_wait_for_a_peer_that_does_not_read(
    make_cluster: MakeCluster, eventually: Eventually, port: int
) -> None:
    cluster, mute = await muted_pair(
        make_cluster, eventually, port, stall_timeout_s=60, close_timeout_s=0.05
    )
    mute.reading.clear()
    entries = (Entry(1, 1, EntryType.COMMAND, bytes(1 << 20)),)
    for number in range(40):
        cluster.transports["a"].send("b", AppendRequest("a", 1, 0, 0, 0, number, 0, entries))
    await cluster.transports["a"].close()
    await mute.close()
    assert len(cluster.receivers["b"].messages) < 40


class StubTransport:
    """A connection whose write buffer the test fills."""

    def __init__(self) -> None:
        self.waiting = 100
        self.aborted = False
        self.written = b""
        self.names = {"sockname": ("h", 1), "peername": ("h", 2)}

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def set_write_buffer_limits(self, high: int) -> None:
        assert high > 0

    def get_extra_info(self, name: str) -> object:
        return self.names.get(name)

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


def connect_to_stub(transport: Any, member: Any, stub: StubTransport) -> OutboundConnection:
    connection = OutboundConnection(
        transport._context,
        SendQueue(1, 1),
        member,
        lambda _: None,
        lambda _: None,
        lambda _: None,
    )
    connection.connection_made(stub)
    return connection


async def test_a_slow_connection_that_still_moves_is_kept(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("a", "b")
    transport = await cluster.start("a")
    stub = StubTransport()
    connection = connect_to_stub(transport, cluster.configuration.members[1], stub)
    connection.pause_writing()
    stub.waiting = 50
    connection._check_stall()
    assert not stub.aborted
    connection._check_stall()
    assert stub.aborted
    assert transport.stats.stalls == 1
    connection.connection_lost(None)
    connection.connection_lost(None)  # harmless
    assert connection.closing


async def test_a_connection_to_itself_is_not_a_peer(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("a", "b")
    transport = await cluster.start("a")
    stub = StubTransport()
    # What happens when nobody listens and the kernel draws the dialled port to dial from.
    stub.names["sockname"] = stub.names["peername"]
    connection = connect_to_stub(transport, cluster.configuration.members[1], stub)
    assert stub.aborted
    assert stub.written == b""
    connection.connection_lost(None)


def test_a_send_queue_keeps_its_bounds_and_skips_what_nobody_waits_for() -> None:
    loop = asyncio.new_event_loop()
    queue = SendQueue(max_frames=3, max_bytes=10)
    given_up, waiting = (PendingRequest(loop.create_future()) for _ in range(2))
    assert queue.offer(bytes(20))  # alone, a frame may be larger than the bound
    assert not queue.offer(b"x")
    assert queue.take(1) == [bytes(20)]
    assert queue.offer(b"1", given_up)
    assert queue.offer(b"22", waiting)
    assert queue.offer(b"333")
    assert not queue.offer(b"4")
    assert (len(queue), queue.size_bytes) == (3, 6)
    given_up.answer.cancel()
    assert queue.take(2) == [b"22"]
    assert (given_up.sent, waiting.sent) == (False, True)
    assert queue.clear() == 1
    assert (len(queue), queue.size_bytes, queue.take(9)) == (0, 0, [])
    loop.close()


@pytest.mark.parametrize(("count", "logged"), [(1, True), (2, True), (3, False), (1024, True)])
def test_a_flood_is_logged_ever_more_rarely(count: int, logged: bool) -> None:
    assert worth_a_line(count) is logged
