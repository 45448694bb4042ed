"""The documents of this repository, and what can be asked of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Document:
    """A Markdown file."""

    path: Path
    text: str

    @property
    def prose(self) -> str:
        """The text without fenced blocks."""
        return _FENCE.sub("", self.text)

    def blocks(self, language: str) -> list[str]:
        """The fenced blocks of that language."""
        return [body for name, body in _FENCE.findall(self.text) if name == language]


def _read(path: Path) -> Document:
    return Document(path, path.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def documents() -> list[Document]:
    """Every Markdown file that a reader may open."""
    top = sorted(ROOT.glob("*.md"))
    rest = [p for d in ("docs", "examples", "deploy") for p in sorted((ROOT / d).rglob("*.md"))]
    found = [_read(path) for path in (*top, *rest) if "_build" not in path.parts]
    assert len(found) > 20
    return found


@pytest.fixture(scope="session")
def readme() -> Document:
    return _read(ROOT / "README.md")


@pytest.fixture(scope="session")
def quickstart() -> Document:
    return _read(ROOT / "docs" / "quickstart.md")
