"""Request rates by the generic cell rate algorithm, in bounded memory.

GCRA keeps one number per client: the time at which its bucket would be empty again. A client may
burst one second's worth and then goes on at the rate.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
MAX_CLIENTS: Final = 65_536
MAX_FORWARDED_HOPS: Final = 32


class RateLimiter:
    """At most ``per_second`` requests per client, with bursts of ``burst_s`` seconds' worth.

    The ``max_clients`` most recently seen clients are remembered; a forgotten client starts with a
    full bucket, which is never worse for it than being remembered.
    """

    def __init__(
        self, per_second: float, *, burst_s: float = 1.0, max_clients: int = MAX_CLIENTS
    ) -> None:
        self._interval_s = 1.0 / per_second
        self._tolerance_s = max(burst_s - self._interval_s, 0.0)
        self._max_clients = max_clients
        self._free_at: OrderedDict[str | bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._free_at)

    def admit(self, client: str | bytes, now_s: float) -> float:
        """0 when the request may go on, else the seconds until one would be admitted."""
        free_at = self._free_at
        due = free_at.get(client, 0.0)
        wait_s = due - self._tolerance_s - now_s
        if wait_s > 0:
            return wait_s
        free_at[client] = max(due, now_s) + self._interval_s
        free_at.move_to_end(client)
        if len(free_at) > self._max_clients:
            free_at.popitem(last=False)
        return 0.0


@lru_cache(maxsize=4096)
def client_of(address: str) -> str:
    """Whom an address stands for: itself, or its /64, within which IPv6 hosts rotate freely."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.IPv6Network((parsed, 64), strict=False))
    return str(parsed)


def is_trusted(address: str, proxies: Sequence[IPNetwork]) -> bool:
    """Whether ``address`` is one of our own proxies."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return any(parsed in network for network in proxies)


def remote_address(peer: str, forwarded_for: str, proxies: Sequence[IPNetwork]) -> str:
    """The address that limits count against.

    ``X-Forwarded-For`` is believed only as far as trusted proxies wrote it: from the right, the
    first hop that is not one of them. Anything else in it is the client's own invention.
    """
    if not is_trusted(peer, proxies):
        return peer
    address = peer
    hops = forwarded_for.rsplit(",", MAX_FORWARDED_HOPS)
    for hop in reversed(hops[-MAX_FORWARDED_HOPS:]):
        candidate = hop.strip()
        try:
            ipaddress.ip_address(candidate)
        except ValueError:
            return address
        address = candidate
        if not is_trusted(candidate, proxies):
            return address
    return address
