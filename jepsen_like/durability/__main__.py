"""``python -m jepsen_like.durability trace``: run a program, watch it, say what was wrong.

Exit status: 0 valid, 1 a violation or nothing checked, 3 the tracer could not do its work.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from jepsen_like.durability.ordering import RaftOrdering
from jepsen_like.durability.ptrace import PtraceUnavailableError
from jepsen_like.durability.seccomp import UnsupportedMachineError
from jepsen_like.durability.trace import TraceRun, TraceSpec

VALID, INVALID, HARNESS_ERROR = 0, 1, 3


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jepsen_like.durability", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    trace = commands.add_parser("trace", help="run a command under the tracer")
    trace.add_argument("--watch", required=True, metavar="DIR", help="data directory")
    trace.add_argument("--exempt", action="append", default=[], metavar="GLOB")
    trace.add_argument("--images", metavar="DIR", help="scratch space beside the data directory")
    trace.add_argument("--events", metavar="FILE", help="one JSON line per promise and commit")
    trace.add_argument("--verdict", metavar="FILE", help="where to write the verdict, not stdout")
    trace.add_argument(
        "--on-death",
        choices=("keep", "discard"),
        default="keep",
        help="discard: after SIGKILL take back what was not synced",
    )
    trace.add_argument("--ordering", action="store_true", help="check the ordering rules")
    trace.add_argument("--log", default="log", metavar="DIR", help="the log, relative to --watch")
    trace.add_argument("--revision-base", type=int, metavar="N", help="check client replies")
    trace.add_argument("--require", action="append", default=[], metavar="KIND")
    trace.add_argument("argv", nargs="+", metavar="command")
    run_spec = commands.add_parser("run-spec", help="what the Python interface starts")
    run_spec.add_argument("spec_fd", type=int)
    run_spec.add_argument("report_fd", type=int)
    return parser


def _trace(options: argparse.Namespace) -> int:
    rules = RaftOrdering(
        log=options.log, revision_base=options.revision_base, require=tuple(options.require)
    )
    spec = TraceSpec(
        argv=tuple(options.argv),
        watch=options.watch,
        exempt=tuple(options.exempt),
        ordering=rules if options.ordering else None,
        images=options.images,
        events=options.events,
        discard_on_kill=options.on_death == "discard",
    )
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            verdict = TraceRun(spec, nowhere).run()
    except (PtraceUnavailableError, UnsupportedMachineError) as error:
        print(error, file=sys.stderr)
        return HARNESS_ERROR
    if options.verdict:
        with open(options.verdict, "w", encoding="utf-8") as file:
            file.write(verdict.to_json() + "\n")
    else:
        print(verdict.to_json())
    return VALID if verdict.ok else INVALID


def _run_spec(options: argparse.Namespace) -> int:
    os.set_inheritable(options.report_fd, False)
    with os.fdopen(options.spec_fd, encoding="utf-8") as file:
        spec = TraceSpec.from_json(file.read())
    with os.fdopen(options.report_fd, "w", encoding="utf-8") as report:
        try:
            verdict = TraceRun(spec, report).run()
        except (PtraceUnavailableError, UnsupportedMachineError) as error:
            report.write(json.dumps({"failed": str(error)}) + "\n")
            return HARNESS_ERROR
    return VALID if verdict.ok else INVALID


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    return _trace(options) if options.command == "trace" else _run_spec(options)


if __name__ == "__main__":
    sys.exit(main())
