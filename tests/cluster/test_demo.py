"""``guardian demo``: the three nodes that a visitor sees first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_the_demo_plays_to_its_end(ports: list[int], tmp_path: Path) -> None:
    http, raft = ports
    done = subprocess.run(
        [
            sys.executable, "-m", "guardian.cli.main", "demo", "--auto",
            "--data-dir", str(tmp_path / "demo"),
            "--http-port", str(http), "--raft-port", str(raft),
        ],
        check=False, capture_output=True, text=True, timeout=110, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "was killed, it led" in done.stdout
    assert "every acknowledged write is there" in done.stdout
    assert done.stdout.rstrip().endswith("stopped.")
