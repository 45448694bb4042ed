"""What nodes stepped by hand have written and told about membership, in short."""

from __future__ import annotations

from jepsen_like.sim.manual import ManualNode
from raftcore.core import effects as ef
from raftcore.core.effects import MembershipOutcome
from raftcore.core.membership import decode_configuration
from raftcore.core.types import Configuration, EntryType


def outcomes(node: ManualNode) -> list[tuple[int, MembershipOutcome]]:
    """Token and outcome of every request that ended."""
    return [(e.token, e.outcome) for e in node.effects if isinstance(e, ef.MembershipFinished)]


def details(node: ManualNode) -> list[str]:
    return [e.detail for e in node.effects if isinstance(e, ef.MembershipFinished)]


def stages(node: ManualNode) -> list[str]:
    """The configurations in a node's log, in short: voters, old voters after a slash, learners in
    brackets, an exclamation mark for staging."""
    found = [decode_configuration(e.data) for e in node.image.entries
             if e.type is EntryType.CONFIGURATION]  # fmt: skip
    return [short(c) for c in found]


def short(c: Configuration) -> str:
    text = "".join(c.voters)
    text += f"/{''.join(c.old_voters)}" if c.old_voters else ""
    text += f"({''.join(c.learners)})" if c.learners else ""
    return text + ("!" if c.target else "")


def removals(node: ManualNode) -> int:
    return sum(isinstance(e, ef.Removed) for e in node.effects)


def peers(node: ManualNode) -> str:
    return "".join(m.node_id for m in node.raft.peers)
