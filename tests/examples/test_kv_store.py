"""The key-value store runs as its first lines say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_key_value_store_keeps_what_it_says_over_a_kill() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "kv_store.py")],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "made version 30; the last one, repeated, still 30" in done.stdout
    assert "all as expected" in done.stdout
    assert done.stderr == ""
