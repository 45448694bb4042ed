"""``recover``, ``backup`` and ``restore``: commands that make something new."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from raftcore.cli.looking import Commands, show_configuration
from raftcore.cli.output import ProgressLine, facts, moment, paragraph, say, say_json, size, table
from raftcore.errors import ExitCode
from raftcore.storage.closed import ClosedDirectory
from raftcore.tools.archive import backup, restore
from raftcore.tools.rebuilding import NewMember, Rebuilt
from raftcore.tools.recovery import Plan, Survivor, plan_recovery

# -- recover -------------------------------------------------------------------------------------

_RECOVER = """\
Make a new cluster from the surviving directories of one that lost its quorum for good.

Without --execute this is a dry run: it says which directory is the best one, which members are
missing, and what may be lost. Give ALL directories that survived; the best log wins, and more of
them prove more.

With --execute, --into and --confirm a new directory is made, of a new cluster with one member,
which begins with the best log. The directories given are never changed. Members of the old cluster
cannot talk to the new one. Destroy or put away the old directories afterwards, and let further
members join the new cluster with empty ones.
"""


def add_recover(commands: Commands) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        "recover",
        help="a new cluster after a lost quorum; a dry run unless told otherwise",
        description=_RECOVER,
        epilog="examples:\n"
        "  raftcore recover /mnt/n2 /mnt/n3\n"
        "  raftcore recover /mnt/n2 /mnt/n3 --execute --into /var/lib/guardian/n2 \\\n"
        "      --confirm 4f0c...\n",
    )
    command.add_argument("directories", metavar="DIR", nargs="+", help="what survived")
    command.add_argument("--execute", action="store_true", help="really make the new directory")
    command.add_argument("--into", metavar="NEWDIR", help="the directory to make; must be empty")
    command.add_argument(
        "--confirm", metavar="CLUSTER_ID", help="the id of the cluster that is given up, in full"
    )
    command.add_argument(
        "--despite-quorum", action="store_true", help="although the survivors could go on by voting"
    )
    command.add_argument(
        "--salvage",
        action="store_true",
        help="build on the sound beginning of a damaged log too; look at the dry run first",
    )
    _add_member(command)
    command.set_defaults(run=run_recover, parser=command)
    return command


def _add_member(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("the one member of the new cluster")
    group.add_argument("--node-id", help="its id; by default that of the directory used")
    group.add_argument(
        "--address", metavar="HOST:PORT", help="where peers reach it; by default where it was"
    )
    group.add_argument(
        "--attribute",
        metavar="KEY=VALUE",
        action="append",
        type=_attribute,
        help="what the application keeps about it; by default as it was",
    )
    command.add_argument(
        "--allow-unsupported-fs", action="store_true", help="also on a network file system"
    )


def _attribute(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ValueError("KEY=VALUE is wanted")
    return key, value


def run_recover(arguments: argparse.Namespace, progress: ProgressLine) -> int:
    if arguments.execute and (arguments.into is None or arguments.confirm is None):
        arguments.parser.error("--execute needs --into and --confirm")
    made: Rebuilt | None = None
    with plan_recovery(
        arguments.directories, salvage=arguments.salvage, on_progress=progress
    ) as recovery:
        progress.end()
        if not arguments.json:
            show_plan(recovery.plan)
        if arguments.execute:
            made = recovery.execute(
                arguments.into,
                confirm=arguments.confirm,
                member=_member(arguments),
                despite_quorum=arguments.despite_quorum,
                allow_unsupported_fs=arguments.allow_unsupported_fs,
                on_progress=progress,
            )
            progress.end()
    if arguments.json:
        say_json({"plan": recovery.plan, "made": made})
    elif made is not None:
        say()
        show_rebuilt(made)
    else:
        say()
        say("Dry run: nothing was made.")
    return ExitCode.OK


def _member(arguments: argparse.Namespace) -> NewMember:
    """Who the new member is: as it was, but for what was given."""
    attributes = arguments.attribute and tuple(arguments.attribute)
    return NewMember(arguments.node_id, arguments.address, attributes)


def show_plan(plan: Plan) -> None:
    """What is there, what is missing, and what that means."""
    facts(
        [
            ("cluster", plan.cluster_id),
            ("quorum", f"{plan.quorum_size} of {len(plan.configuration.voters)} voters"),
        ]
    )
    say()
    table(
        ["directory", "node", "log ends at", "known committed", "remark"],
        [_survivor_row(s, chosen=s is plan.best) for s in plan.survivors],
    )
    say()
    show_configuration(plan.configuration, plan.configuration_index)
    say()
    missing = ", ".join(f"{m.node_id} ({m.incarnation.hex()[:8]})" for m in plan.missing)
    say(f"Missing: {missing or 'nobody'}.")
    for text in explain_loss(plan):
        paragraph(text)


def _survivor_row(survivor: Survivor, *, chosen: bool) -> tuple[object, ...]:
    last = survivor.last
    remarks = [text for text in (survivor.problem, survivor.doubt) if text]
    return (
        survivor.path,
        survivor.identity.node_id,
        "-" if last is None else f"{last.index} (term {last.term})",
        survivor.commit_hint,
        "; ".join((["CHOSEN"] if chosen else []) + remarks),
    )


def explain_loss(plan: Plan) -> list[str]:
    """What is certain, what is not, and what the operator decides by going on."""
    loss, lines = plan.loss, []
    if plan.quorum_here:
        lines.append("The survivors are a quorum. Start them: nothing is lost, do not recover.")
    if loss.proven_to:
        lines.append(
            f"LOST FOR CERTAIN: {_entries(loss.after_index + 1, loss.proven_to)} known to have "
            f"been committed, and on no directory that can be used."
        )
    if loss.possible:
        lines.append(
            f"MAY BE LOST: everything after entry {loss.after_index}. The missing members are "
            f"enough to have committed more, and acknowledged it, without any survivor; how much "
            f"cannot be known. The newest entry held was written "
            f"{moment(loss.newest_unix_ms)}: distrust what was acknowledged after that."
        )
    else:
        lines.append(
            "No committed entry is lost: the missing members alone were no quorum, and the chosen "
            "log is the one that would win an election."
        )
    if plan.unconfirmed is not None:
        lines.append(
            f"BECOMES PERMANENT: {_entries(*plan.unconfirmed)} held, but it is not known that this "
            f"was committed. A write there may have been reported as 'outcome unknown'."
        )
    return lines


def _entries(first: int, last: int) -> str:
    return f"entry {first} is" if first == last else f"entries {first}..{last} are"


def show_rebuilt(made: Rebuilt) -> None:
    """The new directory, and what to do with it."""
    facts(
        [
            ("made", made.path),
            ("new cluster", f"{made.identity.cluster_id} (epoch {made.epoch})"),
            ("old cluster", made.old_cluster_id),
            ("node", made.identity.node_id),
            ("entries up to", made.last_index),
        ]
    )
    say()
    say("Start the node on it, then let further members join with empty directories.")
    say("Never start a node of the old cluster again: put its directories away.")


# -- backup and restore --------------------------------------------------------------------------


def add_backup(commands: Commands) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        "backup",
        help="archive the directory of a stopped node",
        description="Verify the directory of a stopped node and archive it into one new file:"
        "\na tar with a manifest that has the SHA-256 of every file. What the node's state machine"
        "\nkeeps beside the log is not in it: it is made again from snapshot and log.",
        epilog="Keep the digest apart from the archive: restore --digest then refuses any other."
        "\n\nexample:\n  raftcore backup /var/lib/guardian/n1 /backup/n1.tar\n",
    )
    command.add_argument("directory", metavar="DIR", help="the data directory of a stopped node")
    command.add_argument("out", metavar="OUT.tar", help="the file to make; must not exist")
    command.add_argument(
        "--despite-doubt",
        action="store_true",
        help="also of a node in quarantine or below its FLOOR, which may lack what it acknowledged",
    )
    command.set_defaults(run=run_backup)
    return command


def run_backup(arguments: argparse.Namespace, progress: ProgressLine) -> int:
    with ClosedDirectory.open(arguments.directory) as directory:
        made = backup(
            directory,
            arguments.out,
            despite_doubt=arguments.despite_doubt,
            on_progress=progress,
        )
    progress.end()
    if arguments.json:
        say_json(made)
        return ExitCode.OK
    facts(
        [
            ("made", f"{made.path} ({size(made.size_bytes)})"),
            ("cluster", made.identity.cluster_id),
            ("node", made.identity.node_id),
            ("entries up to", made.last_index),
            ("digest", made.digest),
        ]
    )
    return ExitCode.OK


def add_restore(commands: Commands) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        "restore",
        help="a new cluster from a backup",
        description="Verify every byte of a backup and make from it the directory of a new cluster"
        "\nwith one member. Always a new cluster: a restored copy has forgotten what its node"
        "\nacknowledged and whom it voted for, and could undo committed entries of the old one."
        "\nA single lost member needs no backup: remove it, and let it join again, empty.",
        epilog="example:\n  raftcore restore /backup/n1.tar /var/lib/guardian/n1\n",
    )
    command.add_argument("archive", metavar="OUT.tar", help="what backup made")
    command.add_argument("into", metavar="NEWDIR", help="the directory to make; must be empty")
    command.add_argument("--digest", metavar="SHA256", help="accept only the backup with this one")
    command.add_argument(
        "--staging",
        metavar="DIR",
        help="where to unpack; by default NEWDIR if it is there, else the directory it will be in",
    )
    _add_member(command)
    command.set_defaults(run=run_restore)
    return command


def run_restore(arguments: argparse.Namespace, progress: ProgressLine) -> int:
    made = restore(
        arguments.archive,
        arguments.into,
        member=_member(arguments),
        digest=arguments.digest,
        staging=arguments.staging,
        allow_unsupported_fs=arguments.allow_unsupported_fs,
        on_progress=progress,
    )
    progress.end()
    if arguments.json:
        say_json(made)
    else:
        show_rebuilt(made)
    return ExitCode.OK


COMMANDS: tuple[Callable[[Commands], argparse.ArgumentParser], ...] = (
    add_recover,
    add_backup,
    add_restore,
)
