"""Connections that have not introduced themselves yet, bounded in number.

Whoever can connect can be a stranger, so one of them must not keep the members out: a newcomer
takes the place of the stranger that has been silent longest, of its own host if that has its share
already. A member introduces itself at once and needs its place only for a moment.
"""

from __future__ import annotations

from raftcore.transport.connection import FramedConnection


class Strangers:
    """The strangers that are connected now, oldest first.

    Args:
        most: how many there may be.
        most_per_host: how many of one address.
    """

    def __init__(self, most: int, most_per_host: int) -> None:
        self._most = most
        self._most_per_host = most_per_host
        self._hosts: dict[FramedConnection, str] = {}

    def __len__(self) -> int:
        return len(self._hosts)

    def __contains__(self, stranger: FramedConnection) -> bool:
        return stranger in self._hosts

    def discard(self, stranger: FramedConnection) -> None:
        """It has introduced itself, or is gone."""
        self._hosts.pop(stranger, None)

    def add(self, stranger: FramedConnection, host: str) -> FramedConnection | None:
        """Take in one more; the one that loses its place for it and has to be hung up on."""
        dropped: FramedConnection | None = None
        of_host = [known for known, theirs in self._hosts.items() if theirs == host]
        if len(of_host) >= self._most_per_host:
            dropped = of_host[0]
        elif len(self._hosts) >= self._most:
            dropped = next(iter(self._hosts))
        if dropped is not None:
            del self._hosts[dropped]
        self._hosts[stranger] = host
        return dropped
