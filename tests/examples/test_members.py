"""The example of a changing cluster runs, and docs/members.md shows what runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "members.py"


@pytest.mark.slow
def test_a_cluster_grows_and_loses_its_founder_while_it_runs() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0] == "joined: n1 voter, n2 learner, n3 learner"
    assert lines[1].startswith("promoted: n1 voter, n2 voter, n3 voter (version ")
    assert "by lease" in lines[2]
    assert re.match(r"left: n2 voter, n3 voter; n1 says: (?!None)", lines[3])
    assert lines[4:] == [f"{n} holds ['three of three', 'two of two']" for n in ("n2", "n3")]


def test_the_page_shows_the_example_as_it_is() -> None:
    page = (ROOT / "docs" / "members.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    program = EXAMPLE.read_text(encoding="utf-8")
    assert len(shown) >= 2
    assert all(block.strip() in program for block in shown)
    assert sum(block.count("\n") for block in shown) > 30
