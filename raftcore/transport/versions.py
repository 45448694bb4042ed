"""Versions of the protocol between nodes, and what is done with what is newer.

A connection speaks the lower of its two ends' versions; every message says in which version it was
written. Version 1 is that of release 0.1, byte for byte. Version 2 adds fields at the end of some
messages and of both introductions, messages from the acceptor to the dialler, joining, and
compression.

What a peer may say that we do not know, if it has introduced itself with a version above ours:
further fields at the end of an introduction or a message are ignored, and messages of unknown types
are dropped and counted. Everything else that is not understood ends the connection.
"""

from __future__ import annotations

#: The newest protocol spoken here, and the oldest still understood.
PROTOCOL_VERSION = 2
MIN_PROTOCOL_VERSION = 1


def negotiate(ours: int, theirs: int) -> int:
    """The version that a connection between those two speaks."""
    return min(ours, theirs)
