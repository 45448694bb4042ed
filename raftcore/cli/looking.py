"""``inspect``, ``verify``, ``dump`` and ``compare``: commands that only look."""

from __future__ import annotations

import argparse
import base64
import contextlib
from collections.abc import Callable
from typing import Any

from raftcore.cli.output import (
    ProgressLine,
    complain,
    facts,
    moment,
    paragraph,
    say,
    say_json,
    say_json_line,
    size,
    table,
)
from raftcore.core.membership import decode_configuration
from raftcore.core.types import Configuration, Entry, EntryType
from raftcore.errors import ExitCode, LogCorruptError
from raftcore.storage.closed import ClosedDirectory
from raftcore.storage.plan import Link
from raftcore.storage.quarantine import Quarantine
from raftcore.tools.comparison import Comparison, Relation, compare
from raftcore.tools.inspection import Inspection, inspect
from raftcore.tools.verification import Report, verify

Commands = Any  #: argparse gives the type of its sub-parsers no public name

MAX_COMPARED = 16


# -- inspect -------------------------------------------------------------------------------------


def add_inspect(commands: Commands) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        "inspect",
        help="what a directory says of itself",
        description="Show whom a directory belongs to, where its log stands, the members in force,"
        "\nits snapshots and sizes. Entries are not verified: see verify.",
        epilog="example:\n  raftcore inspect /var/lib/guardian/n1\n",
    )
    command.add_argument("directory", metavar="DIR", help="the data directory of a stopped node")
    command.set_defaults(run=run_inspect)
    return command


def run_inspect(arguments: argparse.Namespace, progress: ProgressLine) -> int:
    progress("reading", 0, 0)
    with ClosedDirectory.open(arguments.directory) as directory:
        found = inspect(directory)
    if arguments.json:
        say_json(found)
    else:
        _show_inspection(found)
    return ExitCode.OK


def _show_inspection(found: Inspection) -> None:
    state = found.hard_state
    facts(
        [
            ("directory", found.path),
            ("cluster", found.identity.cluster_id),
            ("node", found.identity.node_id),
            ("incarnation", found.identity.incarnation.hex()),
            ("formats", ", ".join(f"{k} {v}" for k, v in found.formats.items())),
            ("closed properly", "yes" if found.clean else "no: the next start verifies all of it"),
            ("runs", found.runs),
            ("term", f"{state.term}, voted for {state.vote or 'nobody'}"),
            ("entries", f"{found.first_index}..{found.last.index}, last term {found.last.term}"),
            ("known committed", f"at least {found.commit_hint}"),
            ("chain", found.chain.hex()),
            ("floor", _floor(found)),
            ("quarantine", _quarantine(found.quarantine)),
        ]
    )
    if found.origin is not None:
        origin = found.origin
        say()
        say(
            f"{origin['kind']} {moment(1000 * origin['made_unix_s'])} (epoch {origin['epoch']}) "
            f"from cluster {origin['cluster_id']}, entries up to {origin['last_index']}"
        )
    say()
    show_configuration(found.configuration, found.configuration_index)
    say()
    table(
        ["snapshot", "index", "term", "size", ""],
        [
            (s.name, s.index, s.term, size(s.size_bytes), s.problem or _force(in_force=s.in_force))
            for s in found.snapshots
        ],
    )
    say()
    table(["on disk", "size"], [(name, size(count)) for name, count in found.sizes.items()])


def _floor(found: Inspection) -> str:
    if found.lost:
        return f"MISSED: {found.lost}"
    floor = found.floor
    return "none" if floor is None else f"term {floor.term}, entries to {floor.last_index}"


def _quarantine(quarantine: Quarantine | None) -> str:
    if quarantine is None:
        return "no"
    return f"YES, since {moment(quarantine.since_ms)}: {quarantine.reason}"


def _force(*, in_force: bool) -> str:
    return "in force" if in_force else ""


def show_configuration(configuration: Configuration | None, index: int) -> None:
    """The members, one per line, and the stage of a change if one is under way."""
    if configuration is None:
        say("no configuration: the node has not been let into its cluster yet")
        return
    stage = "stable"
    if configuration.old_voters:
        stage = f"joint: majorities of {', '.join(configuration.old_voters)} and of the voters"
    elif configuration.target is not None:
        stage = f"staging: the voters are to be {', '.join(configuration.target.voters)}"
    say(f"configuration of index {index}, level {configuration.level}, {stage}")
    table(
        ["member", "address", "role", "incarnation", "attributes"],
        [
            (
                m.node_id,
                m.address,
                "voter" if m.voter else "learner",
                m.incarnation.hex(),
                " ".join(f"{key}={value}" for key, value in m.attributes),
            )
            for m in configuration.members
        ],
    )


# -- verify --------------------------------------------------------------------------------------


def add_verify(commands: Commands) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        "verify",
        help="everything that can be verified without running the node",
        description="Verify the structure of the log's file, the checksum, order and hash chain of"
        "\nevery entry, every snapshot, and that all of them fit together. Goes on past what is"
        "\ndamaged, so that one report says how much is sound. Never maps a file cut short.",
        epilog="findings:\n"
        "  damage    a start refuses, or something would be lost\n"
        "  warning   a start copes with it, but somebody should know\n"
        "  note      the ordinary trace of a crash or of an operator\n\n"
        "example:\n  raftcore verify /var/lib/guardian/n1 --json\n",
    )
    command.add_argument("directory", metavar="DIR", help="the data directory of a stopped node")
    command.set_defaults(run=run_verify)
    return command


def run_verify(arguments: argparse.Namespace, progress: ProgressLine) -> int:
    with ClosedDirectory.open(arguments.directory) as directory:
        report = verify(directory, on_progress=progress)
    progress.end()
    if arguments.json:
        say_json(report)
    else:
        show_report(report)
    return report.exit_code


def show_report(report: Report) -> None:
    """The findings, and in the last line the verdict."""
    for finding in report.findings:
        say(f"{finding.severity.value:<8} {finding.code} at {finding.where}: {finding.detail}")
    if report.omitted:
        say(f"... and {report.omitted} more")
    verdict = "sound" if report.sound else f"NOT SOUND ({report.exit_code})"
    say(f"{verdict}: {report.entries} entries and {report.snapshots} snapshots verified")


# -- dump ----------------------------------------------------------------------------------------


def add_dump(commands: Commands) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        "dump",
        help="the entries of a log, in order",
        description="Print entries in order, configurations decoded, with a line where the term"
        "\nchanges. Memory stays bounded. With --json: one object per line.",
        epilog="example:\n  raftcore dump /var/lib/guardian/n1 --from 100 --to 120 --data text\n",
    )
    command.add_argument("directory", metavar="DIR", help="the data directory of a stopped node")
    command.add_argument("--from", dest="first", type=_index, default=1, metavar="I")
    command.add_argument("--to", dest="last", type=_index, default=None, metavar="J")
    command.add_argument(
        "--data", choices=tuple(_DATA), default="none", help="how to print what commands hold"
    )
    command.set_defaults(run=run_dump)
    return command


def _index(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError("indexes begin at 1")
    return value


_DATA: dict[str, Callable[[bytes], str | None]] = {
    "none": lambda _: None,
    "hex": bytes.hex,
    "text": lambda data: data.decode("utf-8", "backslashreplace"),
    "base64": lambda data: base64.b64encode(data).decode(),
}


def run_dump(arguments: argparse.Namespace, progress: ProgressLine) -> int:
    with ClosedDirectory.open(arguments.directory) as directory, directory.log() as log:
        progress.end()
        shape = log.records.shape
        if arguments.first < shape.first_index <= shape.last_index:
            complain(f"raftcore: the log begins at {shape.first_index}; the rest is compacted")
        term = None
        for entry, link in log.entries(arguments.first, arguments.last):
            data = _data_of(entry, _DATA[arguments.data])
            if arguments.json:
                say_json_line(_entry_object(entry, link, data))
                continue
            if entry.term != term:
                term = entry.term
                say(f"-- term {term} --")
            _show_entry(entry, data)
    return ExitCode.OK


def _data_of(entry: Entry, render: Callable[[bytes], str | None]) -> str | None:
    """Of a configuration always the text; of anything else as it was asked for."""
    if entry.type is not EntryType.CONFIGURATION:
        return render(entry.data)
    try:
        decode_configuration(entry.data)
    except ValueError as error:
        raise LogCorruptError(f"entry {entry.index}: {error}") from error
    return entry.data.decode()


def _entry_object(entry: Entry, link: Link, data: str | None) -> dict[str, Any]:
    return {
        "index": entry.index,
        "term": entry.term,
        "type": entry.type,
        "size_bytes": len(entry.data),
        "client_id": entry.client_id,
        "sequence": entry.sequence,
        "timestamp_ms": entry.timestamp_ms,
        "feature_level": entry.feature_level,
        "chain": link.chain,
        "data": data,
    }


def _show_entry(entry: Entry, data: str | None) -> None:
    words = [f"{entry.index}", entry.type.name.lower(), f"{len(entry.data)} bytes"]
    if entry.client_id:
        words.append(f"client {entry.client_id.hex()} sequence {entry.sequence}")
    if entry.timestamp_ms:
        words.append(moment(entry.timestamp_ms))
    say("  ".join(words))
    if data:
        say(f"    {data}")


# -- compare -------------------------------------------------------------------------------------


def add_compare(commands: Commands) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        "compare",
        help="where the logs of nodes differ",
        description="Find, for each pair of directories, the first index at which their logs"
        "\ndiffer, and say whether that may be so. Ends with 76 if committed entries differ.",
        epilog="example:\n  raftcore compare n1 n2 n3\n",
    )
    command.add_argument(
        "directories", metavar="DIR", nargs="+", help="data directories of stopped nodes"
    )
    command.set_defaults(run=run_compare, parser=command)
    return command


def run_compare(arguments: argparse.Namespace, progress: ProgressLine) -> int:
    paths = arguments.directories
    if not 2 <= len(paths) <= MAX_COMPARED:
        arguments.parser.error(f"give between 2 and {MAX_COMPARED} directories")
    with contextlib.ExitStack() as held:
        logs = []
        for number, path in enumerate(paths):
            progress("opening", number, len(paths))
            directory = held.enter_context(ClosedDirectory.open(path))
            directory.identity()
            logs.append((directory.path, held.enter_context(directory.log())))
        found = compare(logs)
    progress.end()
    if arguments.json:
        say_json(found)
    else:
        show_comparison(found)
    if found.conflict:
        return ExitCode.LOG_CORRUPT
    strangers = any(d.relation is Relation.OTHER_CLUSTER for d in found.differences)
    return ExitCode.CONFIG if strangers else ExitCode.OK


def show_comparison(found: Comparison) -> None:
    """All logs in a table, then a sentence on each pair."""
    table(
        ["node", "entries", "last term", "known committed", "snapshot", "term", "vote"],
        [
            (
                side.node_id,
                f"{side.first_index}..{side.last.index}",
                side.last.term,
                side.commit_hint,
                side.snapshot_index or "-",
                side.term,
                side.vote or "-",
            )
            for side in found.sides
        ],
    )
    for pair in found.differences:
        say()
        say(f"{pair.a} and {pair.b}: {pair.relation.value}")
        paragraph(pair.explanation, indent="  ")
        if pair.differ_from is not None:
            a, b = f"term {pair.term_a} in {pair.a}", f"term {pair.term_b} in {pair.b}"
            say(f"  at {pair.differ_from}: {a}, {b}")


COMMANDS: tuple[Callable[[Commands], argparse.ArgumentParser], ...] = (
    add_inspect,
    add_verify,
    add_dump,
    add_compare,
)
