"""Nodes that know each other by certificates, and nodes that must not be believed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import option_of, set_option
from tests.raftcore.transport.certificates import Ca

pytestmark = pytest.mark.slow


def certify(node: Any, ca: Ca, name: str = "", **options: Any) -> None:
    """Give a node a certificate, for its own name or another one."""
    files = ca.issue(name or node.name, **options)
    node.arguments += [
        "--raft-tls-certificate", str(files.certificate),
        "--raft-tls-key", str(files.key),
        "--raft-tls-ca", str(files.ca),
    ]  # fmt: skip


def folder(root: Path, name: str) -> Path:
    made = root / name
    made.mkdir()
    return made


def open_to_all(node: Any) -> None:
    """Listen on all addresses, and be called at this one."""
    address = option_of(node, "--raft")
    set_option(node, "--raft", f"0.0.0.0:{address.rpartition(':')[2]}")
    node.arguments += ["--raft-advertise", address]


def test_nodes_with_certificates_form_a_cluster_and_let_nobody_else_in(
    make_cluster: Any, tmp_path: Path, until: Any
) -> None:
    ca = Ca(folder(tmp_path, "ca"))
    cluster = make_cluster()
    for node in cluster.nodes:
        certify(node, ca)
        open_to_all(node)  # with TLS that needs no permission
    cluster.start()
    place = cluster.furnish()
    cluster.store(place, "a", {"count": 1})
    first = cluster.nodes[0]
    founders = [node.name for node in cluster.nodes]
    raft = option_of(first, "--raft-advertise")

    plain = cluster.newcomer("node4", "--log-format", "text")
    stranger = cluster.newcomer("node5", "--log-format", "text")
    certify(stranger, Ca(folder(tmp_path, "other"), "other"))
    impostor = cluster.newcomer("node6", "--log-format", "text")
    certify(impostor, ca, "node1")  # a certificate of the cluster's, but of another node
    set_option(impostor, "--join", raft)
    assert cluster.run(impostor) == 78
    assert "E_TLS" in impostor.last_log_line()
    cluster.nodes.remove(impostor)
    outsiders = [plain, stranger]
    for node in outsiders:
        set_option(node, "--join", raft)
        node.start()
    for node in outsiders:
        until(
            f"{node.name} is refused",
            lambda node=node: node.log_path.read_text().count("waits to join") >= 3,
        )
        assert not (cluster.data_dir(node) / "log").exists()
        node.kill()
        cluster.nodes.remove(node)
    assert [m["id"] for m in cluster.view(first)["members"]] == founders

    # a member that forgot its certificate is one that is away
    forgetful = cluster.others(cluster.leader())[0]
    kept, advertised = forgetful.arguments, option_of(forgetful, "--raft-advertise")
    forgetful.stop()
    forgetful.arguments = kept[: kept.index("--raft-tls-certificate")]
    forgetful.arguments += ["--raft-advertise", advertised]
    forgetful.environment = forgetful.environment | {"GUARDIAN_RAFT_PLAIN": "on"}
    forgetful.start()
    until("it answers", lambda: cluster.ask(forgetful, "GET", "/livez").status == 200)
    cluster.store(place, "b", {"count": 2})
    assert cluster.ask(forgetful, "GET", "/ready").status == 503
    forgetful.stop()
    forgetful.arguments = kept
    cluster.start(forgetful)

    # and who has a certificate may join
    joiner = cluster.newcomer("node7")
    set_option(joiner, "--join", raft)
    certify(joiner, ca)
    cluster.start(joiner)
    cluster.until_members(first, *founders, "node7")
    cluster.until_level()


def test_without_certificates_a_node_listens_beyond_loopback_only_if_told(
    make_cluster: Any,
) -> None:
    cluster = make_cluster()
    for node in cluster.nodes:
        open_to_all(node)
    node = cluster.nodes[0]
    assert cluster.run(node) == 78
    assert "GUARDIAN_RAFT_PLAIN" in node.last_log_line()
    assert not (cluster.data_dir(node) / "IDENTITY").exists()
    for node in cluster.nodes:
        node.environment["GUARDIAN_RAFT_PLAIN"] = "on"
    cluster.start()
    place = cluster.furnish()
    cluster.store(place, "a", {"count": 1})
    cluster.until_level()


@pytest.mark.parametrize("wrong", ["no such file", "another key"])
def test_certificates_that_can_not_be_used_end_the_start(
    make_cluster: Any, tmp_path: Path, wrong: str
) -> None:
    cluster = make_cluster(size=1)
    (node,) = cluster.nodes
    ca = Ca(folder(tmp_path, "ca"))
    certify(node, ca)
    key = str(tmp_path / "absent.key") if wrong == "no such file" else str(ca.issue("b").key)
    set_option(node, "--raft-tls-key", key)
    assert cluster.run(node) == 78
    assert "E_TLS" in node.last_log_line()
