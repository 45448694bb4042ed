"""Settings, codes and endpoints are documented completely, and nothing else is."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Protocol

import pytest

from guardian.domain.problems import CODES
from guardian.http.endpoints import ENDPOINTS
from guardian.settings import TABLE, load_settings
from raftcore import trace
from raftcore.errors import ExitCode
from raftcore.metrics import FIGURES

#: variables that are not settings of the service, with a row of their own in the documentation
OTHERS = {"GUARDIAN_CONFIG", "GUARDIAN_LOOP", "GUARDIAN_PG_BIN"}
VARIABLES = {row.variable for row in TABLE} | OTHERS


class Document(Protocol):
    path: Path
    text: str


@pytest.fixture(scope="module")
def tables(root: Path) -> ModuleType:
    """The Sphinx extension that writes the tables."""
    pytest.importorskip("sphinx", reason="the documentation's tools are an extra")
    path = root / "docs" / "_ext" / "tables_from_code.py"
    spec = importlib.util.spec_from_file_location("tables_from_code", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_site_asks_for_every_table(tables: ModuleType, root: Path) -> None:
    pages = "".join(path.read_text() for path in (root / "docs").glob("*.md"))
    asked = set(re.findall(r"^```\{from-code\} (\S+)$", pages, re.MULTILINE))
    assert asked == set(tables.TABLES)


def test_every_problem_code_is_documented(tables: ModuleType) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", tables.codes(), re.MULTILINE)
    assert rows == [(code, str(info.status)) for code, info in CODES.items()]


def test_every_endpoint_is_documented(tables: ModuleType) -> None:
    rows = tables.endpoints()
    for endpoint in ENDPOINTS:
        assert f"`{endpoint.method} {endpoint.path}`" in rows
        assert not endpoint.is_api or f"`{endpoint.operation}`" in tables.endpoint_codes()


def test_every_exit_code_is_explained(root: Path) -> None:
    text = (root / "docs" / "operations.md").read_text()
    explained = {int(n) for n in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    assert {code.value for code in ExitCode} <= explained


def test_every_figure_and_every_trace_event_is_documented(tables: ModuleType) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", tables.figures(), re.MULTILINE)
    assert rows == [(figure.name, figure.kind.value) for figure in FIGURES.values()]
    events = re.findall(r"^\| `(\w+)` \|", tables.trace_events(), re.MULTILINE)
    assert events == [kind.value for kind in trace.Kind]


def test_figures_that_a_page_names_exist(root: Path) -> None:
    text = (root / "docs" / "metrics.md").read_text()
    watched = re.findall(r"`([a-z_]+)`", text[text.index("What to watch") :])
    assert len(watched) > 15
    assert set(watched) <= set(FIGURES)


def test_every_setting_is_documented(tables: ModuleType) -> None:
    reference = tables.TABLES["settings"]()
    for row in TABLE:
        assert f"`{row.variable}`" in reference
        assert row.help in reference


def test_documents_name_only_settings_that_exist(documents: list[Document]) -> None:
    known = VARIABLES | {f"{name}_FILE" for name in VARIABLES}
    for document in documents:
        for name in re.findall(r"\bGUARDIAN_[A-Z_]+\b(?!\*)", document.text):
            assert name.rstrip("_") in known or name.endswith("_"), f"{document.path}: {name}"


def test_the_example_environment_holds_every_variable_at_its_default(root: Path) -> None:
    text = (root / ".env.example").read_text()
    given = dict(re.findall(r"^# ([A-Z_]+)=(.*)$", text, re.MULTILINE))
    assert set(given) == VARIABLES
    for row in TABLE:
        assert given[row.variable] == (row.default or ""), row.variable
    assert not re.search(r"^[^#\n]", text, re.MULTILINE), "an example changes nothing"


def test_the_settings_file_loads_as_it_is(root: Path) -> None:
    settings = load_settings(environ={}, config_file=str(root / "deploy" / "guardian.toml"))
    assert settings == load_settings(environ={})


def test_the_settings_file_names_every_setting_at_its_default(root: Path, tmp_path: Path) -> None:
    """Switched on as a whole, each line is acceptable and says the default or is an example."""
    text = (root / "deploy" / "guardian.toml").read_text()
    switched_on = re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE)
    values = tomllib.loads(switched_on)
    assert set(values) == {row.name for row in TABLE if not row.secret}
    for row in TABLE:
        if row.default is not None and not row.secret:
            assert str(values[row.name]) == row.default, row.name
    file = tmp_path / "guardian.toml"
    file.write_text(switched_on)
    secrets = {"DATABASE_URL": "postgresql://db.example/x", "GUARDIAN_JWT_SECRET": "s" * 32}
    settings = load_settings(environ=secrets, config_file=str(file))
    assert settings.is_clustered
    assert settings.node_id in {founder.id for founder in settings.founders()}
