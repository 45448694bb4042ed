"""Settings that can not be are refused when they are made."""

from __future__ import annotations

from typing import Any

import pytest

from raftcore import NodeOptions


@pytest.mark.parametrize(
    "wrong",
    [
        {"snapshot_entries": 0},
        {"snapshot_bytes": 0},
        {"max_entry_bytes": 0},
        {"max_pending_proposals": 0},
        {"max_pending_waits": 0},
        {"max_pending_joiners": 0},
        {"min_free_bytes": -1},
        {"handover_timeout_s": -0.1},
        {"scrub_interval_s": -1.0},
    ],
)
def test_a_setting_out_of_bounds_is_named(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        NodeOptions(**wrong)


def test_no_scrubbing_and_no_reserve_are_settings_too() -> None:
    options = NodeOptions(min_free_bytes=0, handover_timeout_s=0.0, scrub_interval_s=0.0)
    assert options.scrub_interval_s == 0
