"""One question and one answer between nodes that are not connected for good: forming, joining."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from raftcore.transport.address import parse_address
from raftcore.transport.checks import WireError
from raftcore.transport.framing import Frame, FrameDecoder, FrameKind, encode_frame
from raftcore.transport.handshake import (
    MAX_WELCOME_BYTES,
    Introduction,
    decode_introduction,
    decode_refusal,
    encode_introduction,
)
from raftcore.transport.tls import TlsContexts, check_certificate

#: For a connection, the question and an answer that needs no thought.
EXCHANGE_TIMEOUT_S = 2.0
_CLOSE_TIMEOUT_S = 1.0
_READ_BYTES = 64 << 10


async def exchange(address: str, hello: Introduction, tls: TlsContexts | None) -> Introduction:
    """Introduce ourselves to whoever listens at ``address``; what it says of itself.

    Raises:
        HandshakeRefusedError: it said no, or its certificate is for another node.
        WireError: it said something else.
        OSError: it can not be reached, or TLS failed.
    """
    context = None if tls is None else tls.client
    try:
        host, port = parse_address(address)
        reader, writer = await asyncio.open_connection(host, port, ssl=context)
    except OSError:  # some errors of TLS are a ValueError too
        raise
    except ValueError as error:  # UnicodeError is one, for a host that cannot be encoded
        raise ConnectionError(f"{address!r} can not be dialled: {error}") from error
    async with closing(writer):
        if writer.get_extra_info("sockname") == writer.get_extra_info("peername"):
            # Nobody listens there, and the kernel gave us that very port to dial from.
            raise ConnectionRefusedError("nobody listens there")
        writer.write(encode_frame(FrameKind.HELLO, encode_introduction(hello)))
        frame = await read_frame(reader, MAX_WELCOME_BYTES)
        if frame.kind is FrameKind.REFUSE:
            raise decode_refusal(frame.body)
        if frame.kind is not FrameKind.WELCOME:
            raise WireError(f"a {frame.kind.name} frame instead of an answer")
        welcome = decode_introduction(frame.body, hello.version)
        check_certificate(writer.transport, welcome.node_id)
        return welcome


@contextlib.asynccontextmanager
async def closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Close the connection in any case, and return only when the socket is gone."""
    try:
        yield
    finally:
        writer.close()
        try:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                    await writer.wait_closed()
        finally:
            writer.transport.abort()  # somebody who does not read: no reason to wait longer


async def read_frame(reader: asyncio.StreamReader, max_frame_bytes: int) -> Frame:
    """The first frame of the stream; the other side says nothing more."""
    decoder = FrameDecoder(max_frame_bytes)
    while (frame := decoder.next_frame()) is None:
        data = await reader.read(_READ_BYTES)
        if not data:
            raise ConnectionResetError("closed during the handshake")
        decoder.push(data)
    return frame
