"""What the log needs beside its writes: stale readers cleared, its size watched."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from raftcore.storage.transactions import Transactions

_log = logging.getLogger(__name__)

READER_CHECK_INTERVAL_NS = 60_000_000_000
#: Said once when the log holds more than this share of what its map may grow to (D4) ...
WARN_AT = 0.8
#: ... and again only after it was below this one.
WARN_AGAIN_BELOW = 0.7

#: LMDB's two meta pages, which no table counts.
_META_PAGES = 2


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of the log's file that hold something, that wait to be used again, and of its map."""

    used_bytes: int = 0
    free_bytes: int = 0
    map_bytes: int = 0


class Maintenance:
    """Runs about once a second, on the writer thread."""

    def __init__(self, transactions: Transactions, clock_ns: Callable[[], int]) -> None:
        self._transactions = transactions
        self._clock_ns = clock_ns
        self._checked_ns = clock_ns()
        self._warned = False
        self.sizes = Sizes()
        self.reader_checks = 0

    def run(self) -> None:
        """What is due now."""
        self.sizes = self._measure()
        self._warn()
        now_ns = self._clock_ns()
        if now_ns - self._checked_ns >= READER_CHECK_INTERVAL_NS:
            # A reader that died keeps pages from being used again, and the file grows for ever.
            self._transactions.environment.env.reader_check()
            self._checked_ns = now_ns
            self.reader_checks += 1

    def _measure(self) -> Sizes:
        environment = self._transactions.environment
        with self._transactions.reading("measuring the log") as txn:
            stats = [txn.stat(environment.meta), txn.stat(environment.entries)]
        stats.append(environment.env.stat())
        info = environment.env.info()
        page_bytes = stats[0]["psize"]
        pages = _META_PAGES + sum(
            stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"] for stat in stats
        )
        allocated = info["last_pgno"] + 1
        used = min(pages, allocated)
        return Sizes(used * page_bytes, (allocated - used) * page_bytes, info["map_size"])

    def _warn(self) -> None:
        share = self.sizes.used_bytes / self._transactions.map_limit_bytes
        if share >= WARN_AT and not self._warned:
            self._warned = True
            _log.warning(
                "the log holds %d bytes, %.0f %% of the %d that it may: let it be compacted, or "
                "raise the limit", self.sizes.used_bytes, 100 * share,
                self._transactions.map_limit_bytes,
            )  # fmt: skip
        elif share < WARN_AGAIN_BELOW:
            self._warned = False
