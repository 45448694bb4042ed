"""The reference has every public name, and every public name says what it is."""

from __future__ import annotations

import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import pytest

import raftcore
import raftcore.errors
import raftcore.sessions
import raftcore.testing
import raftcore.tools


@pytest.fixture(scope="module")
def listed(root: Path) -> set[str]:
    """What the page describes, or says where it is described."""
    text = (root / "docs" / "api.md").read_text(encoding="utf-8")
    names = set(re.findall(r"^\.\. (?:auto\w+|py:data):: (\S+)$", text, re.MULTILINE))
    names |= set(re.findall(r"^- \{py:obj\}`([\w.]+)[ `]", text, re.MULTILINE))
    assert len(names) > 80
    return names


@pytest.mark.parametrize("module", [raftcore, raftcore.sessions, raftcore.testing])
def test_every_public_name_is_on_the_page(module: ModuleType, listed: set[str]) -> None:
    assert "raftcore.errors" in listed
    missing = [
        name
        for name in module.__all__
        if f"{module.__name__}.{name}" not in listed and not hasattr(raftcore.errors, name)
    ]
    assert missing == []


def test_every_tool_is_on_the_page(listed: set[str]) -> None:
    tools = {module.name for module in pkgutil.iter_modules(raftcore.tools.__path__)}
    assert {f"raftcore.tools.{name}" for name in tools} <= listed


def test_what_the_page_names_exists(listed: set[str]) -> None:
    for name in listed:
        assert pkgutil.resolve_name(name) is not None


@pytest.mark.parametrize("module", [raftcore, raftcore.sessions, raftcore.testing])
def test_every_public_class_and_function_says_what_it_is(module: ModuleType) -> None:
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            generated = f"{name}("  # what a dataclass says if nobody else does
            assert value.__doc__, name
            assert not value.__doc__.startswith(generated), name


def test_everything_public_of_a_node_says_what_it_is() -> None:
    for name, value in inspect.getmembers(raftcore.Node):
        if not name.startswith("_") and not name.startswith("on_"):
            assert inspect.getdoc(value), name
