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

The configuration's feature level is the lowest that a founder states, so founders of different
releases found a cluster that all of them can read. It is no part of the argument above: a founder
that comes back with another release keeps its incarnation, and what it states may go either way.
From level 2 on the level is part of the cluster id: as long as founders disagree about it they
propose different ids, and none of them begins.

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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from raftcore.core.types import (
    FEATURE_LEVEL,
    FIRST_FEATURE_LEVEL,
    Configuration,
    Member,
    NodeId,
)
from raftcore.errors import AlreadyBootstrappedError, BootstrapError
from raftcore.naming import check_node_id
from raftcore.transport.address import parse_address
from raftcore.transport.checks import (
    MAX_ADDRESS_BYTES,
    WireError,
    check_attributes,
    check_configuration,
    check_text,
)
from raftcore.transport.exchange import EXCHANGE_TIMEOUT_S, closing, exchange, read_frame
from raftcore.transport.framing import Frame, FrameKind, encode_frame
from raftcore.transport.handshake import (
    MAX_HELLO_BYTES,
    Facts,
    Founder,
    HandshakeRefusedError,
    Introduction,
    RefusalCode,
    decode_introduction,
    encode_introduction,
    encode_refusal,
)
from raftcore.transport.listener import listen_error
from raftcore.transport.tls import (
    TlsContexts,
    TlsOptions,
    check_certificate,
    check_plain_allowed,
)
from raftcore.transport.versions import PROTOCOL_VERSION

__all__ = [
    "FormationProgress",
    "FormedWithoutUsError",
    "Founder",
    "derive_cluster_id",
    "form_cluster",
]

log = logging.getLogger("raftcore.formation")

_BACKOFF_MIN_S = 0.05
_BACKOFF_MAX_S = 1.0
#: The shortest time between two calls to one founder, however much it calls us.
_MIN_INTERVAL_S = 0.02
_HELLO_TIMEOUT_S = 5.0
_PROGRESS_INTERVAL_S = 1.0
_MAX_VISITORS = 64
#: From the accept to the call of our protocol, in turns of the loop (with a margin).
_ACCEPT_TURNS = 5
_CLOSE_TIMEOUT_S = 1.0


class FormedWithoutUsError(Exception):
    """The cluster was formed long ago with this founder in it, and nobody has its first
    configuration any more: begin with an empty log, as one that joins does."""

    def __init__(self, cluster_id: str) -> None:
        super().__init__(f"cluster {cluster_id} was formed and has moved on since")
        self.cluster_id = cluster_id


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


def derive_cluster_id(
    founders: Sequence[tuple[Founder, bytes]], level: int = FIRST_FEATURE_LEVEL
) -> str:
    """The cluster id that follows from the founders, their incarnations and the feature level that
    all of them know: 32 hex digits. At level 1 it is that of release 0.1."""
    lines = sorted([f.node_id, incarnation.hex(), f.address] for f, incarnation in founders)
    what = lines if level == FIRST_FEATURE_LEVEL else {"founders": lines, "level": level}
    return hashlib.sha256(json.dumps(what).encode()).digest()[:16].hex()


async def form_cluster(
    *,
    node_id: NodeId,
    incarnation: bytes,
    founders: Sequence[Founder],
    listen: tuple[str, int],
    on_progress: Callable[[FormationProgress], None] | None = None,
    rng: random.Random | None = None,
    feature_level: int = FEATURE_LEVEL,
    max_protocol_version: int = PROTOCOL_VERSION,
    tls: TlsOptions | None = None,
    allow_plain: bool = False,
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
        feature_level: the newest feature level known here.
        max_protocol_version: the newest protocol version spoken here; version 1 has no feature
            levels.
        tls: certificates for mutual TLS, with all founders.
        allow_plain: listen without TLS although others than this machine can connect.

    Raises:
        FormedWithoutUsError: it was formed, and moved on beyond its first configuration.
        TlsError: no TLS and not allowed without, or the certificates can not be used.
        AlreadyBootstrappedError: the founders run a cluster that does not have this incarnation.
        BootstrapError: the list is unusable, or another founder was given a different one.
        ListenError: ``listen`` cannot be listened on.
    """
    ordered = _check_founders(node_id, founders)
    level = feature_level if max_protocol_version >= 2 else FIRST_FEATURE_LEVEL
    formation = _Formation(
        Introduction(
            node_id,
            incarnation,
            forming=True,
            founders=ordered,
            version=max_protocol_version,
            facts=Facts(level),
        ),
        on_progress or (lambda _: None),
        # Jitter is no secret; a predictable one would only let founders dial in step.
        rng or random.Random(),  # noqa: S311
        tls,
    )
    if len(ordered) == 1:
        return formation.configuration()
    if tls is None and not allow_plain:
        check_plain_allowed(listen[0])
    return await formation.run(listen)


def _check_founders(node_id: NodeId, founders: Sequence[Founder]) -> tuple[Founder, ...]:
    for founder in founders:
        _check_founder(founder)
    ordered = tuple(sorted(founders, key=lambda f: f.node_id))
    ids = [f.node_id for f in ordered]
    if node_id not in ids:
        raise BootstrapError(f"{node_id} is not among the founders {', '.join(ids)}")
    if len(set(ids)) != len(ids):
        raise BootstrapError("a node id is listed twice among the founders")
    if len({f.address for f in ordered}) != len(ordered):
        raise BootstrapError("an address is listed twice among the founders")
    return ordered


def _check_founder(founder: Founder) -> None:
    try:
        check_node_id(founder.node_id)
        check_text(founder.address, MAX_ADDRESS_BYTES)
        check_attributes(founder.attributes)
        parse_address(founder.address)
    except (ValueError, WireError) as error:
        raise BootstrapError(f"founder {founder.node_id!s:.80}: {error}") from error


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
        said: Introduction,
        on_progress: Callable[[FormationProgress], None],
        rng: random.Random,
        tls: TlsOptions | None,
    ) -> None:
        self._said = said
        self._founders = said.founders
        self._others = tuple(f for f in said.founders if f.node_id != said.node_id)
        self._on_progress = on_progress
        self._random = rng
        self._tls = None if tls is None else TlsContexts(tls)
        self._answers: dict[NodeId, Introduction] = {}
        self._problems: dict[NodeId, str] = {}
        self._pokes = {f.node_id: asyncio.Event() for f in self._others}
        self._visitors: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        #: Connections that came too late to be answered.
        self._late: list[asyncio.StreamWriter] = []
        self._over = False
        self._proposal = ""
        if len(encode_introduction(self._introduction())) > MAX_HELLO_BYTES // 2:
            raise BootstrapError("the list of founders is too long")

    # -- what we know -------------------------------------------------------------------------

    def configuration(self) -> Configuration:
        """The configuration of all founders with what is known of them; all must be known."""
        said = {**self._answers, self._said.node_id: self._said}
        level = min(introduction.facts.feature_level for introduction in said.values())
        pairs = [(f, said[f.node_id].incarnation) for f in self._founders]
        members = tuple(
            Member(f.node_id, f.address, known, voter=True, attributes=f.attributes)
            for f, known in pairs
        )
        return Configuration(derive_cluster_id(pairs, level), members, level=level)

    def _introduction(self) -> Introduction:
        return replace(self._said, proposal=self._proposal)

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
        if not answer.configuration:
            raise FormedWithoutUsError(answer.cluster_id)
        configuration = check_configuration(answer.configuration)
        member = configuration.member(self._said.node_id)
        if (
            configuration.cluster_id != answer.cluster_id
            or member is None
            or member.incarnation != self._said.incarnation
        ):
            raise WireError("the configuration handed out is not one of ours")
        return configuration

    # -- running ------------------------------------------------------------------------------

    async def run(self, listen: tuple[str, int]) -> Configuration:
        loop = asyncio.get_running_loop()
        # Not serving yet: cancelled in here, nothing must be left listening.
        host, port = listen
        try:
            server = await asyncio.start_server(
                self._accept,
                host,
                port,
                reuse_address=True,
                start_serving=False,
                ssl=None if self._tls is None else self._tls.server,
            )
        except OSError as error:
            raise listen_error(host, port, error) from error
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
            await _stop_accepting(server)
            server.close()
            visitors = dict(self._visitors)
            for running in (*tasks, *visitors):
                running.cancel()
            await asyncio.gather(*tasks, *visitors, return_exceptions=True)
            for writer in visitors.values():
                writer.transport.abort()  # a task cancelled before its first step did not
            await server.wait_closed()
            await self._end_late(visitors.values())

    async def _end_late(self, visitors: Iterable[asyncio.StreamWriter]) -> None:
        """Wait until their sockets are closed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                gone = (writer.wait_closed() for writer in (*visitors, *self._late))
                await asyncio.gather(*gone, return_exceptions=True)

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
        async with asyncio.timeout(EXCHANGE_TIMEOUT_S):
            return await exchange(founder.address, self._introduction(), self._tls)

    # -- being called -------------------------------------------------------------------------

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._over or len(self._visitors) >= _MAX_VISITORS:
            writer.transport.abort()
            if self._over:
                self._late.append(writer)
            return
        task = asyncio.get_running_loop().create_task(self._answer(reader, writer))
        self._visitors[task] = writer
        task.add_done_callback(self._visitors.pop)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with closing(writer):
            try:
                async with asyncio.timeout(_HELLO_TIMEOUT_S):
                    frame = await read_frame(reader, MAX_HELLO_BYTES)
                    writer.write(self._answer_to(frame, writer.transport))
                    await writer.drain()
            except (OSError, TimeoutError, WireError) as error:
                log.debug("a visitor left or made no sense: %s", error)

    def _answer_to(self, frame: Frame, transport: asyncio.BaseTransport) -> bytes:
        try:
            welcome = self._welcome(frame, transport)
        except HandshakeRefusedError as error:
            return encode_frame(FrameKind.REFUSE, encode_refusal(error, 1))
        return encode_frame(FrameKind.WELCOME, encode_introduction(welcome))

    def _welcome(self, frame: Frame, transport: asyncio.BaseTransport) -> Introduction:
        if frame.kind is not FrameKind.HELLO:
            raise HandshakeRefusedError(RefusalCode.BAD_HELLO, "expected a HELLO")
        hello = decode_introduction(frame.body, self._said.version)
        check_certificate(transport, hello.node_id)
        if not hello.forming:
            raise HandshakeRefusedError(RefusalCode.FORMING, "there is no cluster here yet")
        # It is evidently up: call it now rather than after the back-off.
        if hello.node_id in self._pokes and self._needs(hello.node_id):
            self._pokes[hello.node_id].set()
        return self._introduction()


async def _stop_accepting(server: asyncio.Server) -> None:
    """Let the loop finish what it has accepted.

    It needs some turns from the accept to the call of our protocol, and if the server is closed
    meanwhile, it forgets the socket unclosed.
    """
    loop = asyncio.get_running_loop()
    for sock in server.sockets:
        loop.remove_reader(sock.fileno())  # nothing to remove on uvloop, which needs none of this
    for _ in range(_ACCEPT_TURNS):
        await asyncio.sleep(0)
