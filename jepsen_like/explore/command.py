"""``python -m jepsen_like explore``: try every order of events within bounds.

Exit codes: 0 every invariant held, 1 one did not (the path to it is printed), 3 wrong use, or the
harness itself failed.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from jepsen_like.explore.bounds import STARTS, Bounds
from jepsen_like.explore.search import Figures, explore, replay
from jepsen_like.explore.space import Violation

if TYPE_CHECKING:
    from collections.abc import Sequence

VALID, INVALID, WRONG_USE = 0, 1, 3
LIMIT = 100_000

_HELP = {
    "nodes": "voters",
    "terms": "terms that may begin",
    "entries": "commands proposed",
    "crashes": "crashes, each followed by a restart",
    "duplicates": "messages that arrive twice",
    "timeouts": "election timeouts",
    "heartbeats": "rounds of heartbeats",
    "step_downs": "leaders that miss their quorum",
    "transfers": "transfers of leadership",
    "changes": "requests for other members",
    "spares": "nodes to become members",
    "batch": "entries of one message",
}


def add_options(command: argparse.ArgumentParser) -> None:
    """What ``explore`` understands."""
    defaults = Bounds()
    for name, words in _HELP.items():
        default = getattr(defaults, name)
        option = f"--{name.replace('_', '-')}"
        command.add_argument(
            option, type=int, default=default, metavar="N", help=f"{words} ({default})"
        )
    command.add_argument("--start", choices=STARTS, default=defaults.start)
    command.add_argument(
        "--limit", type=int, default=LIMIT, metavar="N", help=f"different states ({LIMIT:,})"
    )
    command.add_argument(
        "--replay", type=Path, metavar="FILE", help="take the path in FILE, with the same bounds"
    )


def run_explore(arguments: argparse.Namespace) -> int:
    """``explore``: breadth first until there is nothing new, the limit, or a violation."""
    names = [field.name for field in fields(Bounds)]
    try:
        bounds = Bounds(**{name: getattr(arguments, name) for name in names})
        if arguments.replay is not None:
            return _replay(bounds, arguments.replay.read_text().splitlines())
    except (ValueError, OSError) as error:
        print(f"explore: {error}", file=sys.stderr)
        return WRONG_USE
    if arguments.limit < 1:
        print("explore: the limit must be at least 1", file=sys.stderr)
        return WRONG_USE
    figures = explore(bounds, arguments.limit, _progress)
    _print_figures(figures)
    if figures.violation is None:
        return VALID
    _print_violation(bounds, figures)
    return INVALID


def _progress(figures: Figures) -> None:
    print(
        f"{figures.states:,} states, depth {figures.depth}, {figures.rate:,.0f} states/s, "
        f"{figures.memory_mib:,} MiB",
        flush=True,
    )


def _print_figures(f: Figures) -> None:
    extent = "complete" if f.complete else f"every path of {f.depth} actions"
    print(f"{f.states:,} states, {f.transitions:,} transitions, {extent}")
    print(f"  {f.seconds:.1f} s, {f.rate:,.0f} states/s, {f.memory_mib:,} MiB at most")
    print(f"  {f.node_states:,} states of single nodes, {f.core_steps:,} steps of the core")
    print(f"  reached: {f.elections:,} elections, {f.commits:,} commits, depth {f.deepest}")


def _print_violation(bounds: Bounds, figures: Figures) -> None:
    print(f"VIOLATED {figures.violation}")
    print(f"  {bounds}")
    print(f"  after {len(figures.path)} actions; with --replay FILE these lines come to the same:")
    for words in figures.path:
        print(words)


def _replay(bounds: Bounds, lines: Sequence[str]) -> int:
    path = [line for line in lines if line.strip() and not line.startswith("#")]
    end = replay(bounds, path)
    if isinstance(end, Violation):
        print(f"VIOLATED {end}")
        return INVALID
    print(f"every invariant holds after {len(path)} actions")
    return VALID
