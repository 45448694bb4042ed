"""What a node may be called.

The rule holds where an id comes into being: in a new data directory, on the list of founders, for
a new member. What a peer or a log brings is only bounded, as it always was, so that a cluster with
an id that would not be given today goes on.
"""

from __future__ import annotations

from raftcore.core.membership import MAX_NODE_ID_BYTES

__all__ = ["MAX_NODE_ID_BYTES", "check_node_id"]


def check_node_id(node_id: object) -> str:
    """``node_id``, if a node may be called that: printable characters and no white space, at most
    :data:`MAX_NODE_ID_BYTES` of UTF-8.

    Raises:
        ValueError: it can not be.
    """
    if not isinstance(node_id, str) or not node_id:
        raise ValueError(f"a node id is text and not empty, not {node_id!r:.80}")
    if not node_id.isprintable() or any(character.isspace() for character in node_id):
        raise ValueError(f"the node id {node_id!r:.80} has white space, or what can not be printed")
    if len(node_id.encode()) > MAX_NODE_ID_BYTES:
        raise ValueError(f"the node id {node_id!r:.80} is longer than {MAX_NODE_ID_BYTES} bytes")
    return node_id
