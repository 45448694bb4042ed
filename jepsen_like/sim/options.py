"""What one seed is going to do: drawn first, printed with the seed (swarm testing)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jepsen_like.sim.scheduler import stream


@dataclass(frozen=True, slots=True)
class SimOptions:
    """Sizes and fault rates of one run. Probabilities are per message or per step.

    Args:
        nodes: members of the cluster; ``learners`` of them have no vote.
        duration_ms: virtual time of the safety phase.
        drop, duplicate: probability per message.
        delay_ms: mean delay; with ``heavy_tail`` some messages take a hundred times that.
        fifo: messages of one link arrive in order, as over one TCP connection.
        disk_ms: mean time of one durable transaction.
        crash, partition, pause, transfer: mean time between two of them, 0 for never.
        crash_in_step: probability of a crash between two effects of a step.
        crash_new_leader: probability that a new leader crashes soon, which is what leaves logs of
            different terms and lengths behind.
        change_ms: mean time between two requests for other members, 0 for never.
        drift_ppm: bound of each node's clock rate error.
        snapshot_every: entries applied between snapshots, 0 for never.
        write_every_ms, read_every_ms: mean time between two of them.
        entry_bytes: largest payload.
        window: in-flight messages per peer.
        append_entries: entries per message.
        cache_bytes: recent entries kept in memory by the core.
    """

    nodes: int = 3
    learners: int = 0
    duration_ms: int = 3000
    drop: float = 0.0
    duplicate: float = 0.0
    delay_ms: float = 2.0
    heavy_tail: bool = False
    fifo: bool = False
    disk_ms: float = 2.0
    crash_ms: int = 0
    crash_in_step: float = 0.0
    crash_new_leader: float = 0.0
    partition_ms: int = 0
    pause_ms: int = 0
    transfer_ms: int = 0
    change_ms: int = 0
    drift_ppm: int = 200
    snapshot_every: int = 0
    trailing_entries: int = 5
    write_every_ms: float = 15.0
    read_every_ms: float = 40.0
    entry_bytes: int = 200
    window: int = 8
    append_entries: int = 16
    cache_bytes: int = 1 << 20

    @staticmethod
    def draw(seed: int) -> SimOptions:
        """Options of ``seed``: each fault class is on with probability one half."""
        rng = stream(seed, "options")

        def on() -> bool:
            return rng.random() < 0.5

        def log_uniform(low: float, high: float) -> float:
            return float(low * (high / low) ** rng.random())

        nodes = rng.choice((1, 2, 3, 3, 3, 4, 5, 5, 5, 7))
        # not both at their smallest: that is only slow, and would not catch up in time
        window, append_entries = rng.choice(((1, 64), (2, 16), (8, 1), (8, 4), (64, 1), (64, 64)))
        options = SimOptions(nodes=nodes)
        drawn = replace(
            options,
            learners=1 if nodes > 1 and rng.random() < 0.2 else 0,
            drop=log_uniform(0.005, 0.3) if on() else 0.0,
            duplicate=log_uniform(0.005, 0.3) if on() else 0.0,
            delay_ms=log_uniform(0.5, 40.0),
            heavy_tail=on(),
            fifo=on(),
            disk_ms=log_uniform(0.5, 60.0),
            crash_ms=int(log_uniform(300, 3000)) if on() else 0,
            crash_in_step=log_uniform(0.0002, 0.004) if on() else 0.0,
            crash_new_leader=rng.choice((0.0, 0.0, 0.3, 0.6)),
            partition_ms=int(log_uniform(300, 2000)) if on() else 0,
            pause_ms=int(log_uniform(300, 3000)) if on() else 0,
            transfer_ms=int(log_uniform(300, 3000)) if on() else 0,
            drift_ppm=rng.choice((0, 200, 200, 100_000, 400_000)),
            snapshot_every=int(log_uniform(1, 60)) if on() else 0,
            trailing_entries=rng.choice((0, 1, 5, 20)),
            write_every_ms=log_uniform(4, 60),
            read_every_ms=log_uniform(10, 200),
            entry_bytes=rng.choice((20, 200, 4000)),
            window=window,
            append_entries=append_entries,
            cache_bytes=rng.choice((1, 2000, 1 << 20)),
        )
        # Last, so that the draws above are those of runs without it.
        return replace(drawn, change_ms=int(log_uniform(100, 2000)) if on() else 0)
