"""The dialling side: one link per peer, which connects again and again."""

from __future__ import annotations

import asyncio
import itertools
import ssl
from collections.abc import Callable
from typing import Any

from raftcore.core.messages import Message
from raftcore.core.types import Member
from raftcore.errors import (
    EntryTooLargeError,
    NotLeaderError,
    OutcomeUnknownError,
    OverloadedError,
    RefusedError,
    StoppedError,
    UnknownPeerError,
)
from raftcore.transport.address import parse_address
from raftcore.transport.admission import check_welcome
from raftcore.transport.checks import WireError
from raftcore.transport.connection import Context, FramedConnection, log, unexpected
from raftcore.transport.framing import Frame, FrameKind, encode_frame
from raftcore.transport.handshake import (
    MAX_WELCOME_BYTES,
    HandshakeRefusedError,
    Introduction,
    RefusalCode,
    decode_introduction,
    decode_refusal,
    encode_introduction,
    removed_subject,
)
from raftcore.transport.queue import PendingRequest, SendQueue
from raftcore.transport.tls import check_certificate
from raftcore.transport.wire import (
    Request,
    Response,
    ResponseStatus,
    bounded_timeout_s,
    decode_response,
    encode_request,
)

#: Refusals that travel by their code alone become the exception they were.
_REFUSALS: dict[str, type[RefusedError]] = {
    error.code: error
    for error in (OverloadedError, EntryTooLargeError, StoppedError, UnknownPeerError)
}


class OutboundConnection(FramedConnection):
    """A connection that we opened to a peer: our messages and requests, its responses.

    A peer that does not know us as a member yet sends its messages here too (it has no other
    connection to us).
    """

    def __init__(
        self,
        context: Context,
        queue: SendQueue,
        member: Member,
        on_welcomed: Callable[[OutboundConnection], None],
        on_response: Callable[[Response], None],
        on_closed: Callable[[OutboundConnection], None],
    ) -> None:
        super().__init__(context, queue, MAX_WELCOME_BYTES)
        self.refusal: HandshakeRefusedError | None = None
        self._member = member
        self._on_welcomed = on_welcomed
        self._on_response = on_response
        self._on_closed = on_closed

    @property
    def name(self) -> str:
        return self._member.node_id

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if transport.get_extra_info("sockname") == transport.get_extra_info("peername"):
            # Nobody listens there, and the kernel gave us that very port to dial from.
            self.abort()
            return
        try:
            check_certificate(transport, self._member.node_id)
        except HandshakeRefusedError as error:
            self._give_up(error)
            return
        hello = self.context.membership.introduction()
        self.write_now(encode_frame(FrameKind.HELLO, encode_introduction(hello)))

    def closed(self) -> None:
        self._on_closed(self)

    def _give_up(self, error: HandshakeRefusedError) -> None:
        self.refusal = error
        self.abort()

    def frame_received(self, frame: Frame) -> None:
        if not self.ready:
            self._answered(frame)
        elif frame.kind is FrameKind.RESPONSE:
            self._on_response(decode_response(frame.body))
        elif frame.kind is FrameKind.MESSAGE and self.version >= 2:
            self.message_received(frame, self._member.node_id)
        else:
            raise unexpected(frame)

    def _answered(self, frame: Frame) -> None:
        try:
            welcome = self._check_answer(frame)
        except HandshakeRefusedError as error:
            self._give_up(error)
            return
        self.accept_frames(welcome)
        if self.version != self.context.options.max_protocol_version:
            # What was queued meanwhile was meant for a peer as new as we are.
            encoder = self.context.encoder
            self.queue.encode_again(
                lambda m: encode_frame(FrameKind.MESSAGE, encoder.encode(m, self.version))
            )
        self._on_welcomed(self)

    def _check_answer(self, frame: Frame) -> Introduction:
        context = self.context
        if frame.kind is FrameKind.REFUSE:
            raise decode_refusal(frame.body)
        if frame.kind is not FrameKind.WELCOME:
            raise unexpected(frame)
        welcome = decode_introduction(frame.body, context.options.max_protocol_version)
        check_welcome(welcome, self._member, context.membership.identity)
        return welcome


class PeerLink:
    """Keeps a connection to one member, with its queue and its unanswered requests."""

    def __init__(self, context: Context, member: Member) -> None:
        self.member = member
        self._context = context
        options = context.options
        self._queue = SendQueue(options.queue_frames, options.queue_bytes)
        self._connection: OutboundConnection | None = None
        self._dialling = True
        self._poked = asyncio.Event()
        self._pending: dict[int, PendingRequest] = {}
        self._numbers = itertools.count(1)
        self._last_refusal = ""
        self._stopped = False
        self._drain_timer: asyncio.TimerHandle | None = None
        self._task = context.loop.create_task(
            self._run(), name=f"raftcore link to {member.node_id}"
        )
        context.tasks.add(self._task)
        self._task.add_done_callback(context.tasks.discard)
        self._task.add_done_callback(self._ended)

    @property
    def connected(self) -> bool:
        return self._connection is not None

    @property
    def reachable(self) -> bool:
        """Whether what is sent now has a chance: connected, or just connecting."""
        return self._connection is not None or self._dialling

    def poke(self) -> None:
        """The peer is evidently up (it connected to us): do not wait out the back-off."""
        self._poked.set()

    def retire(self) -> None:
        """Stop for good, but let what was sent leave first, within ``drain_timeout_s``."""
        self._stopped = True
        if self._connection is not None:
            self._connection.finish()
        elif self._dialling:
            self._drain_timer = self._context.loop.call_later(
                self._context.options.drain_timeout_s, self.close
            )
        else:
            self.close()

    def when_gone(self, call: Callable[[PeerLink], None]) -> None:
        """Call ``call`` once this link dials no more and has no connection."""
        self._task.add_done_callback(lambda _: call(self))

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A link dials until it is stopped; nobody else would see that it does not."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("no longer dialling %s: %r", self.member.node_id, error, exc_info=error)

    def close(self) -> None:
        """Stop for good. The transport awaits the task and the connection."""
        self._stopped = True
        if self._drain_timer is not None:
            self._drain_timer.cancel()
        self._task.cancel()
        if self._connection is not None:
            self._connection.close()
        self._dialling = False
        self._drop_queue()
        self._fail_pending()

    # -- messages and requests ----------------------------------------------------------------

    def send_message(self, message: Message) -> bool:
        """Queue a message; False if it is dropped.

        As long as it is not known what the peer speaks the message is kept beside its bytes, to be
        encoded again: bytes of an older version would keep from the peer what it should know.
        """
        context = self._context
        if self._connection is not None:
            return self._connection.send_message(message)
        body = context.encoder.encode(message, context.options.max_protocol_version)
        if len(body) >= context.options.max_frame_bytes:
            context.stats.dropped_oversize += 1
            return False
        return self._offer(encode_frame(FrameKind.MESSAGE, body), message)

    def _send_request(self, body: bytes, pending: PendingRequest) -> bool:
        connection = self._connection
        if connection is not None:
            return connection.send(connection.frame(FrameKind.REQUEST, body), pending)
        return self._offer(encode_frame(FrameKind.REQUEST, body), pending)

    def _offer(self, frame: bytes, source: PendingRequest | Message) -> bool:
        if self._queue.offer(frame, source):
            return True
        self._context.stats.dropped_full += 1
        return False

    async def request(self, payload: bytes, timeout_s: float) -> bytes:
        """See :meth:`raftcore.transport.base.Transport.request`."""
        options, peer = self._context.options, self.member.node_id
        if not self.reachable:
            raise UnknownPeerError(f"{peer} cannot be reached")
        if len(self._pending) >= options.max_requests:
            raise OverloadedError(f"{options.max_requests} requests to {peer} are unanswered")
        timeout_s = bounded_timeout_s(timeout_s)
        number = next(self._numbers)
        # Looked at twice: what is far too large is not even encoded.
        body = b""
        if len(payload) < options.max_frame_bytes:
            body = encode_request(Request(number, round(timeout_s * 1000), payload))
        if not body or len(body) >= options.max_frame_bytes:
            raise EntryTooLargeError(f"a request of {len(payload)} bytes does not fit a frame")
        pending = PendingRequest(self._context.loop.create_future())
        if not self._send_request(body, pending):
            raise OverloadedError(f"the queue to {peer} is full")
        self._context.stats.requests_out += 1
        self._pending[number] = pending
        try:
            async with asyncio.timeout(timeout_s):
                response = await pending.answer
        except TimeoutError:
            response = None
        finally:
            del self._pending[number]
            pending.answer.cancel()  # an unsent frame of it is skipped
        if response is None:
            raise self._unanswered(pending)
        return response_payload(response)

    def _unanswered(self, pending: PendingRequest) -> Exception:
        peer = self.member.node_id
        if not pending.sent:
            return UnknownPeerError(f"{peer} could not be reached")
        return OutcomeUnknownError(f"{peer} was asked and did not answer")

    def _on_response(self, response: Response) -> None:
        pending = self._pending.get(response.request_id)
        # An answer that came too late finds nobody.
        if pending is not None and not pending.answer.done():
            pending.answer.set_result(response)

    def _fail_pending(self) -> None:
        for pending in self._pending.values():
            if not pending.answer.done():
                pending.answer.set_result(None)

    # -- the connection -----------------------------------------------------------------------

    async def _run(self) -> None:
        options = self._context.options
        failures = 0
        while True:
            self._poked.clear()
            stood_s = await self._connect_once()
            if self._stopped:
                return
            failures = 0 if stood_s > options.backoff_max_s else failures + 1
            ceiling = min(options.backoff_max_s, options.backoff_min_s * 2 ** min(failures, 30))
            try:
                async with asyncio.timeout(self._context.random.uniform(ceiling / 2, ceiling)):
                    await self._poked.wait()
            except TimeoutError:
                pass  # the back-off is over

    async def _connect_once(self) -> float:
        """Dial, and stay until the connection is gone; for how many seconds it stood."""
        context = self._context
        self._dialling = True
        try:
            connection = await self._dial()
        except (OSError, TimeoutError, WireError, HandshakeRefusedError) as error:
            context.stats.connect_failures += 1
            self._report(error)
            return 0.0
        finally:
            self._dialling = False
            if self._connection is None:
                self._drop_queue()
                self._fail_pending()
        self._last_refusal = ""
        since = context.loop.time()
        await asyncio.shield(connection.done)
        return context.loop.time() - since

    async def _dial(self) -> OutboundConnection:
        """A connection over which the peer has welcomed us."""
        context = self._context
        welcomed: asyncio.Future[None] = context.loop.create_future()
        connection: OutboundConnection | None = None

        def on_welcomed(connection: OutboundConnection) -> None:
            self._on_up(connection)
            if not welcomed.done():
                welcomed.set_result(None)

        def on_closed(connection: OutboundConnection) -> None:
            if not welcomed.done():
                ended = ConnectionResetError("closed during the handshake")
                loss = connection.loss if isinstance(connection.loss, OSError) else None
                welcomed.set_exception(connection.refusal or loss or ended)
            self._on_down(connection)

        try:
            host, port = parse_address(self.member.address)
            async with asyncio.timeout(context.options.connect_timeout_s):
                _, connection = await context.loop.create_connection(
                    lambda: OutboundConnection(
                        context, self._queue, self.member, on_welcomed, self._on_response, on_closed
                    ),
                    host,
                    port,
                    **tls_arguments(context),
                )
                await welcomed
        except BaseException as error:
            if connection is not None:
                connection.abort()
            # UnicodeError, of a host that cannot be encoded, is a ValueError. But so are some
            # errors of TLS.
            if isinstance(error, ValueError) and not isinstance(error, OSError):
                raise ConnectionError(str(error)) from error
            raise
        finally:
            if not welcomed.cancel() and not welcomed.cancelled():
                welcomed.exception()  # seen, also when the wait had timed out just before
        return connection

    def _on_up(self, connection: OutboundConnection) -> None:
        self._connection = connection
        self._dialling = False
        self._context.stats.connects += 1
        log.info("connected to %s", self.member.node_id)
        if self._stopped:
            connection.finish()

    def _on_down(self, connection: OutboundConnection) -> None:
        if self._connection is not connection:
            return
        self._connection = None
        self._drop_queue()
        self._fail_pending()
        if not self._stopped:
            self._context.stats.losses += 1
            log.info("lost the connection to %s", self.member.node_id)
            self._context.receiver.on_peer_lost(self.member.node_id)

    def _drop_queue(self) -> None:
        self._context.stats.dropped_disconnected += self._queue.clear()

    def _report(self, error: Exception) -> None:
        """Count; and log a refusal once, not at every attempt."""
        if isinstance(error, ssl.SSLError):
            self._context.stats.tls_failures += 1
            error = HandshakeRefusedError(RefusalCode.CERTIFICATE, f"TLS failed: {error}")
        if not isinstance(error, HandshakeRefusedError):
            return
        # The peer may name a code of its own: only known ones become labels.
        known = error.code in RefusalCode.__members__.values()
        self._context.stats.rejected[str(error.code) if known else "other"] += 1
        if error.code == self._last_refusal:
            return
        self._last_refusal = error.code
        log.warning("%s: %s: %s", self.member.node_id, error.code, error.detail)
        identity = self._context.membership.identity
        meant = removed_subject(identity.cluster_id, identity.incarnation)
        if error.code == RefusalCode.REMOVED and error.subject == meant:
            self._context.receiver.on_removed(error.detail)


def tls_arguments(context: Context) -> dict[str, Any]:
    """What ``create_connection`` is told about TLS, for the certificates in use now."""
    if context.tls is None:
        return {}
    return {
        "ssl": context.tls.client,
        "ssl_handshake_timeout": context.options.connect_timeout_s,
        "ssl_shutdown_timeout": context.options.close_timeout_s,
    }


def response_payload(response: Response) -> bytes:
    """What the peer's application said, as a value or as the exception it raised."""
    if response.status is ResponseStatus.OK:
        return response.payload
    if response.status is ResponseStatus.UNKNOWN:
        raise OutcomeUnknownError(response.detail)
    if response.code == NotLeaderError.code:
        raise NotLeaderError(response.leader_id or None)
    known = _REFUSALS.get(response.code)
    if known is not None:
        raise known(response.detail)
    error = RefusedError(response.detail)
    error.code = response.code or RefusedError.code
    raise error
