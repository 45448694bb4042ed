"""Whoever reads a report can look up what it says."""

from __future__ import annotations

import re
from pathlib import Path

from raftcore.tools.comparison import Relation

ROOT = Path(__file__).parents[3]


def test_every_finding_and_every_relation_is_explained() -> None:
    source = (ROOT / "raftcore" / "tools" / "verification.py").read_text(encoding="utf-8")
    called = re.findall(r'_damage\(\s*"(\w+)"|Severity\.\w+,\s*"(\w+)"', source)
    page = (ROOT / "docs" / "recovery.md").read_text(encoding="utf-8")
    codes = {code for pair in called for code in pair if code}
    assert len(codes) > 12
    assert {code for code in codes if f"`{code}`" not in page} == set()
    assert {r.value for r in Relation if not re.search(rf"\b{r.value}\b", page)} == set()
