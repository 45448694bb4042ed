"""Who is let in: members, guests, joiners and late founders, and who is told why not.

A *guest* is a node of our cluster that none of our configurations has: it was added and we have not
heard of it, or we are the new one and our log is still empty. Raft needs both sides to talk (rule
42: a server takes requests from servers that are not in its latest configuration), so guests are
let in as long as their incarnation is not retired (rule 43).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from raftcore.core.membership import encode_configuration
from raftcore.core.types import Configuration, Member, NodeId
from raftcore.storage.base import Identity
from raftcore.transport.handshake import (
    SILENT,
    Facts,
    HandshakeRefusedError,
    Introduction,
    RefusalCode,
    introduce,
    removed_subject,
)
from raftcore.transport.versions import PROTOCOL_VERSION

#: Peers whose highest count of runs is remembered.
_MAX_REMEMBERED = 4096


class Standing(Enum):
    PEER = "peer"  #: a member of one of our configurations
    GUEST = "guest"  #: of our cluster, and unknown here (yet)


@dataclass(slots=True)
class Membership:
    """Who we are and whom we know; what the answer to a handshake rests on."""

    identity: Identity
    configuration: Configuration
    #: what the cluster was founded with; None if that is not in the log any more
    founding: Configuration | None
    peers: dict[NodeId, Member] = field(default_factory=dict)
    facts: Facts = SILENT
    version: int = PROTOCOL_VERSION

    def change(self, configuration: Configuration, peers: Sequence[Member]) -> None:
        self.configuration = configuration
        self.peers = {member.node_id: member for member in peers}

    def introduction(self) -> Introduction:
        return introduce(self.identity, self.facts, self.version)

    def standing(self, node_id: NodeId, incarnation: bytes, version: int) -> Standing:
        """What that node of our cluster is to us.

        A member of a configuration that may still decide something is a peer even if a newer one,
        not committed yet, retires it.

        Raises:
            HandshakeRefusedError: it is not let in.
        """
        member = self.peers.get(node_id) or self.configuration.member(node_id)
        if node_id == self.identity.node_id:
            raise HandshakeRefusedError(
                RefusalCode.UNKNOWN_NODE, f"{node_id} is not one of its own peers"
            )
        if member is not None and member.incarnation == incarnation:
            return Standing.PEER
        if incarnation in self.configuration.retired:
            raise HandshakeRefusedError(
                RefusalCode.REMOVED,
                f"{node_id} with incarnation {incarnation.hex()} was removed from the cluster",
                removed_subject(self.identity.cluster_id, incarnation),
            )
        if member is not None:
            raise HandshakeRefusedError(
                RefusalCode.INCARNATION,
                f"{node_id} is known with another incarnation; a node whose directory was lost "
                "comes back as a new member",
            )
        if version < 2:
            # It would not take our messages over its own connection.
            raise HandshakeRefusedError(
                RefusalCode.UNKNOWN_NODE,
                f"{node_id} is not one of {self.identity.node_id}'s peers",
            )
        return Standing.GUEST

    def admit(self, hello: Introduction) -> Standing:
        """What the dialler is to us.

        Raises:
            HandshakeRefusedError: it is not let in.
        """
        check_cluster(hello, self.identity)
        return self.standing(hello.node_id, hello.incarnation, min(hello.version, self.version))

    def answer_founder(self, hello: Introduction) -> Introduction:
        """A founder that missed the end of the formation gets the result; nobody else may vote.

        Another incarnation means that the founder's directory was wiped: what it had acknowledged
        is gone, so it may come back only as a new member (rule 43). When the log does not hold the
        first configuration any more, the founder gets none and has to begin as a joiner does, with
        an empty log.

        Raises:
            HandshakeRefusedError: it is not a founder with the incarnation that we know.
        """
        for known in (self.founding, self.configuration):
            member = known.member(hello.node_id) if known is not None else None
            if known is not None and (member is None or member.incarnation != hello.incarnation):
                raise self._exists_without(hello)
        if self.founding is None:
            if min(hello.version, self.version) < 2:
                raise self._exists_without(hello)
            return self.introduction()
        return replace(self.introduction(), configuration=encode_configuration(self.founding))

    def _exists_without(self, hello: Introduction) -> HandshakeRefusedError:
        return HandshakeRefusedError(
            RefusalCode.ALREADY_BOOTSTRAPPED,
            f"cluster {self.identity.cluster_id} exists and does not have {hello.node_id} "
            f"with incarnation {hello.incarnation.hex()}",
        )

    def answer_joiner(self, hello: Introduction) -> Introduction | None:
        """The WELCOME for a node that wants to become a member, or None: the node must decide.

        One that does not know the cluster yet is told its id and nothing else: it needs that to
        make its directory, and is only let in once that is done.

        Raises:
            HandshakeRefusedError: it can not become a member as it is.
        """
        identity = self.identity
        if hello.cluster_id not in ("", identity.cluster_id):
            raise _another_cluster(hello, identity)
        if (hello.node_id, hello.incarnation) == (identity.node_id, identity.incarnation):
            raise HandshakeRefusedError(RefusalCode.WRONG_NODE, "a node does not join itself")
        if hello.node_id == identity.node_id:
            raise self._remove_first(hello)
        try:
            standing = self.standing(hello.node_id, hello.incarnation, hello.version)
        except HandshakeRefusedError as error:
            if error.code == RefusalCode.INCARNATION:
                raise self._remove_first(hello) from error
            raise
        if standing is Standing.PEER:
            return self.membership_proof()
        return self.introduction() if not hello.cluster_id else None

    def _remove_first(self, hello: Introduction) -> HandshakeRefusedError:
        return HandshakeRefusedError(
            RefusalCode.ALREADY_BOOTSTRAPPED,
            f"cluster {self.identity.cluster_id} has {hello.node_id} with another incarnation "
            f"than {hello.incarnation.hex()}: remove it first",
        )

    def membership_proof(self, configuration: Configuration | None = None) -> Introduction:
        """The WELCOME that shows a joiner the configuration in force."""
        shown = configuration or self.configuration
        return replace(self.introduction(), configuration=encode_configuration(shown))


def check_cluster(other: Introduction, identity: Identity) -> None:
    """Whether ``other`` speaks for a formed cluster, and for ours.

    Raises:
        HandshakeRefusedError: it does not.
    """
    if other.forming:
        raise HandshakeRefusedError(RefusalCode.FORMING, f"{other.node_id} has no cluster yet")
    if other.cluster_id != identity.cluster_id:
        raise _another_cluster(other, identity)


def _another_cluster(other: Introduction, identity: Identity) -> HandshakeRefusedError:
    return HandshakeRefusedError(
        RefusalCode.CLUSTER_ID, f"this is cluster {identity.cluster_id}, not {other.cluster_id}"
    )


def check_welcome(welcome: Introduction, expected: Member, identity: Identity) -> None:
    """Whether the one who answered is the member that was dialled.

    Raises:
        HandshakeRefusedError: it is somebody else.
    """
    if welcome.node_id != expected.node_id:
        raise HandshakeRefusedError(
            RefusalCode.WRONG_NODE, f"{welcome.node_id} answers where {expected.node_id} should be"
        )
    check_cluster(welcome, identity)
    if welcome.incarnation != expected.incarnation:
        raise HandshakeRefusedError(
            RefusalCode.INCARNATION,
            f"{expected.node_id} answers with another incarnation than it is known with",
        )


class RunsSeen:
    """Remembers the highest count of runs that each node has stated.

    A count that goes back proves that the node's directory was replaced by an older copy of itself:
    what it acknowledged since that copy was made is gone from its disk. A count that stays proves
    nothing.
    """

    def __init__(self) -> None:
        self._highest: dict[tuple[NodeId, bytes], int] = {}

    def went_back(self, introduction: Introduction) -> bool:
        """Take in what a node said; whether it is less than it said before."""
        runs = introduction.facts.runs
        if runs == 0:
            return False
        key = introduction.node_id, introduction.incarnation
        highest = self._highest.pop(key, 0)
        self._highest[key] = max(highest, runs)
        if len(self._highest) > _MAX_REMEMBERED:
            del self._highest[next(iter(self._highest))]
        return runs < highest
