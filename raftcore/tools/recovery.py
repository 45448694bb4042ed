"""A new cluster from the survivors of one that lost its quorum for good.

Without a quorum nobody can know which entries were committed. What *can* be known is said before
anything is done: which log is the best one, whether the members that are gone could have committed
anything that it does not hold, what of that is proven, and what of the log itself was perhaps never
acknowledged. Then a new directory is made; the survivors are never changed.

Why the best log is the one that would win an election (last term, then last index): if the missing
members are no quorum, every committed entry is on some survivor, and by leader completeness (thesis
3.6) then also in the log that is at least as up to date as that survivor's.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raftcore.core.quorum import majority_size
from raftcore.core.types import Configuration, Member, NodeId, Position
from raftcore.errors import IdentityError, LogCorruptError, RefusedError, StorageError
from raftcore.storage.base import Identity
from raftcore.storage.closed import ClosedDirectory, ClosedLog
from raftcore.tools.comparison import Comparison, compare
from raftcore.tools.progress import Progress, silent
from raftcore.tools.rebuilding import (
    AS_BEFORE,
    NewMember,
    Rebuilt,
    Source,
    check_outside,
    rebuild,
    salvaged_source,
    verified_source,
)

#: More directories than any cluster has members.
MAX_SURVIVORS = 32


@dataclass(frozen=True, slots=True)
class Survivor:
    """One directory that was given.

    ``problem`` says what is wrong with it, None if nothing; ``last`` is then None too, unless its
    sound beginning was salvaged. ``doubt`` says why it may have lost
    what it once acknowledged (it is in quarantine): its log can be built on, but it does not count
    as holding what its members' vote stood for.
    """

    path: Path
    identity: Identity
    last: Position | None
    term: int
    commit_hint: int
    problem: str | None = None
    doubt: str | None = None


@dataclass(frozen=True, slots=True)
class Loss:
    """What may be lost by building on the chosen log.

    ``possible``: the missing members can have committed entries that no survivor holds.
    ``after_index``: everything from the next index on is what that is about. ``proven_to``: a
    survivor knows that entries up to there were committed although the chosen log does not hold
    them; 0 if none does. ``newest_unix_ms``: when a leader appended the newest entry that is held;
    writes acknowledged later may be lost; 0 when not known.
    """

    possible: bool
    after_index: int
    proven_to: int
    newest_unix_ms: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What :func:`plan_recovery` found and proposes.

    ``unconfirmed`` is the range (first, last) of entries that are held but not known to have been
    committed: writes among them may have been reported as "outcome unknown", and become permanent.
    None if there are none. ``quorum_here``: the survivors are a quorum, so there is nothing to
    recover from.
    """

    cluster_id: str
    survivors: tuple[Survivor, ...]
    chosen: int
    configuration: Configuration
    configuration_index: int
    missing: tuple[Member, ...]
    quorum_size: int
    quorum_here: bool
    loss: Loss
    unconfirmed: tuple[int, int] | None
    comparison: Comparison

    @property
    def best(self) -> Survivor:
        return self.survivors[self.chosen]


class Recovery:
    """Survivors, locked and read, with the plan for them. Made by :func:`plan_recovery`."""

    def __init__(self, plan: Plan, source: Source) -> None:
        self.plan = plan
        self._source = source

    def execute(
        self,
        into: str | os.PathLike[str],
        *,
        confirm: str,
        member: NewMember = AS_BEFORE,
        despite_quorum: bool = False,
        allow_unsupported_fs: bool = False,
        on_progress: Progress = silent,
    ) -> Rebuilt:
        """Make ``into`` the directory of a new cluster with the chosen log. See :func:`rebuild`.

        ``confirm`` must be the id of the cluster that is given up.

        Raises:
            RefusedError: not confirmed, or the survivors are a quorum and ``despite_quorum`` is not
                given, or ``into`` is in a survivor, or :func:`rebuild` refused. Nothing was made.
            StorageError: see :func:`rebuild`.
        """
        plan = self.plan
        if confirm != plan.cluster_id:
            raise RefusedError(f"{confirm!r} is not the id of the cluster: {plan.cluster_id}")
        if plan.quorum_here and not despite_quorum:
            raise RefusedError("the survivors are a quorum: start them, nothing needs recovering")
        check_outside(into, [survivor.path for survivor in plan.survivors])
        return rebuild(
            self._source,
            into,
            member,
            kind="recovered",
            term=max(survivor.term for survivor in plan.survivors),
            details=_details(plan),
            allow_unsupported_fs=allow_unsupported_fs,
            on_progress=on_progress,
        )


def _details(plan: Plan) -> dict[str, Any]:
    """The report in short, for ORIGIN."""
    return {
        "survivors": [
            {"node_id": s.identity.node_id, "incarnation": s.identity.incarnation.hex()}
            for s in plan.survivors
        ],
        "missing": [
            {"node_id": m.node_id, "incarnation": m.incarnation.hex()} for m in plan.missing
        ],
        "loss_possible": plan.loss.possible,
        "proven_lost_to": plan.loss.proven_to,
        "unconfirmed": plan.unconfirmed,
    }


@contextlib.contextmanager
def plan_recovery(
    paths: Sequence[str | os.PathLike[str]],
    *,
    salvage: bool = False,
    on_progress: Progress = silent,
) -> Iterator[Recovery]:
    """Read the surviving directories of one cluster; locked for the time, never changed.

    With ``salvage`` the sound beginning of a damaged log can be built on too. Its node counts as
    missing all the same: what it lost it may have acknowledged.

    Raises:
        LockedError: a node runs on one of them.
        IdentityError: one has no identity, or they are of several clusters, or of one node.
        LogCorruptError: none can be built on, or two have committed different entries.
    """
    if not 0 < len(paths) <= MAX_SURVIVORS:
        raise RefusedError(f"between 1 and {MAX_SURVIVORS} directories can be compared")
    with contextlib.ExitStack() as held:
        directories = [held.enter_context(ClosedDirectory.open(path)) for path in paths]
        identities = [directory.identity() for directory in directories]
        _check_one_cluster(identities)
        read = []
        for number, (directory, identity) in enumerate(zip(directories, identities, strict=True)):
            on_progress("verifying survivors", number, len(directories))
            read.append(_read(held, directory, identity, salvage=salvage))
        comparison = compare([(s.path, log) for s, log, _ in read if log and not s.problem])
        if comparison.conflict:
            texts = [d.explanation for d in comparison.differences if "CORRUPTION" in d.explanation]
            raise LogCorruptError(texts[0])
        plan, source = _plan([(s, source) for s, _, source in read], comparison)
        yield Recovery(plan, source)


def _check_one_cluster(identities: Sequence[Identity]) -> None:
    clusters = sorted({identity.cluster_id for identity in identities})
    if len(clusters) > 1:
        raise IdentityError(f"these are directories of several clusters: {', '.join(clusters)}")
    nodes = [identity.node_id for identity in identities]
    twice = sorted({node for node in nodes if nodes.count(node) > 1})
    if twice:
        raise IdentityError(f"{', '.join(twice)} is given more than once: decide for one directory")


def _read(
    held: contextlib.ExitStack, directory: ClosedDirectory, identity: Identity, *, salvage: bool
) -> tuple[Survivor, ClosedLog | None, Source | None]:
    floor = directory.floor()
    try:
        log = held.enter_context(directory.log())
    except StorageError as error:
        doubt = directory.doubt(None)
        return Survivor(directory.path, identity, None, 0, 0, str(error), doubt), None, None
    shape, pointer = log.records.shape, log.records.pointer
    known = max(shape.commit_hint, 0 if pointer is None else pointer.index)
    term = max(shape.hard_state.term, 0 if floor is None else floor.term)
    doubt = directory.doubt(log)
    source, problem = _source(directory, log, salvage=salvage)
    last = None if source is None else source.shape.tip.position
    return Survivor(directory.path, identity, last, term, known, problem, doubt), log, source


def _source(
    directory: ClosedDirectory, log: ClosedLog, *, salvage: bool
) -> tuple[Source | None, str | None]:
    """What can be built on, and what is wrong with it."""
    try:
        return verified_source(directory, log), None
    except StorageError as error:
        if not salvage:
            return None, str(error)
        try:
            return salvaged_source(directory, log), str(error)
        except StorageError as second:
            return None, f"{error}; {second}"


def _plan(
    read: Sequence[tuple[Survivor, Source | None]], comparison: Comparison
) -> tuple[Plan, Source]:
    survivors = tuple(survivor for survivor, _ in read)
    usable = [(s.last, number) for number, s in enumerate(survivors) if s.last is not None]
    if not usable:
        problems = "; ".join(f"{s.path}: {s.problem}" for s in survivors)
        raise LogCorruptError(f"no directory can be built on: {problems}")
    best = max(usable, key=lambda pair: (pair[0], -pair[1]))[1]
    source = read[best][1]
    assert source is not None, "a survivor with a last position has been verified"
    index, configuration = source.configurations[-1]
    present = _trusted(survivors, configuration)
    tip = source.shape.tip.index
    known = max(survivor.commit_hint for survivor in survivors)
    relevant, earlier_unknown = _configurations_that_count(source)
    gone = [_missing(survivors, c) for c in relevant]
    loss = Loss(
        possible=any(_can_commit(c, ids) for c, ids in zip(relevant, gone, strict=True))
        or earlier_unknown
        or known > tip,
        after_index=tip,
        proven_to=known if known > tip else 0,
        newest_unix_ms=_newest_ms(source),
    )
    plan = Plan(
        cluster_id=source.identity.cluster_id,
        survivors=survivors,
        chosen=best,
        configuration=configuration,
        configuration_index=index,
        missing=tuple(m for m in configuration.members if m.node_id not in present),
        quorum_size=majority_size(configuration.voters),
        quorum_here=all(_can_commit(c, _trusted(survivors, c)) for c in relevant),
        loss=loss,
        unconfirmed=(known + 1, tip) if known < tip else None,
        comparison=comparison,
    )
    return plan, source


def _configurations_that_count(source: Source) -> tuple[list[Configuration], bool]:
    """The last one known to be committed and all after it: any of them may be the one by which
    the missing members counted a quorum. And whether none of them is known to be committed, so that
    an earlier one, which nothing is left of, may be the one."""
    shape = source.shape
    # A snapshot holds committed entries only; entry 1 is what the founders agreed on.
    committed = max(1, shape.commit_hint, shape.snapshot_index)
    known = [n for n, (index, _) in enumerate(source.configurations) if index <= committed]
    first = known[-1] if known else 0
    return [configuration for _, configuration in source.configurations[first:]], not known


def _trusted(survivors: Sequence[Survivor], configuration: Configuration) -> set[NodeId]:
    """Members whose directory is here, sound, beyond doubt, and of the right incarnation."""
    here = {
        (s.identity.node_id, s.identity.incarnation)
        for s in survivors
        if s.problem is None and s.doubt is None
    }
    return {m.node_id for m in configuration.members if (m.node_id, m.incarnation) in here}


def _missing(survivors: Sequence[Survivor], configuration: Configuration) -> set[NodeId]:
    """All that may have acknowledged something which no survivor holds any more."""
    everybody = {m.node_id for m in configuration.members} | set(configuration.old_voters)
    return everybody - _trusted(survivors, configuration)


def _can_commit(configuration: Configuration, nodes: set[NodeId]) -> bool:
    """Whether ``nodes`` alone are a quorum, in joint mode of both majorities (thesis 4.3)."""
    groups = [group for group in (configuration.voters, configuration.old_voters) if group]
    return bool(groups) and all(
        len(nodes.intersection(group)) >= majority_size(group) for group in groups
    )


def _newest_ms(source: Source) -> int:
    """The leader's clock at the newest entry that carries one."""
    newest = 0
    for entry in source.entries():
        newest = max(newest, entry.timestamp_ms)
    return newest
