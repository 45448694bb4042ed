"""From a data directory to everything a node needs: found or find the cluster, open the log.

The founders' list counts only on an empty directory; with a cluster in the directory it is not
looked at. A directory that is empty although a marker beside it says that a cluster lived there is
refused unless the founders' list names several members, who can then answer for themselves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raftcore.core.membership import decode_configuration
from raftcore.core.types import Configuration
from raftcore.errors import BootstrapError
from raftcore.formation import FormationProgress, Founder, form_cluster
from raftcore.storage.base import Identity
from raftcore.storage.directory import DataDirectory
from raftcore.storage.lmdb_log import LmdbLog, open_log
from raftcore.transport.tcp import TcpTransport

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Member:
    """An opened member: give ``storage`` and ``transport`` to a ``Node``, which closes them."""

    identity: Identity
    storage: LmdbLog
    transport: TcpTransport
    founded_now: bool


async def open_member(
    directory: DataDirectory,
    *,
    founders: Sequence[Founder],
    listen: tuple[str, int],
    storage: LmdbLog | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> Member:
    """Open a member's log and transport, founding the cluster first if its directory is empty.

    Args:
        directory: the locked data directory; it stays the caller's to close.
        founders: first members of a new cluster, this node among them; a list of one founds a
            cluster of one at once, otherwise every founder has to be seen once.
        listen: host and port for peers.
        storage: the directory's log, if it has been opened already.
        on_progress: told, at most about once a second, what founding waits for.

    Raises:
        StorageError: the directory or its log can not be used (each with an exit code).
        AlreadyBootstrappedError: the founders run a cluster that knows this node id under another
            incarnation: this directory was wiped or replaced, and may never vote.
        BootstrapError: the founders' lists differ, or a cluster lived here before.
    """
    founded_now = directory.identity is None
    if founded_now:
        await _found(directory, founders, listen, on_progress)
    if storage is None:
        storage = await asyncio.to_thread(open_log, directory)
    founding = await asyncio.to_thread(stored_configuration, storage)
    transport = TcpTransport(storage.identity, listen, founding)
    return Member(storage.identity, storage, transport, founded_now)


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
    on_progress: Callable[[str], None] | None,
) -> None:
    check_may_found(directory, founders)
    node_id = directory.node_id
    incarnation = await asyncio.to_thread(directory.founding_incarnation)
    configuration = await form_cluster(
        node_id=node_id,
        incarnation=incarnation,
        founders=founders,
        listen=listen,
        on_progress=_told(on_progress),
    )
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


def stored_configuration(storage: LmdbLog) -> Configuration:
    """The members that the log names. Membership is fixed so far, so this is also what a founder
    that missed the end of the formation is given."""
    first = storage.read(1, 1, 1)
    if first:
        return decode_configuration(first[0].data)
    snapshot = storage.newest_snapshot()
    if snapshot is None:  # the log is empty: this node joins, or lost everything
        return Configuration(storage.identity.cluster_id, ())
    return snapshot.configuration
