"""Deterministic simulation: a whole cluster in one process, under virtual time, from one seed."""

from __future__ import annotations

from jepsen_like.sim.cluster import CoreCluster
from jepsen_like.sim.ghost import BrokenInvariantError
from jepsen_like.sim.options import SimOptions
from jepsen_like.sim.runner import SeedResult, run_seed

__all__ = ["BrokenInvariantError", "CoreCluster", "SeedResult", "SimOptions", "run_seed"]
