"""Membership changes: the leader's side, step by step, and what every node learns of them.

A leader appends the next configuration only when the one in force is committed, and something of
its own term too (rules 37, 40; the single-server bug of 2015). How far a change is stands in the
log alone: a successor finds it there and takes the next step, whoever asked for the change.

    stable --> staging --> joint --> stable          new voters, or the leader loses its vote
    stable --> joint --> stable                      voters only go
    stable --> stable                                learners, addresses, lease, feature level
    staging --> stable                               a new voter did not catch up
    staging --> (any of the above)                   another request takes its place
"""

from __future__ import annotations

from dataclasses import replace

from raftcore.core import election, replication, transfer
from raftcore.core.catchup import Departing, Rounds, Staging
from raftcore.core.effects import MembershipFinished, MembershipOutcome, Removed
from raftcore.core.events import MembershipRequested
from raftcore.core.membership import (
    check_lease,
    encode_configuration,
    final_of,
    is_stable,
    joint_of,
    plan_change,
    without_target,
)
from raftcore.core.messages import TimeoutNow
from raftcore.core.progress import Progress
from raftcore.core.state import CoreState, Leadership, PendingChange, WaitFor
from raftcore.core.types import (
    FIRST_FEATURE_LEVEL,
    Configuration,
    Entry,
    EntryType,
    Lease,
    Target,
)

#: A clock that is wrong by more than a tenth is broken, and who says so has misplaced a digit.
MAX_CLOCK_ERROR_PPM = 100_000

# -- asking for a change ------------------------------------------------------------------------


def request(s: CoreState, event: MembershipRequested) -> None:
    """Begin a change, or say why not."""
    leadership = s.leadership
    if leadership is None:
        _answer(s, event.token, MembershipOutcome.NOT_LEADER, "this node does not lead")
        return
    refusal = _refusal(s, leadership, event.version)
    if refusal is not None:
        _answer(s, event.token, *refusal)
        return
    try:
        _check_terms(s, event.lease)
        first = plan_change(s.configuration, event.members, event.lease, s.node_id)
    except ValueError as error:
        _answer(s, event.token, MembershipOutcome.INVALID, str(error))
        return
    _finish(s, MembershipOutcome.UNKNOWN, "another request took its place")
    known = first == s.configuration
    if known and is_stable(first):
        _answer(s, event.token, MembershipOutcome.DONE, "it is so already")
        return
    # What is under way already, perhaps begun by another leader, only gets another to wait for it.
    index = s.configurations.current_index if known else s.log.last_index + 1
    s.pending_change = PendingChange(event.token, event.members, event.lease, index)
    if not known:
        append(s, leadership, first)


def _refusal(
    s: CoreState, leadership: Leadership, version: int
) -> tuple[MembershipOutcome, str] | None:
    """Why no change can begin now, whatever is wanted."""
    if s.log.committed < leadership.first_index:
        return MembershipOutcome.NOT_READY, "nothing of this leader's term is committed yet"
    index, configuration = s.configurations.current_index, s.configuration
    if version != index:
        detail = f"the configuration in force is that at {index}, not {version}"
        return MembershipOutcome.STALE_VERSION, detail
    if s.log.committed < index or configuration.old_voters:
        return MembershipOutcome.IN_PROGRESS, "another change is under way"
    if leadership.transfer is not None:
        return MembershipOutcome.IN_PROGRESS, "a transfer of leadership is under way"
    return None


def _check_terms(s: CoreState, lease: Lease | None) -> None:
    """Raises ValueError."""
    if s.configuration.level == FIRST_FEATURE_LEVEL:
        raise ValueError("members can not change until all members run a release that knows how to")
    if lease is not None:
        check_lease(lease)
        if lease.clock_error_ppm > MAX_CLOCK_ERROR_PPM:
            raise ValueError(f"clocks that differ by {lease.clock_error_ppm} ppm hold no lease")
        if lease.election_timeout_ms < 2 * s.config.heartbeat_ms:
            raise ValueError(
                f"a lease of {lease.election_timeout_ms} ms is shorter than two heartbeats of "
                f"{s.config.heartbeat_ms} ms"
            )


# -- taking the next step -----------------------------------------------------------------------


def append(s: CoreState, leadership: Leadership, configuration: Configuration) -> None:
    """Append ``configuration``: it is in force here from now on (rule 38)."""
    entry = Entry(
        s.log.last_index + 1,
        s.term,
        EntryType.CONFIGURATION,
        encode_configuration(configuration),
        feature_level=configuration.level,
    )
    replication.append_as_leader(s, leadership, (entry,))
    sync_peers(s, leadership)
    replication.broadcast(s, leadership)


def proceed(s: CoreState, leadership: Leadership) -> None:
    """Take the next step of a change, if the log is ready for it."""
    committed = s.log.committed
    if committed < s.configurations.current_index or committed < leadership.first_index:
        return
    if leadership.transfer is not None:
        return  # what is appended now would only hold up its target
    configuration = s.configuration
    if configuration.old_voters:
        append(s, leadership, final_of(configuration))
    elif configuration.target is not None:
        _stage(s, leadership, configuration, configuration.target)
    elif not s.is_voter:
        _step_down(s, leadership)
    else:
        _raise_level(s, leadership, configuration)


def _stage(
    s: CoreState, leadership: Leadership, configuration: Configuration, target: Target
) -> None:
    """Judge the new voters; go on when all have caught up, give up when one does not."""
    staging = leadership.staging
    if staging is None or staging.index != s.configurations.current_index:
        staging = leadership.staging = Staging(s.configurations.current_index)
        for node in sorted({*target.voters} - {*configuration.voters}):
            staging.rounds[node] = Rounds(s.log.last_index, s.now_ns, s.now_ns)
    for node, rounds in staging.rounds.items():
        progress = leadership.progress[node]
        rounds.observe(progress, s.log.last_index, s.now_ns, s.election_timeout_ns)
        failure = rounds.failure(s.config, s.now_ns)
        if failure is not None:
            if s.pending_change is not None and s.pending_change.target == target:
                s.pending_change.given_up = f"{node} {failure}; it stays a learner"
            append(s, leadership, without_target(configuration))
            return
    if not all(rounds.caught_up for rounds in staging.rounds.values()):
        return
    if s.node_id not in target.voters and not staging.handed_over:
        # Who comes next leads the change to its end, and commits count on its own disk (4.2.2).
        staging.handed_over = True
        if transfer.hand_over(s, leadership, target.voters):
            return
    append(s, leadership, joint_of(configuration))


def _step_down(s: CoreState, leadership: Leadership) -> None:
    """The configuration without this leader's vote is committed (rule 41)."""
    successor = transfer.best_target(s, leadership, s.configuration.voters)
    if successor is not None:
        s.send(successor, TimeoutNow(s.node_id, s.term), WaitFor.NOTHING)
    election.become_follower(s, s.term, None)


def _raise_level(s: CoreState, leadership: Leadership, configuration: Configuration) -> None:
    """All members know a newer feature level than the cluster's: use it from now on."""
    if configuration.level >= s.config.feature_level:
        return
    others = [leadership.progress[m.node_id] for m in configuration.members
              if m.node_id != s.node_id]  # fmt: skip
    level = min([s.config.feature_level, *(progress.feature_level for progress in others)])
    if level > configuration.level:
        append(s, leadership, replace(configuration, level=level))


# -- whom a leader talks to ---------------------------------------------------------------------


def sync_peers(s: CoreState, leadership: Leadership) -> None:
    """Follow the configurations: begin with new members, part with removed ones.

    A member is removed when the configuration without it is committed. It is told so for one
    election timeout more, or it would campaign against a cluster that it no longer belongs to.
    """
    progress, departing = leadership.progress, leadership.departing
    span = s.configurations.since(s.log.committed)
    if span == leadership.span and not departing:
        return
    leadership.span = span
    known = {m.node_id: m for m in s.announced_peers}
    members = {m.node_id for _, c in span for m in c.members} - {s.node_id}
    for node in sorted(members):
        if node in departing:  # the same id, but another incarnation: nothing is known of it
            del departing[node], progress[node]
        if node not in progress:
            progress[node] = Progress(
                s.log.last_index + 1,
                s.now_ns,
                after_sequence=leadership.sequence,
                after_counter=leadership.close_counter(),
            )
    for node in [node for node in progress if node not in members]:
        gone = departing.get(node)
        if gone is None:
            deadline_ns = s.now_ns + s.election_timeout_ns
            departing[node] = Departing(known[node], span[0][0], deadline_ns)
        elif s.now_ns >= gone.deadline_ns:
            del departing[node], progress[node]


# -- what every node learns ---------------------------------------------------------------------


def settle(s: CoreState) -> None:
    """After any event: what became of a request made here, and whether we are still a member."""
    if s.pending_change is not None:
        _judge_pending(s, s.pending_change)
    for index, configuration in s.configurations.between(s.judged_index, s.log.committed):
        s.judged_index = index
        _judge_membership(s, index, configuration)


def _judge_pending(s: CoreState, pending: PendingChange) -> None:
    """The committed log decides, whoever wrote it."""
    if s.log.committed < pending.index:
        return
    index, configuration = s.configurations.committed(s.log.committed)
    if index >= pending.index and not is_stable(configuration):
        return
    if (configuration.members, configuration.lease) == (pending.members, pending.lease):
        _finish(s, MembershipOutcome.DONE, "the wanted configuration is committed")
    elif pending.given_up is not None:
        _finish(s, MembershipOutcome.NOT_CAUGHT_UP, pending.given_up)
    else:
        _finish(s, MembershipOutcome.UNKNOWN, "another configuration is committed")


def _judge_membership(s: CoreState, index: int, configuration: Configuration) -> None:
    if s.is_member_of(configuration):
        s.was_member = True
    elif not s.removed and (s.was_member or s.config.incarnation in configuration.retired):
        s.removed = True
        s.emit(Removed(index))


def _finish(s: CoreState, outcome: MembershipOutcome, detail: str) -> None:
    """The end of the pending request, if there is one."""
    if s.pending_change is not None:
        token, s.pending_change = s.pending_change.token, None
        _answer(s, token, outcome, detail)


def _answer(s: CoreState, token: int, outcome: MembershipOutcome, detail: str) -> None:
    version = s.configurations.current_index
    s.emit(MembershipFinished(token, outcome, version, detail, s.leader_id))
