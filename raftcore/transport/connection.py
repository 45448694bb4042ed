"""One TCP connection as a stream of frames, in both directions.

Written on :class:`asyncio.Protocol` because messages are the hot path: frames that are queued
during one turn of the loop leave in one write, and nothing is awaited per message.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from typing import cast

from raftcore.core.errors import PeerViolationError
from raftcore.core.types import Configuration, NodeId
from raftcore.storage.base import Identity
from raftcore.transport.base import Receiver
from raftcore.transport.framing import Frame, FrameDecoder, FrameKind
from raftcore.transport.options import TransportOptions, TransportStats
from raftcore.transport.queue import PendingRequest, SendQueue

log = logging.getLogger("raftcore.transport")


@dataclass(slots=True)
class Context:
    """What the connections of one transport share."""

    identity: Identity
    configuration: Configuration
    founding: Configuration
    options: TransportOptions
    stats: TransportStats
    random: random.Random
    receiver: Receiver
    loop: asyncio.AbstractEventLoop
    connections: set[FramedConnection] = field(default_factory=set)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    handling: Counter[NodeId] = field(default_factory=Counter)


class FramedConnection(asyncio.Protocol, ABC):
    """Cuts what arrives into frames; queues, joins and writes what leaves.

    Subclasses say what a frame means (:meth:`frame_received`) and what the end means
    (:meth:`closed`). ``done`` is set when the connection is gone, whoever ended it.
    """

    def __init__(self, context: Context, queue: SendQueue, max_frame_bytes: int) -> None:
        self.context = context
        self.queue = queue
        self.done: asyncio.Future[None] = context.loop.create_future()
        #: Queued frames wait until the handshake is through.
        self.ready = False
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

    # -- called by the loop -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast: uvloop's transports do not derive from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self.context.connections.add(self)
        self._transport.set_write_buffer_limits(high=self.context.options.write_bytes)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            _tune(sock, self.context.options.stall_timeout_s)

    def data_received(self, data: bytes) -> None:
        self.context.stats.bytes_in += len(data)
        try:
            self._decoder.push(data)
            while not self.closing and (frame := self._decoder.next_frame()) is not None:
                self.frame_received(frame)
        except PeerViolationError as error:
            self.violation(error)

    def pause_writing(self) -> None:
        self._paused = True
        self._watch_for_stall()

    def resume_writing(self) -> None:
        self._paused = False
        self._stop_stall_timer()
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's name)
        self._stop_stall_timer()
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

    def accept_frames(self, max_frame_bytes: int) -> None:
        """The handshake is through: larger frames come in, queued frames go out."""
        self._decoder.max_frame_bytes = max_frame_bytes
        self.ready = True
        self.schedule_flush()

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

    def abort(self) -> None:
        """Close at once; what has not left is lost."""
        if self._transport is not None:
            self._transport.abort()

    # -- inside -------------------------------------------------------------------------------

    def _flush(self) -> None:
        self._flush_scheduled = False
        while self.ready and not self._paused and not self.closing:
            frames = self.queue.take(self.context.options.write_bytes)
            if not frames:
                return
            self._write(frames)

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
