"""The figures of a node: the table of names, and how values are kept."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftcore.metrics import (
    FIGURES,
    MAX_LABELS,
    OTHER_LABEL,
    SECONDS,
    Counters,
    Histogram,
    HistogramValue,
    Kind,
    Measures,
    storage_samples,
    transport_samples,
)
from raftcore.storage.base import ScrubProgress, StorageStats
from raftcore.transport.options import TransportStats


def test_figures_are_named_alike_and_say_what_they_are() -> None:
    assert len(FIGURES) >= 50
    for name, figure in FIGURES.items():
        assert name == figure.name
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", name)
        assert figure.help.endswith("."), name
        assert figure.unit in {"", "seconds", "bytes", "entries"}
        if figure.unit == "seconds":
            assert "seconds" in name


@given(st.lists(st.floats(0, 100, allow_nan=False)))
def test_a_histogram_counts_each_value_once_in_the_bucket_it_belongs_to(
    values: list[float],
) -> None:
    histogram = Histogram((1.0, 10.0, 50.0))
    for value in values:
        histogram.observe(value)
    picture = histogram.value()
    assert picture.count == len(values)
    assert picture.total == pytest.approx(sum(values))
    assert picture.buckets == tuple(
        (bound, sum(value <= bound for value in values)) for bound in (1.0, 10.0, 50.0)
    )


def test_a_quantile_is_never_below_the_true_one() -> None:
    histogram = Histogram(SECONDS)
    for ms in range(1, 101):
        histogram.observe(ms / 1000)
    picture = histogram.value()
    assert 0.05 <= picture.quantile(0.5) <= 0.1024
    assert 0.099 <= picture.quantile(0.99) <= 0.2048
    assert picture.mean == pytest.approx(0.0505)
    beyond = Histogram((1.0,))
    beyond.observe(2.0)
    assert beyond.value().quantile(0.5) == float("inf")
    assert Histogram((1.0,)).value().mean == 0.0


def test_every_counter_has_a_sample_and_labels_make_one_each() -> None:
    counters = Counters(writes=3, write_seconds=1.5)
    counters.proposals_refused_by["overloaded"] += 2
    counters.proposals_refused_by["not_leader"] += 1
    assert counters.proposals_refused == 3
    samples = {(s.figure.name, s.label): s.value for s in counters.samples()}
    assert samples["writes", ""] == 3
    assert samples["write_seconds_total", ""] == 1.5
    assert samples["proposals_refused", "overloaded"] == 2
    assert samples["proposals_refused", "not_leader"] == 1
    others = {s.figure.name for s in storage_samples(StorageStats())}
    others |= {s.figure.name for s in transport_samples(TransportStats())}
    plain = {
        f.name
        for f in FIGURES.values()
        if f.kind is Kind.COUNTER and not f.label and f.name not in others
    }
    assert {name for name, label in samples if not label} == plain


def test_a_histogram_with_labels_keeps_a_bounded_number_apart() -> None:
    measures = Measures()
    for number in range(MAX_LABELS + 10):
        measures.labelled("peer_round_trip_seconds", f"n{number}").observe(0.1)
    values = {
        s.label: s.value for s in measures.samples() if s.figure.name == "peer_round_trip_seconds"
    }
    assert len(values) == MAX_LABELS + 1
    other = values[OTHER_LABEL]
    assert isinstance(other, HistogramValue)
    assert other.count == 10


def test_what_a_store_counted_is_told_completely() -> None:
    stats = StorageStats(commits=3, runs=2, scrub=ScrubProgress(entries=9, passes=1))
    samples = {s.figure.name: s.value for s in storage_samples(stats)}
    assert (samples["storage_commits"], samples["storage_runs"]) == (3, 2)
    assert (samples["scrub_entries"], samples["scrub_passes"]) == (9, 1)


def test_what_a_transport_counted_is_told_completely() -> None:
    stats = TransportStats(bytes_in=7, dropped_full=2)
    stats.refused["unknown_node"] += 4
    samples = {(s.figure.name, s.label): s.value for s in transport_samples(stats)}
    assert samples["transport_bytes_in", ""] == 7
    assert samples["transport_dropped", "queue_full"] == 2
    assert samples["transport_refused", "unknown_node"] == 4
    named = {name for name in FIGURES if name.startswith("transport_")}
    assert {name for name, _ in samples} == named - {"transport_rejected"}
