"""The child's walk reads every value and says what it cannot read."""

from __future__ import annotations

import runpy
import sys
from typing import Any

import pytest

from raftcore.storage import walk


def test_every_value_is_read(place: Any) -> None:
    path = place.close(place.filled("node", 30))
    assert walk.walk(str(path / "log")) == 30 + 7  # the entries, and the meta records so far


def test_run_as_a_script_it_ends_with_what_is_wrong(
    place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place.close(place.filled("node", 30))
    monkeypatch.setattr(sys, "argv", ["walk", str(path / "log")])
    runpy.run_path(walk.__file__, run_name="__main__")
    place.edit(path / "log" / "data.mdb", 0, bytes(8192))
    with pytest.raises(SystemExit, match="InvalidError"):
        runpy.run_path(walk.__file__, run_name="__main__")
