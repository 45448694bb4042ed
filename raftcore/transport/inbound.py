"""The accepting side: authenticate, then deliver messages and answer requests.

To a guest (:mod:`raftcore.transport.admission`) our messages go back over the connection that it
opened, as to a peer that we can not dial. A guest's requests are refused: what the application
offers is for members.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from raftcore.core.errors import PeerViolationError
from raftcore.core.types import Configuration, Member, NodeId
from raftcore.errors import (
    NotLeaderError,
    OutcomeUnknownError,
    OverloadedError,
    RefusedError,
    RemovedError,
    UnknownPeerError,
)
from raftcore.transport.admission import Standing
from raftcore.transport.base import Receiver
from raftcore.transport.connection import Context, FramedConnection, log, unexpected, worth_a_line
from raftcore.transport.framing import Frame, FrameKind, encode_frame
from raftcore.transport.handshake import (
    MAX_HELLO_BYTES,
    HandshakeRefusedError,
    Introduction,
    Joining,
    RefusalCode,
    decode_introduction,
    encode_introduction,
    encode_refusal,
    removed_subject,
)
from raftcore.transport.queue import SendQueue
from raftcore.transport.tls import check_certificate
from raftcore.transport.wire import (
    Request,
    Response,
    ResponseStatus,
    decode_request,
    encode_response,
)


class InboundConnection(FramedConnection):
    """A connection that a peer opened to us.

    Args:
        on_welcomed: called when the peer has introduced itself; ``peer`` and ``standing`` are set
            then. Raises HandshakeRefusedError if there is no room for it.
        on_closed: called when the connection is gone.
    """

    def __init__(
        self,
        context: Context,
        on_opened: Callable[[InboundConnection], None],
        on_welcomed: Callable[[InboundConnection], None],
        on_closed: Callable[[InboundConnection], None],
    ) -> None:
        options = context.options
        super().__init__(
            context, SendQueue(options.queue_frames, options.queue_bytes), MAX_HELLO_BYTES
        )
        self.peer: NodeId | None = None
        self.incarnation = b""
        self.standing = Standing.PEER
        self.carries = False  #: messages of ours went back over it
        self._asked = False  #: it is a joiner, and the node decides about it now
        self._their_version = 1
        self._on_opened = on_opened
        self._on_welcomed = on_welcomed
        self._on_closed = on_closed
        self._hello_timer: asyncio.TimerHandle | None = None

    @property
    def name(self) -> str:
        return self.peer or super().name

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._hello_timer = self.context.loop.call_later(
            self.context.options.hello_timeout_s,
            self.refuse,
            HandshakeRefusedError(RefusalCode.HELLO_TIMEOUT, "no HELLO in time"),
        )
        self._on_opened(self)

    def closed(self) -> None:
        self._stop_hello_timer()
        self._on_closed(self)

    def violation(self, error: PeerViolationError) -> None:
        if self.peer is None:
            self.context.stats.bad_frames += 1
            self.refuse(HandshakeRefusedError(RefusalCode.BAD_HELLO, str(error)))
        else:
            super().violation(error)

    def refuse(self, error: HandshakeRefusedError) -> None:
        """Say why, hang up, count. Nothing of the stranger was looked at."""
        refused = self.context.stats.refused
        refused[str(error.code)] += 1
        if worth_a_line(refused[str(error.code)]):
            log.warning("refused a connection from %s: %s: %s", self.name, error.code, error)
        self.write_now(encode_frame(FrameKind.REFUSE, encode_refusal(error, self._their_version)))
        self._stop_hello_timer()
        self.close()

    def frame_received(self, frame: Frame) -> None:
        if self.peer is None:
            self._hello(frame)
        elif frame.kind is FrameKind.MESSAGE:
            self.message_received(frame, self.peer)
        elif frame.kind is FrameKind.REQUEST:
            self._request(self.peer, decode_request(frame.body))
        else:
            raise unexpected(frame)

    # -- the handshake ------------------------------------------------------------------------

    def _hello(self, frame: Frame) -> None:
        if frame.kind is not FrameKind.HELLO or self._asked:
            raise unexpected(frame)
        newest = self.context.options.max_protocol_version
        try:
            hello = decode_introduction(frame.body, newest)
            self._their_version = hello.version
            assert self._transport is not None
            check_certificate(self._transport, hello.node_id)
            self._introduced(hello)
        except HandshakeRefusedError as error:
            self.refuse(error)

    def _introduced(self, hello: Introduction) -> None:
        membership = self.context.membership
        if hello.forming:
            self._welcome_and_close(membership.answer_founder(hello))
        elif hello.joining is not None:
            welcome = membership.answer_joiner(hello)
            if welcome is None:
                self._ask_for(hello, hello.joining)
            else:
                self._welcome_and_close(welcome)
        else:
            self._let_in(hello, membership.admit(hello))

    def _welcome(self, welcome: Introduction) -> None:
        self.write_now(encode_frame(FrameKind.WELCOME, encode_introduction(welcome)))
        self._stop_hello_timer()

    def _welcome_and_close(self, welcome: Introduction) -> None:
        """It has what it needs, and comes back as a member."""
        self._welcome(welcome)
        self.close()

    def _let_in(self, hello: Introduction, standing: Standing) -> None:
        self.peer, self.incarnation, self.standing = hello.node_id, hello.incarnation, standing
        try:
            self._on_welcomed(self)
        except HandshakeRefusedError:
            self.peer = None
            raise
        self._welcome(self.context.membership.introduction())
        self.accept_frames(hello)

    def _ask_for(self, hello: Introduction, joining: Joining) -> None:
        """Let the node decide about a joiner; bounded in number and in time."""
        context = self.context
        if context.joins >= context.options.max_joins:
            raise HandshakeRefusedError(RefusalCode.TOO_MANY, "others are joining just now")
        member = Member(
            hello.node_id, joining.address, hello.incarnation, joining.voter, joining.attributes
        )
        self._asked = True
        self._stop_hello_timer()
        context.joins += 1
        task = context.loop.create_task(self._decide(member))
        context.tasks.add(task)
        task.add_done_callback(context.tasks.discard)

    async def _decide(self, joiner: Member) -> None:
        context = self.context
        try:
            async with asyncio.timeout(context.options.join_timeout_s):
                configuration = await context.receiver.on_join(joiner)
        except RefusedError as error:
            self.refuse(_join_refusal(error, joiner, context.membership.configuration))
        except TimeoutError:
            self.refuse(HandshakeRefusedError(RefusalCode.REFUSED, "not decided in time"))
        except Exception:  # noqa: BLE001 (logged with its traceback, and refused)
            log.exception("deciding about %s failed", joiner.node_id)
            self.refuse(
                HandshakeRefusedError(RefusalCode.REFUSED, "it failed; see the log of this node")
            )
        else:
            self._welcome_and_close(context.membership.membership_proof(configuration))
        finally:
            context.joins -= 1

    def _stop_hello_timer(self) -> None:
        if self._hello_timer is not None:
            self._hello_timer.cancel()
            self._hello_timer = None

    # -- requests -----------------------------------------------------------------------------

    def _request(self, peer: NodeId, request: Request) -> None:
        context = self.context
        context.stats.requests_in += 1
        if self.standing is Standing.GUEST:
            stranger = UnknownPeerError(f"{peer} is not a member here (yet)")
            self._respond(refused(request.request_id, stranger))
            return
        if context.handling[peer] >= context.options.max_requests:
            refusal = OverloadedError(f"{context.options.max_requests} requests are being answered")
            self._respond(refused(request.request_id, refusal))
            return
        context.handling[peer] += 1
        task = context.loop.create_task(self._handle(peer, request))
        context.tasks.add(task)
        task.add_done_callback(context.tasks.discard)

    async def _handle(self, peer: NodeId, request: Request) -> None:
        try:
            self._respond(await answer_request(self.context.receiver, peer, request))
        finally:
            self.context.handling[peer] -= 1

    def _respond(self, response: Response) -> None:
        limit = self.context.options.max_frame_bytes
        # Looked at twice: what is far too large is not even encoded.
        body = encode_response(response) if len(response.payload) < limit else b""
        if not body or len(body) >= limit:
            self.context.stats.dropped_oversize += 1
            body = encode_response(unknown(response.request_id, "the answer is too large"))
        if not self.closing:
            self.send(self.frame(FrameKind.RESPONSE, body))


def _join_refusal(
    error: RefusedError, joiner: Member, configuration: Configuration
) -> HandshakeRefusedError:
    """What a joiner is told; where the leader is, if that is whom it has to ask, and who was
    removed, if it was."""
    subject = ""
    if isinstance(error, NotLeaderError) and error.leader_id is not None:
        leader = configuration.member(error.leader_id)
        subject = leader.address if leader else ""
    elif isinstance(error, RemovedError):
        subject = removed_subject(configuration.cluster_id, joiner.incarnation)
    return HandshakeRefusedError(error.code, str(error), subject)


async def answer_request(receiver: Receiver, peer: NodeId, request: Request) -> Response:
    """Let the application answer, and put what it did into a response.

    The asker has given up after ``timeout_ms``, so the handler is cancelled then. Only a
    RefusedError says that nothing happened; after any other exception nobody can know.
    """
    number = request.request_id
    try:
        async with asyncio.timeout(request.timeout_ms / 1000):
            payload = await receiver.on_request(peer, request.payload)
    except RefusedError as error:
        return refused(number, error)
    except OutcomeUnknownError as error:
        return unknown(number, str(error), error.code)
    except TimeoutError:
        return unknown(number, "not answered in time")
    except Exception:  # noqa: BLE001 (logged with its traceback, and told as "unknown")
        log.exception("a request from %s failed", peer)
        return unknown(number, "the request failed; see the log of the node that was asked")
    return Response(number, ResponseStatus.OK, payload)


def refused(number: int, error: RefusedError) -> Response:
    leader_id = error.leader_id if isinstance(error, NotLeaderError) else None
    return Response(number, ResponseStatus.REFUSED, b"", error.code, str(error), leader_id or "")


def unknown(number: int, detail: str, code: str = OutcomeUnknownError.code) -> Response:
    return Response(number, ResponseStatus.UNKNOWN, b"", code, detail)
