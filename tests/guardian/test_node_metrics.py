"""What Prometheus is told about a node."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from guardian.node_metrics import NodeCollector, exported_name
from raftcore import StoppedError
from raftcore.metrics import FIGURES, Counters, HistogramValue, Kind, Sample

#: Alarms and dashboards stand on these.
STABLE = (
    "term",
    "is_leader",
    "has_leader",
    "last_index",
    "durable_index",
    "commit_index",
    "applied_index",
    "first_index",
    "snapshot_index",
    "uncommitted_bytes",
    "pending_reads",
    "pending_proposals",
    "held_messages",
    "connected_peers",
    "last_write_seconds",
    "peer_lag_entries",
    "proposals_total",
    "proposals_refused_total",
    "writes_total",
    "entries_written_total",
    "write_seconds_total",
    "entries_applied_total",
    "apply_batches_total",
    "reads_confirmed_total",
    "elections_won_total",
    "snapshots_taken_total",
    "snapshots_installed_total",
    "peer_violations_total",
)


def every_figure() -> list[Sample]:
    histogram = HistogramValue(((0.5, 2), (1.0, 3)), 4, 6.25)
    return [
        Sample(figure, histogram if figure.kind is Kind.HISTOGRAM else 5, label)
        for figure in FIGURES.values()
        for label in (["x", "y"] if figure.label else [""])
    ]


def exported(samples: list[Sample] | Exception) -> dict[tuple[str, frozenset[str]], float]:
    def figures() -> list[Sample]:
        if isinstance(samples, Exception):
            raise samples
        return samples

    node: Any = SimpleNamespace(figures=figures)
    state: Any = SimpleNamespace(revision=lambda: 11)
    projector: Any = SimpleNamespace(position=(10, b""))
    registry = CollectorRegistry()
    registry.register(NodeCollector(node, state, projector))
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (sample.name, frozenset(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


def test_every_figure_is_exported_with_its_label() -> None:
    seen = exported(every_figure())
    for figure in FIGURES.values():
        name = exported_name(figure)
        for label in ("x", "y") if figure.label else ("",):
            labels = frozenset({label} - {""})
            if figure.kind is Kind.HISTOGRAM:
                assert seen[f"{name}_bucket", labels | {"0.5"}] == 2
                assert seen[f"{name}_bucket", labels | {"+Inf"}] == 4
                assert (seen[f"{name}_count", labels], seen[f"{name}_sum", labels]) == (4, 6.25)
            elif figure.kind is Kind.COUNTER:
                assert seen[f"{name}_total", labels] == 5
            else:
                assert seen[name, labels] == 5


@pytest.mark.parametrize("name", STABLE)
def test_a_name_that_was_there_stays(name: str) -> None:
    assert f"guardian_raft_{name}" in {exported for exported, _ in exported(every_figure())}


def test_counters_of_a_new_node_are_zero_and_the_state_has_its_revision() -> None:
    seen = exported(list(Counters().samples()))
    assert seen["guardian_raft_writes_total", frozenset()] == 0
    assert seen["guardian_revision", frozenset()] == 11
    assert seen["guardian_projected_revision", frozenset()] == 10


def test_a_node_that_does_not_run_says_nothing() -> None:
    assert exported(StoppedError("not running")) == {}
