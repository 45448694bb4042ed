"""``raftcore``: look at, verify, compare, recover, back up and restore directories."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from raftcore.cli import looking, saving
from raftcore.cli.output import ProgressLine, complain, say_json_line
from raftcore.errors import ExitCode, RaftcoreError, StorageError

#: Nothing was done: the request was refused. See also :class:`~raftcore.errors.ExitCode`.
REFUSED = 1
INTERRUPTED = 130
BROKEN_PIPE = 141

EXIT_CODES = """\
exit codes:
  0    done; for verify: sound; for compare: nothing is wrong
  1    refused, and nothing was done: not confirmed, the target exists, a quorum is here
  2    wrong use of the command line
  73   E_LOCKED: a node, or another tool, uses the directory
  74   E_STORAGE_IO: the disk failed a read or a write
  75   E_NO_SPACE: the disk is full
  76   damaged: E_LOG_CORRUPT, E_TRUNCATED, E_GAP; for compare: committed entries differ
  77   E_UNSUPPORTED_FS: the new directory would be on an unsuitable file system
  78   E_IDENTITY, E_FORMAT_TOO_NEW: no node's directory, another cluster's, a newer release's
  130  interrupted
"""

_DESCRIPTION = """\
Work on data directories of raftcore nodes that do not run.

A directory is locked for the time; while a node runs on it every command refuses (E_LOCKED). No
command changes a directory that it is given: recover and restore make new ones.
"""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="raftcore",
        description=_DESCRIPTION,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (*looking.COMMANDS, *saving.COMMANDS):
        command = add(commands)
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        command.epilog = f"{command.epilog or ''}\n{EXIT_CODES}"
        command.add_argument("--json", action="store_true", help="answer in JSON")
        command.add_argument(
            "--progress",
            action="store_true",
            default=None,
            help="say on standard error how far it is, also when that is not a terminal",
        )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    progress = ProgressLine(arguments.progress)
    try:
        code = int(arguments.run(arguments, progress))
        sys.stdout.flush()
    except RaftcoreError as error:
        progress.end()
        _report(error, as_json=arguments.json)
        return int(error.exit_code) if isinstance(error, StorageError) else REFUSED
    except BrokenPipeError:
        # Whoever read has seen enough. Python flushes once more at its end: into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        progress.end()
        complain(f"raftcore: {StorageError.code}: {error}")
        return ExitCode.STORAGE_IO
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        progress.end()
    return code


def _report(error: RaftcoreError, *, as_json: bool) -> None:
    complain(f"raftcore: {error.code}: {error}")
    if as_json:
        say_json_line({"error": {"code": error.code, "message": str(error)}})
