"""Settings are checked once, when they are made."""

from __future__ import annotations

from typing import Any

import pytest

from raftcore.core.config import CoreConfig


def test_the_defaults_are_valid() -> None:
    config = CoreConfig("a")
    assert (config.heartbeat_ms, config.election_timeout_ms) == (60, 300)


@pytest.mark.parametrize(
    "settings",
    [
        {"node_id": ""},
        {"heartbeat_ms": 0},
        {"heartbeat_ms": 100, "election_timeout_ms": 199},
        {"max_append_bytes": 0},
        {"max_append_entries": 0},
        {"max_inflight_messages": 0},
        {"max_inflight_bytes": 0},
        {"max_uncommitted_bytes": 0},
        {"max_apply_bytes": 0},
        {"max_pending_reads": 0},
        {"entry_cache_bytes": 0},
        {"snapshot_chunk_bytes": 0},
        {"trailing_entries": -1},
    ],
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        CoreConfig(**{"node_id": "a", **settings})
