"""Settings and counters of the TCP transport."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from raftcore.transport.framing import DEFAULT_MAX_FRAME_BYTES
from raftcore.transport.versions import MIN_PROTOCOL_VERSION, PROTOCOL_VERSION

DEFAULT_MAX_GUESTS = 64


@dataclass(frozen=True, slots=True)
class TransportOptions:
    """Bounds and waits of a :class:`~raftcore.transport.tcp.TcpTransport`.

    Args:
        max_frame_bytes: largest frame taken or sent; the same on all members.
        queue_frames: frames waiting for one peer; more are dropped, newest first.
        queue_bytes: bytes waiting for one peer (a single larger frame still goes alone).
        write_bytes: how much is joined into one write, and what may wait in the write buffer.
        connect_timeout_s: for the TCP connection and the handshake together.
        hello_timeout_s: how long a stranger may take to introduce itself.
        max_handshakes: connections that have not introduced themselves yet; one more takes the
            place of the oldest.
        max_handshakes_per_host: such connections from one address.
        backoff_min_s: first wait before dialling again; doubles up to ``backoff_max_s``, each wait
            drawn from the upper half.
        backoff_max_s: see ``backoff_min_s``; a connection that stood that long resets the wait.
        stall_timeout_s: a connection that takes no bytes for so long is given up.
        close_timeout_s: how long :meth:`close` waits for bytes already written to leave.
        drain_timeout_s: how long what was sent to a removed peer may take to leave.
        max_requests: unanswered requests to one peer, and being answered for one peer.
        max_guests: nodes of the cluster that are in none of our configurations.
        max_joins: nodes that ask to become members, at once.
        join_timeout_s: how long the answer to such a wish may take.
        compress_above_bytes: frames with a larger body are compressed if the peer can read that and
            if it makes them smaller; 0 for never. Worth it where a link is slower than a processor:
            see docs/compatibility.md for figures.
        max_protocol_version: the newest protocol version spoken; lower only in tests of mixed
            clusters.
    """

    max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES
    queue_frames: int = 8192
    queue_bytes: int = 64 << 20
    write_bytes: int = 1 << 20
    connect_timeout_s: float = 2.0
    hello_timeout_s: float = 5.0
    max_handshakes: int = 64
    max_handshakes_per_host: int = 16
    backoff_min_s: float = 0.02
    backoff_max_s: float = 1.0
    stall_timeout_s: float = 5.0
    close_timeout_s: float = 1.0
    drain_timeout_s: float = 1.0
    max_requests: int = 1024
    max_guests: int = DEFAULT_MAX_GUESTS
    max_joins: int = 8
    join_timeout_s: float = 10.0
    compress_above_bytes: int = 0
    max_protocol_version: int = PROTOCOL_VERSION

    def __post_init__(self) -> None:
        if self.compress_above_bytes < 0:
            raise ValueError("compress_above_bytes must not be negative")
        if not MIN_PROTOCOL_VERSION <= self.max_protocol_version <= PROTOCOL_VERSION:
            raise ValueError(f"protocol version {self.max_protocol_version} is not spoken here")
        for name in self.__slots__:
            if name != "compress_above_bytes" and getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.backoff_min_s > self.backoff_max_s:
            raise ValueError("backoff_min_s must not be above backoff_max_s")


@dataclass(slots=True)
class TransportStats:
    """Counters since the start; they only grow.

    ``refused`` counts handshakes that we refused, ``rejected`` those in which we were refused or
    somebody else answered, both by :class:`~raftcore.transport.handshake.RefusalCode`.
    """

    bytes_in: int = 0
    bytes_out: int = 0
    messages_in: int = 0
    messages_out: int = 0  #: taken into a peer's queue
    requests_in: int = 0
    requests_out: int = 0
    writes: int = 0  #: calls to the operating system's send, each for all frames that waited
    dropped_full: int = 0  #: the peer's queue was full
    dropped_disconnected: int = 0  #: no connection to the peer, or it broke before the write
    dropped_oversize: int = 0  #: the frame is larger than a peer would take
    connects: int = 0  #: outgoing connections that were welcomed
    connect_failures: int = 0
    losses: int = 0  #: outgoing connections that broke
    stalls: int = 0  #: connections given up because they took no bytes
    bad_frames: int = 0  #: connections closed because of what came in
    unknown_messages: int = 0  #: dropped: of types that only the newer peer knows
    compressed_out: int = 0  #: frames that left compressed
    compressed_saved_bytes: int = 0  #: what that saved
    compressed_in: int = 0
    directories_put_back: int = 0  #: introductions with fewer runs than the same node said before
    tls_failures: int = 0  #: TLS handshakes that failed, in either direction
    tls_reloads: int = 0  #: new certificates taken into use
    tls_reload_failures: int = 0  #: new certificates that could not be used
    refused: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
