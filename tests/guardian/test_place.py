"""From settings to a node's place in its cluster, and what speaks against a start."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from guardian.place import (
    addresses,
    check_fits_cluster,
    check_may_start,
    founders_of,
    join_of,
    tls_of,
)
from guardian.settings import Settings, SettingsError, load_settings
from raftcore.core.types import Configuration, Member
from raftcore.errors import BootstrapError
from raftcore.storage.directory import DataDirectory

SHARED = {"DATABASE_URL": "postgresql://u@h/d", "GUARDIAN_JWT_SECRET": "x" * 40}
TLS = {
    "GUARDIAN_RAFT_TLS_CERTIFICATE": "/tls/node.pem",
    "GUARDIAN_RAFT_TLS_KEY": "/tls/node.key",
    "GUARDIAN_RAFT_TLS_CA": "/tls/ca.pem",
}


def settings(**variables: str) -> Settings:
    return load_settings(environ=SHARED | variables)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[DataDirectory]:
    opened = DataDirectory.open(tmp_path / "data", "node1")
    yield opened
    opened.close()


def test_who_joins_says_where_it_is_and_what_it_wants_to_be() -> None:
    assert join_of(settings()) is None
    given = settings(
        GUARDIAN_JOIN="a:7000,b:7000",
        GUARDIAN_JOIN_AS="learner",
        GUARDIAN_RAFT="0.0.0.0:7000",
        GUARDIAN_RAFT_ADVERTISE="c:7000",
        GUARDIAN_HTTP_ADVERTISE="c:8080",
    )
    join = join_of(given)
    assert join is not None
    assert (list(join.targets), join.address, join.voter) == (["a:7000", "b:7000"], "c:7000", False)
    assert join.attributes == (("http", "c:8080"),)
    assert addresses(given) == ("c:7000", "c:8080")


def test_founders_bring_their_http_addresses_where_they_are_known() -> None:
    given = settings(GUARDIAN_BOOTSTRAP="node1=a:7000;http=a:8080,node2=b:7000")
    assert [(f.node_id, f.address, f.attributes) for f in founders_of(given)] == [
        ("node1", "a:7000", (("http", "a:8080"),)),
        ("node2", "b:7000", ()),
    ]


def test_certificates_are_all_there_or_none() -> None:
    assert tls_of(settings()) is None
    tls = tls_of(settings(**TLS))
    assert tls is not None
    assert (str(tls.certificate), str(tls.key), str(tls.ca)) == tuple(TLS.values())


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "example.org", "[::]"])
def test_beyond_loopback_a_start_needs_certificates_or_permission(
    directory: DataDirectory, host: str
) -> None:
    raft = {"GUARDIAN_RAFT": f"{host}:7000", "GUARDIAN_RAFT_ADVERTISE": "10.0.0.1:7000"}
    with pytest.raises(SettingsError) as raised:
        check_may_start(settings(**raft), directory)
    assert raised.value.variable == "GUARDIAN_RAFT_PLAIN"
    check_may_start(settings(**raft, **TLS), directory)
    check_may_start(settings(**raft, GUARDIAN_RAFT_PLAIN="on"), directory)


def test_a_port_that_nobody_could_know_is_refused(directory: DataDirectory) -> None:
    for joining in ({}, {"GUARDIAN_JOIN": "a:7000"}):
        with pytest.raises(SettingsError) as raised:
            check_may_start(settings(GUARDIAN_RAFT="127.0.0.1:0", **joining), directory)
        assert raised.value.variable == "GUARDIAN_RAFT"
        check_may_start(
            settings(
                GUARDIAN_RAFT="127.0.0.1:0", GUARDIAN_RAFT_ADVERTISE="127.0.0.1:7000", **joining
            ),
            directory,
        )


def test_who_joins_may_begin_where_a_cluster_lived_before(directory: DataDirectory) -> None:
    check_may_start(settings(), directory)
    incarnation = directory.founding_incarnation()
    directory.bootstrap(
        Configuration("old", (Member("node1", "127.0.0.1:7000", incarnation, voter=True),))
    )
    path = directory.path
    directory.close()
    shutil.rmtree(path)
    wiped = DataDirectory.open(path, "node1")
    try:
        with pytest.raises(BootstrapError):
            check_may_start(settings(), wiped)
        check_may_start(settings(GUARDIAN_JOIN="a:7000"), wiped)
    finally:
        wiped.close()


def test_a_cluster_of_several_needs_what_its_nodes_share(
    caplog: pytest.LogCaptureFixture,
) -> None:
    members = tuple(
        Member(f"node{n}", f"127.0.0.1:700{n}", bytes((n,)) * 16, voter=True) for n in (1, 2)
    )
    several = Configuration("cluster", members)
    check_fits_cluster(settings(), several)
    with pytest.raises(SettingsError) as raised:
        check_fits_cluster(load_settings(environ={}), several)
    assert raised.value.variable == "DATABASE_URL"
    check_fits_cluster(load_settings(environ={}), Configuration("cluster", members[:1]))
    with caplog.at_level(logging.WARNING):
        check_fits_cluster(settings(GUARDIAN_BOOTSTRAP="node1=127.0.0.1:7001"), several)
    assert "ignored" in caplog.text
