"""Frames: how messages are told apart on a byte stream.

A frame is ``u32 length | u32 crc32 | payload``, big-endian; the payload begins with one byte that
says what kind of frame it is. The length is checked against a hard cap as soon as its four bytes
are there, before anything is kept for it. No I/O happens here.

From protocol version 2 on a frame may be compressed: its kind is then COMPRESSED, and its body
``u8 kind | u32 size | zlib stream``, where kind and size are those of the body before. It must come
out at exactly that size, which is checked against the cap before anything is inflated.
"""

from __future__ import annotations

import struct
import zlib
from enum import IntEnum
from typing import NamedTuple

from raftcore.transport.checks import WireError

_HEADER = struct.Struct(">II")
#: What a frame costs besides its body: length, checksum and kind.
FRAME_OVERHEAD_BYTES = _HEADER.size + 1
DEFAULT_MAX_FRAME_BYTES = 64 << 20


class FrameKind(IntEnum):
    HELLO = 1  #: the dialler introduces itself
    WELCOME = 2  #: the acceptor introduces itself
    REFUSE = 3  #: the acceptor says why not
    MESSAGE = 4  #: a protocol message
    REQUEST = 5  #: an application's question
    RESPONSE = 6  #: its answer
    COMPRESSED = 7  #: one of the last three, compressed (protocol version 2)


class Frame(NamedTuple):
    kind: FrameKind
    body: bytes


_KINDS = {int(kind): kind for kind in FrameKind}

#: The one compression there is, as it is called in the handshake.
ZLIB = "zlib"
#: The fastest: higher levels cost a multiple of the time for a few per cent.
_ZLIB_LEVEL = 1
_INNER = struct.Struct(">BI")
_COMPRESSIBLE = (FrameKind.MESSAGE, FrameKind.REQUEST, FrameKind.RESPONSE)


def encode_frame(kind: FrameKind, body: bytes) -> bytes:
    """The bytes of one frame."""
    kind_byte = b"%c" % kind
    checksum = zlib.crc32(body, zlib.crc32(kind_byte))
    return b"%b%b%b" % (_HEADER.pack(len(body) + 1, checksum), kind_byte, body)


def compress_body(kind: FrameKind, body: bytes) -> bytes | None:
    """The body of a COMPRESSED frame, or None if that would not be smaller."""
    packed = zlib.compress(body, _ZLIB_LEVEL)
    if _INNER.size + len(packed) >= len(body):
        return None
    return _INNER.pack(kind, len(body)) + packed


def decompress_frame(frame: Frame, max_frame_bytes: int) -> Frame:
    """The frame that is in a COMPRESSED one.

    Raises:
        WireError: it holds a frame that may not be compressed, is larger than the cap, or is not
            the whole of one zlib stream of the size it states. No more than that size is inflated.
    """
    if len(frame.body) < _INNER.size:
        raise WireError("a compressed frame is shorter than its header")
    number, size = _INNER.unpack_from(frame.body)
    kind = _KINDS.get(number)
    if kind not in _COMPRESSIBLE:
        raise WireError(f"a frame of kind {number} can not be compressed")
    if not size < max_frame_bytes:
        raise WireError(f"a compressed frame of {size} bytes; at most {max_frame_bytes} are taken")
    inflater = zlib.decompressobj()
    try:
        # One byte more than stated, so that a longer stream shows without being inflated.
        body = inflater.decompress(memoryview(frame.body)[_INNER.size :], size + 1)
    except zlib.error as error:
        raise WireError(f"a compressed frame is damaged: {error}") from error
    if len(body) != size or not inflater.eof or inflater.unused_data:
        raise WireError("a compressed frame does not have the size it states")
    return Frame(kind, body)


class FrameDecoder:
    """Cuts a byte stream into frames.

    Args:
        max_frame_bytes: cap on one payload (kind byte and body). It may be raised later, which is
            what happens when a connection has introduced itself.
    """

    def __init__(self, max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES) -> None:
        self.max_frame_bytes = max_frame_bytes
        self._buffer = bytearray()

    @property
    def buffered_bytes(self) -> int:
        """Bytes of a frame that is not complete yet."""
        return len(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """The frames that ``data`` completes, in order.

        Raises:
            WireError: see :meth:`next_frame`; frames before the bad one are lost too.
        """
        self.push(data)
        frames: list[Frame] = []
        while (frame := self.next_frame()) is not None:
            frames.append(frame)
        return frames

    def push(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes in; :meth:`next_frame` then gives what they complete, one at a time."""
        self._buffer += data

    def next_frame(self) -> Frame | None:
        """The next whole frame, or None until more bytes came.

        Raises:
            WireError: an empty, oversize or unknown frame or a wrong checksum. The stream cannot be
                followed any further.
        """
        buffer = self._buffer
        if len(buffer) < _HEADER.size:
            return None
        length, checksum = _HEADER.unpack_from(buffer)
        if not 0 < length <= self.max_frame_bytes:
            raise WireError(f"a frame of {length} bytes; at most {self.max_frame_bytes} are taken")
        end = _HEADER.size + length
        if len(buffer) < end:
            return None
        with memoryview(buffer) as view, view[_HEADER.size : end] as payload:
            if zlib.crc32(payload) != checksum:
                raise WireError("a frame's checksum is wrong")
            kind = _KINDS.get(payload[0])
            if kind is None:
                raise WireError(f"frame kind {payload[0]} is not known here")
            frame = Frame(kind, bytes(payload[1:]))
        del buffer[:end]  # cheap: a bytearray gives up its front without moving the rest
        return frame
