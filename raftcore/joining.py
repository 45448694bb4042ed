"""How a node becomes a member of a running cluster: it asks until a configuration has it.

It takes two steps, because a node must not be added before it can take part. First any member tells
the joiner the cluster's id, so that the joiner can make its directory: an identity of its own with
a fresh incarnation, and an empty log. Then, with its node listening, it asks to be added; the
member that leads decides (:meth:`raftcore.transport.base.Receiver.on_join`), and the others say
where that one is.

A node id that the cluster has with another incarnation is refused: what that one acknowledged is
gone with its directory, so it has to be removed before its successor may come (rule 43).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence

from raftcore.core.types import Configuration, Member
from raftcore.errors import AlreadyBootstrappedError, BootstrapError, RemovedError
from raftcore.naming import check_node_id
from raftcore.transport.address import parse_address
from raftcore.transport.checks import WireError, check_configuration, check_member
from raftcore.transport.exchange import EXCHANGE_TIMEOUT_S, exchange
from raftcore.transport.handshake import (
    Facts,
    HandshakeRefusedError,
    Introduction,
    Joining,
    RefusalCode,
)
from raftcore.transport.tls import TlsContexts, TlsOptions

__all__ = ["find_cluster", "join_cluster"]

log = logging.getLogger("raftcore.joining")

_BACKOFF_MIN_S = 0.1
_BACKOFF_MAX_S = 5.0
#: A leader may think about a wish, see ``TransportOptions.join_timeout_s``.
_DECISION_TIMEOUT_S = 15.0
#: Addresses tried: those that were given, and the newest of those that were learnt.
_MAX_LEARNT = 16
#: How often a round goes to whoever is said to lead: more often, and one target that always names
#: another would keep us from the rest.
_MAX_HINTS = 2
#: Refusals that say nothing about what our cluster thinks of us: no member of it spoke.
_OF_STRANGERS = frozenset(
    (RefusalCode.CLUSTER_ID, RefusalCode.FORMING, RefusalCode.WRONG_NODE, RefusalCode.CERTIFICATE)
)

Tell = Callable[[str], None]


async def find_cluster(
    me: Member,
    targets: Sequence[str],
    *,
    on_progress: Tell | None = None,
    rng: random.Random | None = None,
    tls: TlsOptions | None = None,
) -> str:
    """The id of the cluster that one of ``targets`` belongs to. Changes nothing there.

    Never gives up by itself: cancel it, or bound it with :func:`asyncio.timeout`.

    Args:
        me: the member that this node would be; its incarnation must be durable already.
        targets: ``host:port`` of members.
        on_progress: told after every round that failed, in words for an operator.
        rng: draws the order and the jitter of the back-off; one of its own if not given.
        tls: certificates for mutual TLS.

    A refusal for good ends the search only if the leader said so, or all members that answered in
    one round: one that lags behind may not know what the others have changed.

    Raises:
        AlreadyBootstrappedError: the cluster has this node id with another incarnation.
        RemovedError: this incarnation was a member once, and was removed.
        BootstrapError: the targets are unusable.
        TlsError: the certificates can not be used.
    """
    search = _Search(me, "", targets, on_progress, rng, tls)
    return (await search.run(lambda _: True)).cluster_id


async def join_cluster(
    me: Member,
    cluster_id: str,
    targets: Sequence[str],
    *,
    on_progress: Tell | None = None,
    rng: random.Random | None = None,
    tls: TlsOptions | None = None,
    facts: Facts | None = None,
) -> Configuration:
    """Ask to be added until a configuration in force has this node; that configuration.

    This node has to be running by then, so that it can be brought up to date. Never gives up by
    itself, not even when refused: an operator may still say yes. Arguments and errors are those of
    :func:`find_cluster`; ``cluster_id`` is what that returned.
    """
    search = _Search(me, cluster_id, targets, on_progress, rng, tls, facts)
    welcome = await search.run(search.holds_us)
    return check_configuration(welcome.configuration)


class _Search:
    """One run of :func:`find_cluster` or :func:`join_cluster`."""

    def __init__(
        self,
        me: Member,
        cluster_id: str,
        targets: Sequence[str],
        on_progress: Tell | None,
        rng: random.Random | None,
        tls: TlsOptions | None,
        facts: Facts | None = None,
    ) -> None:
        if not targets:
            raise BootstrapError("nobody is named who could be asked to join")
        try:
            check_node_id(me.node_id)
            check_member(me)
            for address in (me.address, *targets):
                parse_address(address)
        except (ValueError, WireError) as error:
            raise BootstrapError(str(error)) from error
        self._me = me
        self._given = list(dict.fromkeys(targets))
        self._learnt: list[str] = []
        self._on_progress = on_progress
        # Jitter is no secret; a predictable one would only let joiners ask in step.
        self._random = rng or random.Random()  # noqa: S311
        self._tls = None if tls is None else TlsContexts(tls)
        self._problems: dict[str, str] = {}
        #: What was said for good in this round, by whom; who was said to lead; and whether a member
        #: saw a way still.
        self._verdicts: dict[str, BootstrapError] = {}
        self._leaders: set[str] = set()
        self._contested = False
        self._hello = Introduction(
            me.node_id,
            me.incarnation,
            cluster_id,
            facts=facts or Facts(),
            joining=Joining(me.address, me.voter, me.attributes),
        )
        #: A question that the leader decides about takes longer than one that anybody answers.
        self._timeout_s = _DECISION_TIMEOUT_S if cluster_id else EXCHANGE_TIMEOUT_S

    def holds_us(self, welcome: Introduction) -> bool:
        """Whether the configuration in that answer has this node as it is."""
        if not welcome.configuration:
            return False
        configuration = check_configuration(welcome.configuration)
        for known in configuration.members:
            self._learn(known.address)
        member = configuration.member(self._me.node_id)
        return (
            configuration.cluster_id == self._hello.cluster_id
            and member is not None
            and member.incarnation == self._me.incarnation
        )

    async def run(self, done: Callable[[Introduction], bool]) -> Introduction:
        """Ask round after round; the first answer that is ``done``.

        Raises:
            AlreadyBootstrappedError, RemovedError: the leader said so, or all who answered.
        """
        rounds = 0
        while True:
            self._problems.clear()
            self._verdicts.clear()
            self._leaders.clear()
            self._contested = False
            welcome = await self._round(done)
            if welcome is not None:
                return welcome
            self._end_if_final()
            self._report()
            ceiling = min(_BACKOFF_MAX_S, _BACKOFF_MIN_S * 2 ** min(rounds, 30))
            await asyncio.sleep(self._random.uniform(ceiling / 2, ceiling))
            rounds += 1

    async def _round(self, done: Callable[[Introduction], bool]) -> Introduction | None:
        """Ask everybody once, whoever is said to lead next; the answer that is done, or None."""
        waiting = list(self._given)
        self._random.shuffle(waiting)
        # First who was named last (it may lead), and the rest of what we were told after what the
        # operator told us.
        learnt = self._learnt[::-1]
        waiting = learnt[:1] + waiting + learnt[1:]
        asked: set[str] = set()
        hints = 0
        while waiting:
            address = waiting.pop(0)
            if address in asked or address == self._me.address:
                continue
            asked.add(address)
            try:
                async with asyncio.timeout(self._timeout_s):
                    welcome = await exchange(address, self._hello, self._tls)
                if self._fits(welcome, address):
                    self._contested = True
                    if done(welcome):
                        return welcome
                self._problems.setdefault(address, "it says that this node is no member yet")
            except HandshakeRefusedError as error:
                self._refused(address, error)
                if error.code == RefusalCode.NOT_LEADER and hints < _MAX_HINTS:
                    hints += 1
                    if self._learn(error.subject):
                        self._leaders.add(error.subject)
                        waiting.insert(0, error.subject)
            except (OSError, TimeoutError, WireError) as error:
                self._problems[address] = str(error) or type(error).__name__
        return None

    def _fits(self, welcome: Introduction, address: str) -> bool:
        wanted = self._hello.cluster_id
        if welcome.forming or not welcome.cluster_id:
            self._problems[address] = "it has no cluster yet"
        elif wanted and welcome.cluster_id != wanted:
            self._problems[address] = f"it belongs to cluster {welcome.cluster_id}, not {wanted}"
        else:
            return True
        return False

    def _refused(self, address: str, error: HandshakeRefusedError) -> None:
        """Take in a refusal."""
        self._problems[address] = f"{error.code}: {error.detail}"
        if error.code in (RefusalCode.ALREADY_BOOTSTRAPPED, RefusalCode.INCARNATION):
            self._verdicts[address] = AlreadyBootstrappedError(f"{address}: {error.detail}")
        elif error.code == RefusalCode.REMOVED and self._is_about_us(error.subject):
            self._verdicts[address] = RemovedError(f"{address}: {error.detail}")
        elif error.code not in _OF_STRANGERS and error.code != RefusalCode.REMOVED:
            self._contested = True

    def _end_if_final(self) -> None:
        """Raise what was said for good, unless whoever said it may be behind the others."""
        for address, verdict in self._verdicts.items():
            if not self._contested or address in self._leaders:
                raise verdict

    def _is_about_us(self, subject: str) -> bool:
        """Whether ``subject`` says that it is this incarnation that was removed."""
        cluster_id, _, incarnation = subject.rpartition("/")
        wanted = self._hello.cluster_id
        return incarnation == self._me.incarnation.hex() and wanted in ("", cluster_id)

    def _learn(self, address: str) -> bool:
        """Remember an address that a member named; whether it is one."""
        try:
            parse_address(address)
        except ValueError:
            return False
        if address in self._learnt:
            self._learnt.remove(address)
        self._learnt.append(address)
        del self._learnt[:-_MAX_LEARNT]
        return True

    def _report(self) -> None:
        problems = "; ".join(f"{address}: {text}" for address, text in self._problems.items())
        said = (
            f"{self._me.node_id} (incarnation {self._me.incarnation.hex()}) waits to join "
            f"{self._hello.cluster_id or 'a cluster'}: {problems or 'nobody to ask'}"
        )
        log.info("%s", said)
        if self._on_progress is not None:
            self._on_progress(said)
