"""Command line of the package: ``python -m jepsen_like <command>``.

Exit codes: 0 valid, 1 invalid (an invariant does not hold), 2 unknown, 3 the harness itself failed.
"""

from __future__ import annotations

import argparse
import difflib
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from jepsen_like.explore.command import add_options, run_explore
from jepsen_like.sim.runner import SeedResult, run_seed
from jepsen_like.sim.transcript import TranscriptError, rewrite

VALID, INVALID, UNKNOWN, HARNESS_ERROR = 0, 1, 2, 3


def seed_range(text: str) -> range:
    """``7`` or ``0:200`` (the end is not included)."""
    first, colon, last = text.partition(":")
    try:
        seeds = range(int(first), int(last) if colon else int(first) + 1)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a seed nor first:last") from error
    if not seeds:
        raise argparse.ArgumentTypeError(f"{text!r} holds no seed")
    return seeds


class Parser(argparse.ArgumentParser):
    """Exits with 3 on a wrong command line: argparse's own 2 means "unknown" here."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(HARNESS_ERROR, f"{self.prog}: error: {message}\n")


def parser() -> argparse.ArgumentParser:
    """The commands. Each names the function that runs it as ``run``."""
    top = Parser(prog="python -m jepsen_like", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="command")
    sim = commands.add_parser("sim", help="simulate whole clusters, one per seed")
    sim.add_argument("--seeds", type=seed_range, default=range(200), metavar="FIRST:LAST")
    sim.add_argument("--keep-going", action="store_true", help="do not stop at the first failure")
    sim.add_argument("--verbose", action="store_true", help="print every seed with what it did")
    sim.set_defaults(run=run_sim)
    exploring = commands.add_parser("explore", help="try every order of events within bounds")
    add_options(exploring)
    exploring.set_defaults(run=run_explore)
    transcript = commands.add_parser("transcript", help="compare transcripts with the core")
    transcript.add_argument("files", type=Path, nargs="+", metavar="FILE")
    transcript.add_argument("--rewrite", action="store_true", help="write what happens now")
    transcript.set_defaults(run=run_transcript)
    return top


def run_transcript(arguments: argparse.Namespace) -> int:
    """``transcript``: print where the core does something else than the files say."""
    differing = 0
    for path in arguments.files:
        told = path.read_text(encoding="utf-8")
        try:
            now = rewrite(told)
        except TranscriptError as error:
            print(f"{path}: {error}", file=sys.stderr)
            return HARNESS_ERROR
        if now == told:
            continue
        differing += 1
        if arguments.rewrite:
            path.write_text(now, encoding="utf-8")
            print(f"{path}: rewritten, to be read")
            continue
        lines = difflib.unified_diff(
            told.splitlines(), now.splitlines(), str(path), "the core now", lineterm=""
        )
        print(*lines, sep="\n")
    return INVALID if differing and not arguments.rewrite else VALID


def run_sim(arguments: argparse.Namespace) -> int:
    """``sim``: run seeds until one fails."""
    started = time.monotonic()
    totals: Counter[str] = Counter()
    failed: list[int] = []
    steps = done = 0
    for seed in arguments.seeds:
        result = run_seed(seed)
        done += 1
        steps += result.steps
        totals.update(result.counters)
        if result.failure is not None:
            failed.append(seed)
            _report_failure(result)
            if not arguments.keep_going:
                break
        elif arguments.verbose:
            print(f"seed {seed}: {result.steps} events, trace {result.trace_hash[:16]}")
            print(f"  {result.options}")
            print(f"  {result.counters}")
        if done % 20 == 0:
            rate = steps / (time.monotonic() - started)
            print(f"{done} of {len(arguments.seeds)} seeds, {rate:,.0f} events/s", flush=True)
    print(f"{done} seeds, {steps:,} events, {len(failed)} failed")
    for name, count in sorted(totals.items()):
        print(f"  {name}: {count:,}")
    return INVALID if failed else VALID


def _report_failure(result: SeedResult) -> None:
    print(f"seed {result.seed} FAILED: {result.failure}")
    print(f"  {result.options}")
    print(f"  events {result.steps}, trace {result.trace_hash}")
    print(f"  replay: python -m jepsen_like sim --seeds {result.seed} --verbose")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except Exception:  # noqa: BLE001 - whatever it was, it is the harness that failed
        traceback.print_exc(file=sys.stderr)
        return HARNESS_ERROR
