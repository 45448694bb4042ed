"""Leadership transfer (thesis 3.10): bounded, with an outcome, and gone with the leadership.

While it is under way proposals are refused, so that the target can catch up; when the target holds
the whole log it is told to campaign at once. If that does not end this leadership within one
election timeout, or is aborted before, the transfer is given up and proposals are accepted again.

Losing the leadership is not the end of it: somebody else may have won. The outcome is a success
only once this node hears the target lead a later term.
"""

from __future__ import annotations

from raftcore.core import election, health, replication
from raftcore.core.effects import TransferFinished, TransferRefusal
from raftcore.core.messages import TimeoutNow
from raftcore.core.state import CoreState, Leadership, Role, Transfer, WaitFor
from raftcore.core.types import NodeId


def request(s: CoreState, target: NodeId | None) -> None:
    leadership = s.leadership
    if leadership is None:
        _refuse(s, target, TransferRefusal.NOT_LEADER, "this node does not lead")
        return
    if leadership.transfer is not None:
        _refuse(s, target, TransferRefusal.IN_PROGRESS, "a transfer is under way already")
        return
    chosen = target or best_target(s, leadership, s.configuration.voters)
    if chosen is None or chosen == s.node_id or chosen not in s.configuration.voters:
        _refuse(s, target, TransferRefusal.NO_TARGET, "there is no other voter to hand over to")
        return
    if not health.can_lead(s, leadership.progress[chosen]):
        _refuse(s, target, TransferRefusal.NO_TARGET, f"the disk of {chosen} is not healthy")
        return
    leadership.transfer = Transfer(chosen, s.now_ns + s.election_timeout_ns)
    proceed(s, leadership)


def _refuse(s: CoreState, target: NodeId | None, refusal: TransferRefusal, detail: str) -> None:
    s.emit(TransferFinished(False, target, detail, refusal=refusal))


def hand_over(s: CoreState, leadership: Leadership, among: tuple[NodeId, ...]) -> bool:
    """Hand over to one of those, for this leader is to lose its vote; False if there is nobody.

    Nobody asked for it, so nobody is told the outcome.
    """
    chosen = best_target(s, leadership, among)
    if chosen is None:
        return False
    deadline_ns = s.now_ns + s.election_timeout_ns
    leadership.transfer = Transfer(chosen, deadline_ns, requested=False)
    proceed(s, leadership)
    return True


def best_target(s: CoreState, leadership: Leadership, among: tuple[NodeId, ...]) -> NodeId | None:
    """The voter in recent contact that is furthest along."""
    alive = [
        (progress.match_index, peer)
        for peer, progress in leadership.progress.items()
        if peer in s.configuration.voters
        and peer in among
        and s.now_ns - progress.last_contact_ns < s.election_timeout_ns
        and health.can_lead(s, progress)
    ]
    return max(alive)[1] if alive else None


def proceed(s: CoreState, leadership: Leadership) -> None:
    """Tell the target to campaign once it holds everything."""
    transfer = leadership.transfer
    if transfer is None or transfer.timeout_now_sent:
        return
    progress = leadership.progress[transfer.target]
    if progress.match_index == s.log.last_index:
        transfer.timeout_now_sent = leadership.lease_broken = True
        s.send(transfer.target, TimeoutNow(s.node_id, s.term), WaitFor.NOTHING)
    else:
        replication.send_append(s, leadership, transfer.target, progress)


def check_deadline(s: CoreState, leadership: Leadership) -> None:
    transfer = leadership.transfer
    if transfer is not None and s.now_ns >= transfer.deadline_ns:
        _give_up(s, leadership, transfer, "the target did not take over in time")


def abort(s: CoreState) -> None:
    """Somebody wants to keep this leadership after all. Once it is lost there is nothing to abort:
    :func:`settle_handed_over` tells what came of it."""
    leadership = s.leadership
    if leadership is not None and leadership.transfer is not None:
        _give_up(s, leadership, leadership.transfer, "the transfer was aborted")


def _give_up(s: CoreState, leadership: Leadership, transfer: Transfer, detail: str) -> None:
    """This leader goes on; proposals are accepted again."""
    leadership.transfer = None
    if transfer.requested:
        sent = transfer.timeout_now_sent  # it may obey yet
        s.emit(TransferFinished(False, transfer.target, detail, unknown=sent))


def settle_handed_over(s: CoreState) -> None:
    """The order was sent and the leadership is over: who leads now?"""
    handed = s.handed_over
    if handed is None:
        return
    if s.leader_id == handed.target:
        outcome = TransferFinished(True, handed.target, "the target leads a later term")
    elif s.leader_id is not None:
        detail = f"{s.leader_id} leads a later term instead"
        outcome = TransferFinished(False, handed.target, detail)
    elif s.now_ns >= handed.deadline_ns:
        detail = "leadership is over and no new leader is known yet"
        outcome = TransferFinished(False, handed.target, detail, unknown=True)
    else:
        return
    s.handed_over = None
    s.emit(outcome)


def on_timeout_now(s: CoreState) -> None:
    """The leader of this term asks us to take over; no pre-vote, it would find a live leader."""
    if s.role is Role.FOLLOWER and election.may_campaign(s):
        election.campaign(s, transfer=True)
