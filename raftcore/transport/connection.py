"""One TCP connection as a stream of frames, in both directions.

Written on :class:`asyncio.Protocol` because messages are the hot path: frames that are queued
during one turn of the loop leave in one write, and nothing is awaited per message.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from typing import cast

from raftcore.core.errors import PeerViolationError
from raftcore.core.messages import Message
from raftcore.core.types import NodeId
from raftcore.transport.admission import Membership, RunsSeen
from raftcore.transport.base import Receiver
from raftcore.transport.framing import (
    ZLIB,
    Frame,
    FrameDecoder,
    FrameKind,
    compress_body,
    decompress_frame,
    encode_frame,
)
from raftcore.transport.handshake import Introduction
from raftcore.transport.options import TransportOptions, TransportStats
from raftcore.transport.queue import PendingRequest, SendQueue
from raftcore.transport.tls import TlsContexts
from raftcore.transport.versions import PROTOCOL_VERSION, negotiate
from raftcore.transport.wire import MessageEncoder, UnknownMessageError, decode_message

log = logging.getLogger("raftcore.transport")

#: Nodes of which it is remembered what they said of themselves: peers, guests, and earlier ones.
_MAX_INTRODUCTIONS = 4096


@dataclass(slots=True)
class Context:
    """What the connections of one transport share."""

    membership: Membership
    options: TransportOptions
    stats: TransportStats
    random: random.Random
    receiver: Receiver
    loop: asyncio.AbstractEventLoop
    tls: TlsContexts | None = None
    encoder: MessageEncoder = field(default_factory=MessageEncoder)
    runs: RunsSeen = field(default_factory=RunsSeen)
    introductions: dict[NodeId, Introduction] = field(default_factory=dict)
    joins: int = 0
    connections: set[FramedConnection] = field(default_factory=set)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    handling: Counter[NodeId] = field(default_factory=Counter)

    def introduced(self, introduction: Introduction) -> None:
        """Remember what a peer or a guest said of itself."""
        node_id = introduction.node_id
        self.introductions.pop(node_id, None)
        self.introductions[node_id] = introduction
        if len(self.introductions) > _MAX_INTRODUCTIONS:
            del self.introductions[next(iter(self.introductions))]
        # Of a guest it would mean nothing: anybody may come as one, and say what he likes.
        if node_id in self.membership.peers and self.runs.went_back(introduction):
            self.stats.directories_put_back += 1
            log.error(
                "%s runs on an older copy of its directory (run %d): what it acknowledged since "
                "that copy was made may be lost",
                node_id,
                introduction.facts.runs,
            )


class FramedConnection(asyncio.Protocol, ABC):
    """Cuts what arrives into frames; queues, joins and writes what leaves.

    Subclasses say what a frame means (:meth:`frame_received`) and what the end means
    (:meth:`closed`). ``done`` is set when the connection is gone, whoever ended it.
    """

    def __init__(self, context: Context, queue: SendQueue, max_frame_bytes: int) -> None:
        self.context = context
        self.queue = queue
        self.done: asyncio.Future[None] = context.loop.create_future()
        #: What ended the connection, if it was an error.
        self.loss: Exception | None = None
        #: Queued frames wait until the handshake is through.
        self.ready = False
        #: What the connection speaks; known once the handshake is through.
        self.version = context.options.max_protocol_version
        self._newer_peer = False
        self._compress = False
        self._finishing: asyncio.TimerHandle | None = None
        self._decoder = FrameDecoder(max_frame_bytes)
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._flush_scheduled = False
        self._stall_timer: asyncio.TimerHandle | None = None
        self._stalled_at_bytes = 0

    @abstractmethod
    def frame_received(self, frame: Frame) -> None:
        """One frame arrived. Raises PeerViolationError if it has no business here."""

    @abstractmethod
    def closed(self) -> None:
        """The connection is gone."""

    def violation(self, error: PeerViolationError) -> None:
        """What came in is nonsense: count, say so, and hang up."""
        stats = self.context.stats
        stats.bad_frames += 1
        if worth_a_line(stats.bad_frames):
            log.warning("closing the connection with %s: %s", self.name, error)
        self.abort()

    @property
    def name(self) -> str:
        """Who the other side is, for the log."""
        peer = self._transport.get_extra_info("peername") if self._transport else None
        return f"{peer[0]}:{peer[1]}" if peer else "a peer"

    @property
    def host(self) -> str:
        """The address that the other side has; empty if the connection is gone already."""
        peer = self._transport.get_extra_info("peername") if self._transport else None
        return str(peer[0]) if peer else ""

    # -- called by the loop -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast: uvloop's transports do not derive from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self.context.connections.add(self)
        self._transport.set_write_buffer_limits(high=self.context.options.write_bytes)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):  # reset by now: the loop is about to tell
                _tune(sock, self.context.options.stall_timeout_s)

    def data_received(self, data: bytes) -> None:
        self.context.stats.bytes_in += len(data)
        try:
            self._decoder.push(data)
            while not self.closing and (frame := self._decoder.next_frame()) is not None:
                if frame.kind is FrameKind.COMPRESSED:
                    frame = self._decompress(frame)
                self.frame_received(frame)
        except PeerViolationError as error:
            self.violation(error)

    def _decompress(self, frame: Frame) -> Frame:
        if not self.ready or self.version < 2:
            raise unexpected(frame)
        self.context.stats.compressed_in += 1
        return decompress_frame(frame, self.context.options.max_frame_bytes)

    def pause_writing(self) -> None:
        self._paused = True
        self._watch_for_stall()

    def resume_writing(self) -> None:
        self._paused = False
        self._stop_stall_timer()
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self.loss = exc
        self._stop_stall_timer()
        if self._finishing is not None:
            self._finishing.cancel()
        self.ready = False
        self._transport = None
        self.context.connections.discard(self)
        if not self.done.done():
            self.done.set_result(None)
        self.closed()

    # -- called by us -------------------------------------------------------------------------

    @property
    def closing(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def accept_frames(self, peer: Introduction) -> None:
        """The handshake is through: larger frames come in, queued frames go out."""
        options = self.context.options
        self.version = negotiate(options.max_protocol_version, peer.version)
        self._newer_peer = peer.version > PROTOCOL_VERSION
        self._compress = (
            options.compress_above_bytes > 0 and self.version >= 2 and ZLIB in peer.compressions
        )
        self._decoder.max_frame_bytes = options.max_frame_bytes
        self.ready = True
        self.context.introduced(peer)
        self.schedule_flush()

    def message_received(self, frame: Frame, sender: NodeId) -> None:
        """Deliver a MESSAGE frame."""
        stats = self.context.stats
        try:
            message = decode_message(
                frame.body, sender, newest=self.version, newer_peer=self._newer_peer
            )
        except UnknownMessageError as error:
            stats.unknown_messages += 1
            if worth_a_line(stats.unknown_messages):
                log.warning("dropped what %s said: %s is not known here", self.name, error)
            return
        stats.messages_in += 1
        self.context.receiver.on_message(message)

    def send_message(self, message: Message) -> bool:
        """Queue a message in this connection's version; False if it is dropped."""
        body = self.context.encoder.encode(message, self.version)
        if len(body) >= self.context.options.max_frame_bytes:
            self.context.stats.dropped_oversize += 1
            return False
        return self.send(self.frame(FrameKind.MESSAGE, body))

    def frame(self, kind: FrameKind, body: bytes) -> bytes:
        """The bytes of a frame, compressed if the peer can read that and if it is worth it."""
        options, stats = self.context.options, self.context.stats
        if self._compress and len(body) > options.compress_above_bytes:
            packed = compress_body(kind, body)
            if packed is not None:
                stats.compressed_out += 1
                stats.compressed_saved_bytes += len(body) - len(packed)
                return encode_frame(FrameKind.COMPRESSED, packed)
        return encode_frame(kind, body)

    def send(self, frame: bytes, request: PendingRequest | None = None) -> bool:
        """Queue a frame; False if the queue is full."""
        if not self.queue.offer(frame, request):
            self.context.stats.dropped_full += 1
            return False
        self.schedule_flush()
        return True

    def schedule_flush(self) -> None:
        """Write what is queued at the end of this turn of the loop, all at once."""
        if not self._flush_scheduled and self.ready and not self._paused:
            self._flush_scheduled = True
            self.context.loop.call_soon(self._flush)

    def write_now(self, frame: bytes) -> None:
        """Past the queue: for the handshake."""
        if self._transport is not None and not self._transport.is_closing():
            self._write([frame])

    def close(self) -> None:
        """Close once everything written has left."""
        if self._transport is not None:
            self._flush()
            self._transport.close()

    def finish(self) -> None:
        """Close once everything queued has left; after ``drain_timeout_s`` in any case."""
        if self._transport is None or self._finishing is not None:
            return
        self._finishing = self.context.loop.call_later(
            self.context.options.drain_timeout_s, self.abort
        )
        self.schedule_flush()

    def abort(self) -> None:
        """Close at once; what has not left is lost."""
        if self._transport is not None:
            self._transport.abort()

    # -- inside -------------------------------------------------------------------------------

    def _flush(self) -> None:
        self._flush_scheduled = False
        while self.ready and not self._paused and not self.closing:
            frames = self.queue.take(self.context.options.write_bytes)
            if frames:
                self._write(frames)
                continue
            if self._finishing is not None and self._transport is not None:
                self._transport.close()
            return

    def _write(self, frames: list[bytes]) -> None:
        assert self._transport is not None
        data = frames[0] if len(frames) == 1 else b"".join(frames)
        self.context.stats.writes += 1
        self.context.stats.bytes_out += len(data)
        self._transport.write(data)

    def _watch_for_stall(self) -> None:
        assert self._transport is not None
        self._stalled_at_bytes = self._transport.get_write_buffer_size()
        self._stall_timer = self.context.loop.call_later(
            self.context.options.stall_timeout_s, self._check_stall
        )

    def _check_stall(self) -> None:
        assert self._transport is not None
        if self._transport.get_write_buffer_size() < self._stalled_at_bytes:
            self._watch_for_stall()  # slow, but it moves
            return
        self.context.stats.stalls += 1
        log.warning("the connection with %s takes no bytes; closing it", self.name)
        self.abort()

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None


def _tune(sock: socket.socket, stall_timeout_s: float) -> None:
    """Send at once; notice a peer that is gone without having said so."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    seconds = max(1, round(stall_timeout_s))
    # Small messages fit into the kernel's buffer for a long time, so a stalled write shows only
    # here: unacknowledged for that long, and the kernel gives the connection up.
    for option, value in (
        ("TCP_USER_TIMEOUT", seconds * 1000),
        ("TCP_KEEPIDLE", seconds),
        ("TCP_KEEPINTVL", seconds),
        ("TCP_KEEPCNT", 2),
    ):
        if hasattr(socket, option):  # these four are Linux
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def worth_a_line(count: int) -> bool:
    """Whether the ``count``-th event of a kind is logged: a flood must not flood the log."""
    return count & (count - 1) == 0


def unexpected(frame: Frame) -> PeerViolationError:
    """The error for a frame kind that has no business at this point."""
    return PeerViolationError(f"a {FrameKind(frame.kind).name} frame has no business here")
