"""From a data directory to everything a node needs: found or find the cluster, open the log.

The founders' list counts only on an empty directory; with a cluster in the directory it is not
looked at. A directory that is empty although a marker beside it says that a cluster lived there is
refused unless the founders' list names several members, who can then answer for themselves.

A node that joins a running cluster begins with an empty log (:mod:`raftcore.joining`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from raftcore.core import types
from raftcore.core.membership import decode_configuration
from raftcore.core.types import FIRST_FEATURE_LEVEL, Configuration, NodeId
from raftcore.errors import BootstrapError
from raftcore.formation import FormationProgress, FormedWithoutUsError, Founder, form_cluster
from raftcore.joining import find_cluster, join_cluster
from raftcore.storage.base import Identity
from raftcore.storage.directory import DataDirectory
from raftcore.storage.lmdb_log import LmdbLog, open_log
from raftcore.transport.handshake import Facts
from raftcore.transport.options import TransportOptions
from raftcore.transport.tcp import TcpTransport
from raftcore.transport.tls import TlsOptions, check_own_certificate, check_plain_allowed

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Join:
    """The wish to become a member of a running cluster.

    Args:
        targets: ``host:port`` of members that may be asked.
        address: where this node's peers find it.
        voter: whether to become a voter, or a learner.
        attributes: the application's own, as in :class:`~raftcore.core.types.Member`.
    """

    targets: Sequence[str]
    address: str
    voter: bool = True
    attributes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Member:
    """An opened member: give ``storage`` and ``transport`` to a ``Node``, which closes them.

    ``founded_now`` says that this start made the directory. With ``joining`` the log does not have
    this node as a member yet: start the node, then await :meth:`become_member` beside it.
    """

    identity: Identity
    storage: LmdbLog
    transport: TcpTransport
    founded_now: bool
    joining: Join | None = None
    tls: TlsOptions | None = None

    async def become_member(
        self, on_progress: Callable[[str], None] | None = None
    ) -> Configuration | None:
        """Ask to be added until a configuration has this node; None if there is nothing to ask.

        Raises:
            AlreadyBootstrappedError, RemovedError: it can never be (see
                :func:`raftcore.joining.join_cluster`).
        """
        if self.joining is None:
            return None
        return await join_cluster(
            _member(self.identity.node_id, self.identity.incarnation, self.joining),
            self.identity.cluster_id,
            self.joining.targets,
            on_progress=on_progress,
            tls=self.tls,
        )


async def open_member(
    directory: DataDirectory,
    *,
    founders: Sequence[Founder] = (),
    listen: tuple[str, int],
    join: Join | None = None,
    storage: LmdbLog | None = None,
    on_progress: Callable[[str], None] | None = None,
    tls: TlsOptions | None = None,
    allow_plain: bool = False,
    options: TransportOptions | None = None,
    facts: Facts | None = None,
) -> Member:
    """Open a member's log and transport; if its directory is empty, found or find its cluster.

    Args:
        directory: the locked data directory; it stays the caller's to close.
        founders: first members of a new cluster, this node among them; a list of one founds a
            cluster of one at once, otherwise every founder has to be seen once.
        listen: host and port for peers.
        join: become a member of a running cluster instead; see :class:`Member`.
        storage: the directory's log, if it has been opened already.
        on_progress: told, at most about once a second, what founding or joining waits for.
        tls: certificates for mutual TLS between the members.
        allow_plain: listen without TLS although others than this machine can connect.
        options: bounds and waits of the transport.
        facts: what the node says of itself in handshakes; its runs are filled in here.

    Raises:
        StorageError: the directory or its log can not be used (each with an exit code).
        TlsError: no TLS and not allowed without, or the certificates can not be used, or are not
            for this node.
        ListenError: founding has to listen, and can not. (A port that is taken later is found when
            the node starts.)
        AlreadyBootstrappedError: the cluster knows this node id under another incarnation: this
            directory was wiped or replaced, and may never vote.
        RemovedError: this node was removed from the cluster.
        BootstrapError: the founders' lists differ, or a cluster lived here before.
    """
    if tls is None and not allow_plain:
        check_plain_allowed(listen[0])
    if tls is not None:
        await asyncio.to_thread(check_own_certificate, tls, directory.node_id)
    options, facts = options or TransportOptions(), facts or Facts()
    security = _Security(tls, allow_plain, options.max_protocol_version, facts.feature_level)
    founded_now = directory.identity is None
    if founded_now and join is not None:
        await _join(directory, join, security, on_progress)
    elif founded_now:
        await _found(directory, founders, listen, security, on_progress)
    opened_here = storage is None
    if storage is None:
        storage = await _opened(directory)
    identity, known = storage.identity, storage.configuration
    try:
        transport = TcpTransport(
            identity,
            listen,
            known,
            founding=await _finished(asyncio.to_thread(founding_configuration, storage)),
            facts=replace(facts, runs=storage.runs),
            options=options,
            tls=tls,
            allow_plain=allow_plain,
        )
    except BaseException:
        if opened_here:
            storage.close()
        raise
    outside = known.member(identity.node_id) is None
    return Member(
        identity, storage, transport, founded_now, joining=join if outside else None, tls=tls
    )


async def _opened(directory: DataDirectory) -> LmdbLog:
    """The directory's log. Cancelled meanwhile, it leaves no log open."""
    opening = asyncio.ensure_future(asyncio.to_thread(open_log, directory))
    try:
        return await _finished(opening)
    except asyncio.CancelledError:
        if not opening.cancelled() and opening.exception() is None:
            opening.result().close()
        raise


async def _finished(work: Awaitable[_T]) -> _T:
    """What a thread works out. A cancellation waits for it: the thread uses the log, which whoever
    cancels will close."""
    running = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise


@dataclass(frozen=True, slots=True)
class _Security:
    """How those who found or join talk to the others."""

    tls: TlsOptions | None
    allow_plain: bool
    max_protocol_version: int
    feature_level: int


def _member(node_id: NodeId, incarnation: bytes, join: Join) -> types.Member:
    return types.Member(node_id, join.address, incarnation, join.voter, join.attributes)


async def _join(
    directory: DataDirectory,
    join: Join,
    security: _Security,
    on_progress: Callable[[str], None] | None,
) -> None:
    """Learn which cluster it is, and make a directory with an identity and an empty log."""
    incarnation = await asyncio.to_thread(directory.founding_incarnation)
    cluster_id = await find_cluster(
        _member(directory.node_id, incarnation, join),
        join.targets,
        on_progress=on_progress,
        tls=security.tls,
    )
    await asyncio.to_thread(directory.join, cluster_id)
    logger.info("this directory is one of cluster %s now", cluster_id)


def check_may_found(directory: DataDirectory, founders: Sequence[Founder]) -> None:
    """Whether a start on this directory may create a member, before anything else is set up.

    Raises:
        BootstrapError: the directory is empty, and this node is no founder, or is alone on the
            list although a cluster lived here before.
    """
    if directory.identity is not None:
        return
    node_id = directory.node_id
    if node_id not in {founder.node_id for founder in founders}:
        raise BootstrapError(f"{node_id} is not among the founders, and {directory.path} is empty")
    marker = directory.marker()
    if marker is not None and len(founders) == 1:
        raise BootstrapError(
            f"{directory.path} is empty, but {directory.marker_path} says that cluster "
            f"{marker.cluster_id} ({', '.join(marker.members)}) lived there. If the data is really "
            f"meant to be gone, remove that file too"
        )


async def _found(
    directory: DataDirectory,
    founders: Sequence[Founder],
    listen: tuple[str, int],
    security: _Security,
    on_progress: Callable[[str], None] | None,
) -> None:
    check_may_found(directory, founders)
    node_id = directory.node_id
    incarnation = await asyncio.to_thread(directory.founding_incarnation)
    try:
        configuration = await form_cluster(
            node_id=node_id,
            incarnation=incarnation,
            founders=founders,
            listen=listen,
            on_progress=_told(on_progress),
            feature_level=security.feature_level,
            max_protocol_version=security.max_protocol_version,
            tls=security.tls,
            allow_plain=security.allow_plain,
        )
    except FormedWithoutUsError as formed:
        # A member with nothing in its log, as one that has just been added: the leader fills it.
        await asyncio.to_thread(directory.join, formed.cluster_id)
        logger.info("cluster %s was founded while this node was away", formed.cluster_id)
        return
    await asyncio.to_thread(directory.bootstrap, configuration)
    logger.info("cluster %s is founded", configuration.cluster_id)


def _told(
    on_progress: Callable[[str], None] | None,
) -> Callable[[FormationProgress], None] | None:
    if on_progress is None:
        return None
    tell = on_progress

    def report(progress: FormationProgress) -> None:
        if progress.missing:
            problems = dict(progress.problems)
            seen = [f"{node} ({problems.get(node, 'no answer yet')})" for node in progress.missing]
            tell(f"founding waits for {', '.join(seen)}")
        elif progress.unconfirmed:
            tell(f"founding waits for {', '.join(progress.unconfirmed)} to see the same founders")

    return report


def founding_configuration(storage: LmdbLog) -> Configuration | None:
    """What the cluster was founded with, if the log still tells: entry 1 of every founder's log."""
    first = storage.read(1, 1, 1)
    if first:
        return decode_configuration(first[0].data)
    snapshot = storage.newest_snapshot()
    if snapshot is not None and snapshot.configuration.level == FIRST_FEATURE_LEVEL:
        return snapshot.configuration  # that level knows no changes
    return None
