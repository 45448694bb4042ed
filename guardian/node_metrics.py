"""What the node, the log and the event loop say about themselves, for Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from prometheus_client import Gauge
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from guardian.adapters.postgres.projector import Projector
from guardian.fsm.state import StateReader
from guardian.telemetry import Metrics
from raftcore import Node, StoppedError
from raftcore.metrics import Figure, HistogramValue, Kind, Sample

LAG_PROBE_S = 0.25


class NodeCollector(Collector):
    """Reads the node's picture when it is asked for; nothing is counted twice."""

    def __init__(self, node: Node, state: StateReader, projector: Projector) -> None:
        self._node = node
        self._state = state
        self._projector = projector

    def collect(self) -> Iterator[Metric]:
        try:
            samples = self._node.figures()
        except StoppedError:
            return
        families: dict[str, Metric] = {}
        for sample in samples:
            figure = sample.figure
            family = families.get(figure.name)
            if family is None:
                family = families[figure.name] = _family(figure)
            _add(family, sample)
        yield from families.values()
        own = {
            "revision": ("Revision of the local state.", self._state.revision()),
            "projected_revision": ("Mirrored by this node.", self._projector.position[0]),
        }
        for name, (text, value) in own.items():
            yield GaugeMetricFamily(f"guardian_{name}", text, value=value)


def exported_name(figure: Figure) -> str:
    """The family that Prometheus knows a figure by; the samples of a counter end in ``_total``."""
    return f"guardian_raft_{figure.name.removesuffix('_total')}"


def _family(figure: Figure) -> Metric:
    name = exported_name(figure)
    labels = [figure.label] if figure.label else []
    if figure.kind is Kind.COUNTER:
        return CounterMetricFamily(name, figure.help, labels=labels)
    if figure.kind is Kind.GAUGE:
        return GaugeMetricFamily(name, figure.help, labels=labels)
    return HistogramMetricFamily(name, figure.help, labels=labels)


def _add(family: Metric, sample: Sample) -> None:
    labels = [sample.label] if sample.figure.label else []
    value = sample.value
    if isinstance(family, HistogramMetricFamily):
        assert isinstance(value, HistogramValue), sample.figure.name
        buckets = [(str(bound), float(below)) for bound, below in value.buckets]
        family.add_metric(labels, [*buckets, ("+Inf", float(value.count))], value.total)
        return
    assert isinstance(family, CounterMetricFamily | GaugeMetricFamily)
    assert not isinstance(value, HistogramValue), sample.figure.name
    family.add_metric(labels, value)


async def watch_loop_lag(metrics: Metrics) -> None:
    """How late the event loop is: nothing on it may run longer than 20 ms."""
    loop = asyncio.get_running_loop()
    lag = Gauge(
        "guardian_loop_lag_seconds", "Lateness of the event loop.", registry=metrics.registry
    )
    worst = Gauge(
        "guardian_loop_lag_max_seconds", "Worst lateness so far.", registry=metrics.registry
    )
    highest = 0.0
    while True:
        due = loop.time() + LAG_PROBE_S
        await asyncio.sleep(LAG_PROBE_S)
        late = max(loop.time() - due, 0.0)
        highest = max(highest, late)
        lag.set(late)
        worst.set(highest)
