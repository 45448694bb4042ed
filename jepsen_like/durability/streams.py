"""What a node says on its sockets: protocol messages to peers, responses to HTTP clients.

A stream is told by its first bytes: ``HTTP/1.`` opens a server's side of HTTP, an introduction
opens a connection between peers; everything else (a database, our own requests as an HTTP client)
is not looked at. Bytes are judged when they are handed to the kernel, and only what the kernel took
is remembered, so frames may be cut into any pieces.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from raftcore.core.messages import Message
from raftcore.transport.framing import (
    DEFAULT_MAX_FRAME_BYTES,
    FRAME_OVERHEAD_BYTES,
    Frame,
    FrameDecoder,
    FrameKind,
    decompress_frame,
)
from raftcore.transport.handshake import HandshakeRefusedError, decode_introduction
from raftcore.transport.wire import WireError, decode_message

_INTRODUCTIONS = (FrameKind.HELLO, FrameKind.WELCOME)
_HTTP = b"HTTP/1."
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])[^\r\n]*\r\n")
_REVISION = re.compile(rb"\r\nX-Guardian-Revision: *([0-9]{1,19})\r\n", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\nContent-Length: *([0-9]{1,19})\r\n", re.IGNORECASE)
#: A response head that is longer is not one of ours.
_MAX_HEAD_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP response of success that names the revision it saw."""

    status: int
    revision: int


@dataclass(frozen=True, slots=True)
class Said:
    """Something said on a stream; it is out when ``end`` bytes of the send have gone."""

    what: Message | Reply
    end: int


class Stream(Protocol):
    """The bytes sent on one socket so far, as far as they still matter."""

    def parse(self, data: bytes, /) -> list[Said]:
        """What ``data`` says if all of it is sent; changes nothing."""
        ...

    def sent(self, data: bytes, /) -> None:
        """``data`` has been sent."""
        ...


class IgnoredStream:
    """A conversation that carries no promise of the node."""

    def parse(self, _: bytes, /) -> list[Said]:
        return []

    def sent(self, _: bytes, /) -> None:
        return None


class PeerStream:
    """Frames to another node. ``node_id`` is what the node calls itself, once it has said so."""

    def __init__(self) -> None:
        self.node_id = ""
        self._tail = b""

    def parse(self, data: bytes, /) -> list[Said]:
        said: list[Said] = []
        end = -len(self._tail)
        for frame in FrameDecoder().feed(self._tail + data):
            end += FRAME_OVERHEAD_BYTES + len(frame.body)
            plain = _plain(frame)
            if plain.kind is FrameKind.MESSAGE:
                said.append(Said(decode_message(plain.body, self.node_id), end))
        return said

    def sent(self, data: bytes, /) -> None:
        decoder = FrameDecoder()
        buffered = self._tail + data
        for frame in decoder.feed(buffered):
            self._introduce(frame)
        self._tail = buffered[len(buffered) - decoder.buffered_bytes :]

    def _introduce(self, frame: Frame) -> None:
        if frame.kind in _INTRODUCTIONS:
            self.node_id = decode_introduction(frame.body).node_id


class HttpStream:
    """Responses to an HTTP client.

    A head is looked for at the start of each send and after each body whose length was given: that
    is where a server puts it. A head in several sends is put together.
    """

    def __init__(self) -> None:
        self._head = b""

    def parse(self, data: bytes, /) -> list[Said]:
        said: list[Said] = []
        buffered = self._head + data
        at = 0
        while (head := _head_at(buffered, at)) is not None:
            at += len(head)
            status, revision = _STATUS.match(head), _REVISION.search(head)
            if status and revision and status[1].startswith(b"2"):
                reply = Reply(int(status[1]), int(revision[1]))
                said.append(Said(reply, at - len(self._head)))
            length = _LENGTH.search(head)
            if length is None:
                break
            at += int(length[1])
        return said

    def sent(self, data: bytes, /) -> None:
        buffered = self._head + data
        unfinished = buffered.startswith(_HTTP) and b"\r\n\r\n" not in buffered
        self._head = buffered if unfinished and len(buffered) < _MAX_HEAD_BYTES else b""


def _head_at(buffered: bytes, at: int) -> bytes | None:
    if not buffered.startswith(_HTTP, at):
        return None
    end = buffered.find(b"\r\n\r\n", at, at + _MAX_HEAD_BYTES)
    return None if end < 0 else buffered[at : end + 4]


class InboundStream:
    """What arrives on one socket: who the peer is, and its messages."""

    def __init__(self) -> None:
        self.peer = ""
        self._decoder: FrameDecoder | None = FrameDecoder()

    def feed(self, data: bytes) -> list[Message]:
        """The messages that ``data`` completes; none unless the stream began as a peer's."""
        if self._decoder is None:
            return []
        messages: list[Message] = []
        try:
            for frame in map(_plain, self._decoder.feed(data)):
                if frame.kind in _INTRODUCTIONS:
                    self.peer = decode_introduction(frame.body).node_id
                elif frame.kind is FrameKind.MESSAGE and self.peer:
                    messages.append(decode_message(frame.body, self.peer))
        except (WireError, HandshakeRefusedError):
            self._decoder = None  # not a peer, or one whose bytes the node has to refuse as well
        return messages


def _plain(frame: Frame) -> Frame:
    """The frame as it was before it was compressed."""
    if frame.kind is FrameKind.COMPRESSED:
        return decompress_frame(frame, DEFAULT_MAX_FRAME_BYTES)
    return frame


def classify(data: bytes) -> Stream:
    """The kind of stream that begins with these bytes, sent in one call."""
    if data.startswith(_HTTP):
        return HttpStream()
    try:
        for frame in FrameDecoder().feed(data):
            if frame.kind in _INTRODUCTIONS:
                decode_introduction(frame.body)
                return PeerStream()
            break
    except (WireError, HandshakeRefusedError):
        return IgnoredStream()
    return IgnoredStream()
