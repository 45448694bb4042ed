"""Bounded exhaustive exploration: every order of events within given bounds, on the real core."""

from __future__ import annotations

from jepsen_like.explore.bounds import Bounds
from jepsen_like.explore.search import Figures, Search, explore
from jepsen_like.explore.space import Space, Violation

__all__ = ["Bounds", "Figures", "Search", "Space", "Violation", "explore"]
