"""What the nodes of a demo are started with."""

from __future__ import annotations

from pathlib import Path

import pytest

from guardian.cli.local_nodes import LocalNode, layout
from guardian.settings import load_settings

SECRET = "s" * 64


def three(root: Path) -> list[LocalNode]:
    return layout(
        root,
        [(8081, 7001), (8082, 7002), (8083, 7003)],
        database_url="postgresql://localhost/demo",
        secret=SECRET,
        password="a long password",
    )


def flags_of(node: LocalNode) -> dict[str, str]:
    names = (name.removeprefix("--").replace("-", "_") for name in node.arguments[::2])
    return dict(zip(names, node.arguments[1::2], strict=True))


def test_variables_reach_every_node_and_what_is_one_nodes_own_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUARDIAN_HEARTBEAT_MS", "75")
    monkeypatch.setenv("GUARDIAN_HTTP_ADVERTISE", "elsewhere:1")
    monkeypatch.setenv("GUARDIAN_JWT_SECRET_FILE", "/nowhere")
    monkeypatch.setenv("DATABASE_URL", "postgresql://elsewhere/other")
    for node in three(tmp_path):
        settings = load_settings(flags_of(node), node.environment)
        assert settings.heartbeat_ms == 75
        assert settings.http_advertise is None
        assert settings.jwt_secret == SECRET
        assert settings.database_url == "postgresql://localhost/demo"


def test_every_node_is_told_the_same_founders_and_has_its_own_place(tmp_path: Path) -> None:
    settings = [load_settings(flags_of(node), node.environment) for node in three(tmp_path)]
    assert len({s.bootstrap for s in settings}) == 1
    assert {f.id for f in settings[0].founders()} == {"node1", "node2", "node3"}
    assert len({s.data_dir for s in settings}) == 3
    assert {s.node_id for s in settings} == {"node1", "node2", "node3"}


def test_stopping_a_node_that_never_ran_does_nothing(tmp_path: Path) -> None:
    node = three(tmp_path)[0]
    assert not node.running
    node.stop()
    node.kill()
    assert node.pid is None
