"""How a cluster is founded: every founder is seen once, then all begin with the same configuration.

Each founder starts with the same list of founders and an incarnation of its own, drawn when its
directory was made. They ask each other until each knows the incarnations of all; the configuration
that follows, and with it the cluster id, is the same everywhere.

Two founders must never begin with different configurations, or two clusters could each get a
majority of votes. A directory that is wiped while the cluster forms brings a new incarnation and so
another configuration. Therefore a founder does not begin as soon as it knows everybody, but when
every other founder has *said* that it would found the same cluster (the ``proposal`` of the
handshake). Why that is enough: let A begin with X and B with Y. B said X before A began, and A
said Y before B did. What a founder knows of another only moves from an older incarnation to a newer
one, so for A, which said Y before beginning with X, no incarnation in Y is newer than in X; for B
the reverse; hence X = Y. And once a majority holds X durably, a wiped founder cannot take part
again: those who hold X answer it ``already_bootstrapped`` (rule 43).

Only answers of dialled addresses are believed; whoever connects to us learns what we know and
changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from raftcore.core.types import Configuration, Member, NodeId
from raftcore.errors import AlreadyBootstrappedError, BootstrapError
from raftcore.transport.address import parse_address
from raftcore.transport.checks import WireError, check_configuration
from raftcore.transport.framing import Frame, FrameDecoder, FrameKind, encode_frame
from raftcore.transport.handshake import (
    MAX_HELLO_BYTES,
    MAX_WELCOME_BYTES,
    Founder,
    HandshakeRefusedError,
    Introduction,
    RefusalCode,
    decode_introduction,
    decode_refusal,
    encode_introduction,
    encode_refusal,
)

__all__ = ["FormationProgress", "Founder", "derive_cluster_id", "form_cluster"]

log = logging.getLogger("raftcore.formation")

_BACKOFF_MIN_S = 0.05
_BACKOFF_MAX_S = 1.0
#: The shortest time between two calls to one founder, however much it calls us.
_MIN_INTERVAL_S = 0.02
_EXCHANGE_TIMEOUT_S = 2.0
_HELLO_TIMEOUT_S = 5.0
_CLOSE_TIMEOUT_S = 1.0
_PROGRESS_INTERVAL_S = 1.0
_MAX_VISITORS = 64
_READ_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class FormationProgress:
    """How far the formation is.

    Args:
        known: founders whose incarnation is known, ourselves included.
        missing: founders that were not seen yet.
        unconfirmed: founders that were seen, but do not (yet) see the same founders as we do.
        problems: the last failure of each founder whose last call failed, as (node id, text).
    """

    known: tuple[NodeId, ...]
    missing: tuple[NodeId, ...]
    unconfirmed: tuple[NodeId, ...]
    problems: tuple[tuple[NodeId, str], ...]


def derive_cluster_id(founders: Sequence[tuple[Founder, bytes]]) -> str:
    """The cluster id that follows from the founders and their incarnations: 32 hex digits."""
    lines = sorted([f.node_id, incarnation.hex(), f.address] for f, incarnation in founders)
    return hashlib.sha256(json.dumps(lines).encode()).digest()[:16].hex()


async def form_cluster(
    *,
    node_id: NodeId,
    incarnation: bytes,
    founders: Sequence[Founder],
    listen: tuple[str, int],
    on_progress: Callable[[FormationProgress], None] | None = None,
    rng: random.Random | None = None,
) -> Configuration:
    """Find all founders, agree with them on the first configuration, and return it.

    Never gives up by itself: cancel it, or bound it with :func:`asyncio.timeout`. The listening
    socket is released before it returns. The caller then makes the configuration durable *before*
    it starts a transport, which answers the founders that missed the end.

    Args:
        node_id: which of the founders this is.
        incarnation: 16 bytes, stored durably before this call, the same at every retry.
        founders: the same list (in any order) on every founder.
        listen: host and port to listen on; peers use our address in ``founders``.
        on_progress: called about once per second.
        rng: draws the jitter of the back-off; one of its own if not given.

    Raises:
        AlreadyBootstrappedError: the founders run a cluster that does not have this incarnation.
        BootstrapError: the list is unusable, or another founder was given a different one.
        OSError: ``listen`` cannot be listened on.
    """
    ordered = _check_founders(node_id, founders)
    formation = _Formation(
        node_id,
        incarnation,
        ordered,
        on_progress or (lambda _: None),
        # Jitter is no secret; a predictable one would only let founders dial in step.
        rng or random.Random(),  # noqa: S311
    )
    if len(ordered) == 1:
        return formation.configuration()
    return await formation.run(listen)


def _check_founders(node_id: NodeId, founders: Sequence[Founder]) -> tuple[Founder, ...]:
    ordered = tuple(sorted(founders, key=lambda f: f.node_id))
    ids = [f.node_id for f in ordered]
    if node_id not in ids:
        raise BootstrapError(f"{node_id} is not among the founders {', '.join(ids)}")
    if len(set(ids)) != len(ids):
        raise BootstrapError("a node id is listed twice among the founders")
    if len({f.address for f in ordered}) != len(ordered):
        raise BootstrapError("an address is listed twice among the founders")
    for founder in ordered:
        try:
            parse_address(founder.address)
        except ValueError as error:
            raise BootstrapError(f"founder {founder.node_id}: {error}") from error
    return ordered


def describe_difference(ours: Sequence[Founder], theirs: Sequence[Founder]) -> str:
    """In words, how two lists of founders differ."""
    here, there = ({f.node_id: f for f in side} for side in (ours, theirs))
    parts = []
    for node_id in sorted(here.keys() | there.keys()):
        ours_, theirs_ = here.get(node_id), there.get(node_id)
        if ours_ == theirs_:
            continue
        if theirs_ is None:
            parts.append(f"{node_id} is only in ours")
        elif ours_ is None:
            parts.append(f"{node_id} is only in theirs")
        elif ours_.address != theirs_.address:
            parts.append(f"{node_id} is at {ours_.address} in ours and {theirs_.address} in theirs")
        else:
            parts.append(f"{node_id} has other attributes")
    return "; ".join(parts)


class _Formation:
    """One run of :func:`form_cluster`."""

    def __init__(
        self,
        node_id: NodeId,
        incarnation: bytes,
        founders: tuple[Founder, ...],
        on_progress: Callable[[FormationProgress], None],
        rng: random.Random,
    ) -> None:
        self._node_id = node_id
        self._incarnation = incarnation
        self._founders = founders
        self._others = tuple(f for f in founders if f.node_id != node_id)
        self._on_progress = on_progress
        self._random = rng
        self._answers: dict[NodeId, Introduction] = {}
        self._problems: dict[NodeId, str] = {}
        self._pokes = {f.node_id: asyncio.Event() for f in self._others}
        self._visitors: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._over = False
        self._proposal = ""
        if len(encode_introduction(self._introduction())) > MAX_HELLO_BYTES // 2:
            raise BootstrapError("the list of founders is too long")

    # -- what we know -------------------------------------------------------------------------

    def configuration(self) -> Configuration:
        """The configuration of all founders with the incarnations known; all must be known."""
        incarnations = {i: answer.incarnation for i, answer in self._answers.items()}
        incarnations[self._node_id] = self._incarnation
        pairs = [(f, incarnations[f.node_id]) for f in self._founders]
        members = tuple(
            Member(f.node_id, f.address, known, voter=True, attributes=f.attributes)
            for f, known in pairs
        )
        return Configuration(derive_cluster_id(pairs), members)

    def _introduction(self) -> Introduction:
        return Introduction(
            self._node_id,
            self._incarnation,
            forming=True,
            founders=self._founders,
            proposal=self._proposal,
        )

    def _needs(self, node_id: NodeId) -> bool:
        """Whether another answer of that founder could bring us further."""
        answer = self._answers.get(node_id)
        return answer is None or (self._proposal != "" and answer.proposal != self._proposal)

    def _progress(self) -> FormationProgress:
        unseen = [f.node_id for f in self._others if f.node_id not in self._answers]
        return FormationProgress(
            known=tuple(f.node_id for f in self._founders if f.node_id not in unseen),
            missing=tuple(unseen),
            unconfirmed=tuple(
                i for i, answer in self._answers.items() if answer.proposal != self._proposal
            ),
            problems=tuple(sorted(self._problems.items())),
        )

    def _learn(self, founder: Founder, answer: Introduction) -> Configuration | None:
        """Take in what ``founder`` said of itself; the configuration if that completes it.

        Raises:
            BootstrapError: it was given another list.
            HandshakeRefusedError: somebody else answers there.
            WireError: it hands out something that cannot be our configuration.
        """
        if answer.node_id != founder.node_id:
            raise HandshakeRefusedError(RefusalCode.WRONG_NODE, f"{answer.node_id} answers there")
        if not answer.forming:
            return self._adopt(answer)
        if answer.founders != self._founders:
            difference = describe_difference(self._founders, answer.founders)
            raise BootstrapError(
                f"{founder.node_id} was given another list of founders: {difference}"
            )
        self._answers[founder.node_id] = answer
        if len(self._answers) < len(self._others):
            return None
        configuration = self.configuration()
        if configuration.cluster_id != self._proposal:
            self._proposal = configuration.cluster_id
            for poke in self._pokes.values():
                poke.set()
        if any(a.proposal != self._proposal for a in self._answers.values()):
            return None
        return configuration

    def _adopt(self, answer: Introduction) -> Configuration:
        """The cluster was formed without us noticing, and it has us."""
        configuration = check_configuration(answer.configuration)
        member = configuration.member(self._node_id)
        if (
            configuration.cluster_id != answer.cluster_id
            or member is None
            or member.incarnation != self._incarnation
        ):
            raise WireError("the configuration handed out is not one of ours")
        return configuration

    # -- running ------------------------------------------------------------------------------

    async def run(self, listen: tuple[str, int]) -> Configuration:
        loop = asyncio.get_running_loop()
        # Not serving yet: cancelled in here, nothing must be left listening.
        server = await asyncio.start_server(
            self._accept, *listen, reuse_address=True, start_serving=False
        )
        result: asyncio.Future[Configuration] = loop.create_future()
        tasks = {loop.create_task(self._call_again_and_again(f)) for f in self._others}
        tasks.add(loop.create_task(self._report()))

        def ended(task: asyncio.Task[Configuration]) -> None:
            if result.done() or task.cancelled():
                return
            error = task.exception()
            if error is not None:
                result.set_exception(error)
            else:
                result.set_result(task.result())

        for task in tasks:
            task.add_done_callback(ended)
        try:
            await server.start_serving()
            return await result
        finally:
            self._over = True
            server.close()
            visitors = dict(self._visitors)
            for running in (*tasks, *visitors):
                running.cancel()
            await asyncio.gather(*tasks, *visitors, return_exceptions=True)
            for writer in visitors.values():
                writer.transport.abort()  # a task cancelled before its first step did not
            await server.wait_closed()

    async def _report(self) -> Configuration:
        while True:
            await asyncio.sleep(_PROGRESS_INTERVAL_S)
            progress = self._progress()
            log.info(
                "forming a cluster: missing %s, unconfirmed %s",
                ", ".join(progress.missing) or "nobody",
                ", ".join(progress.unconfirmed) or "nobody",
            )
            self._on_progress(progress)

    async def _call_again_and_again(self, founder: Founder) -> Configuration:
        poke = self._pokes[founder.node_id]
        attempts = 0
        while True:
            proposal = self._proposal
            poke.clear()
            try:
                answer = await self._call(founder)
                configuration = self._learn(founder, answer)
            except HandshakeRefusedError as error:
                if error.code == RefusalCode.ALREADY_BOOTSTRAPPED:
                    raise AlreadyBootstrappedError(f"{founder.node_id}: {error.detail}") from error
                self._problems[founder.node_id] = f"{error.code}: {error.detail}"
            except (OSError, TimeoutError, WireError) as error:
                self._problems[founder.node_id] = str(error) or type(error).__name__
            else:
                if configuration is not None:
                    return configuration
                self._problems.pop(founder.node_id, None)
            attempts = attempts + 1 if proposal == self._proposal else 0
            await self._wait(poke, attempts)

    async def _wait(self, poke: asyncio.Event, attempts: int) -> None:
        """Wait out the back-off, or until there is news; but not shorter than the least."""
        ceiling = min(_BACKOFF_MAX_S, _BACKOFF_MIN_S * 2 ** min(attempts, 30))
        await asyncio.sleep(_MIN_INTERVAL_S)
        with contextlib.suppress(TimeoutError):  # the back-off is over
            async with asyncio.timeout(self._random.uniform(ceiling / 2, ceiling)):
                await poke.wait()

    async def _call(self, founder: Founder) -> Introduction:
        """Introduce ourselves to ``founder``; what it says of itself."""
        async with asyncio.timeout(_EXCHANGE_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(*parse_address(founder.address))
            async with _closing(writer):
                if writer.get_extra_info("sockname") == writer.get_extra_info("peername"):
                    # Nobody listens there, and the kernel gave us that very port to dial from.
                    raise ConnectionRefusedError("nobody listens there")
                hello = encode_introduction(self._introduction())
                writer.write(encode_frame(FrameKind.HELLO, hello))
                frame = await _read_frame(reader, MAX_WELCOME_BYTES)
        if frame.kind is FrameKind.REFUSE:
            raise decode_refusal(frame.body)
        if frame.kind is not FrameKind.WELCOME:
            raise WireError(f"a {frame.kind.name} frame instead of an answer")
        return decode_introduction(frame.body)

    # -- being called -------------------------------------------------------------------------

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._over or len(self._visitors) >= _MAX_VISITORS:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._answer(reader, writer))
        self._visitors[task] = writer
        task.add_done_callback(self._visitors.pop)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with _closing(writer):
            try:
                async with asyncio.timeout(_HELLO_TIMEOUT_S):
                    frame = await _read_frame(reader, MAX_HELLO_BYTES)
                    writer.write(self._answer_to(frame))
                    await writer.drain()
            except (OSError, TimeoutError, WireError) as error:
                log.debug("a visitor left or made no sense: %s", error)

    def _answer_to(self, frame: Frame) -> bytes:
        try:
            welcome = self._welcome(frame)
        except HandshakeRefusedError as error:
            return encode_frame(FrameKind.REFUSE, encode_refusal(error))
        return encode_frame(FrameKind.WELCOME, encode_introduction(welcome))

    def _welcome(self, frame: Frame) -> Introduction:
        if frame.kind is not FrameKind.HELLO:
            raise HandshakeRefusedError(RefusalCode.BAD_HELLO, "expected a HELLO")
        hello = decode_introduction(frame.body)
        if not hello.forming:
            raise HandshakeRefusedError(RefusalCode.FORMING, "there is no cluster here yet")
        # It is evidently up: call it now rather than after the back-off.
        if hello.node_id in self._pokes and self._needs(hello.node_id):
            self._pokes[hello.node_id].set()
        return self._introduction()


@contextlib.asynccontextmanager
async def _closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
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


async def _read_frame(reader: asyncio.StreamReader, max_frame_bytes: int) -> Frame:
    """The first frame of the stream; the other side says nothing more."""
    decoder = FrameDecoder(max_frame_bytes)
    while (frame := decoder.next_frame()) is None:
        data = await reader.read(_READ_BYTES)
        if not data:
            raise ConnectionResetError("closed during the handshake")
        decoder.push(data)
    return frame
