"""The commands as an operator types them: what they print, how they end, what they leave alone."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raftcore.cli.main import build_parser, main
from raftcore.core.types import Entry, EntryType
from raftcore.errors import ExitCode
from raftcore.storage.directory import DataDirectory
from raftcore.storage.records import seal, unseal
from raftcore.testing.storage_model import commands

Directories = Any  #: of the conftest above
Run = Callable[..., tuple[int, str, str]]

COMMANDS = ("inspect", "verify", "dump", "compare", "recover", "backup", "restore")


@pytest.fixture
def run(three: Directories, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command on names of directories; exit code and both outputs without what is random."""

    def run(*words: str) -> tuple[int, str, str]:
        code = main([str(three.path(w[1:])) if w.startswith("@") else w for w in words])
        captured = capsys.readouterr()
        return code, plain(captured.out, three.root), plain(captured.err, three.root)

    return run


def plain(text: str, root: Path) -> str:
    text = text.replace(str(root), "ROOT").replace("c0ffee00" * 4, "CLUSTER")
    text = re.sub(r"\b[0-9a-f]{64}\b", "HASH", text)
    text = re.sub(r"\b[0-9a-f]{32}\b", "ID", text)
    text = re.sub(r"\([0-9a-f]{8}\)", "(ID)", text)
    text = re.sub(r"2\d{3}-\d\d-\d\d \d\d:\d\d:\d\d UTC", "TIME", text)
    return re.sub(r" {2,}", "  ", text)


def golden(text: str) -> str:
    return textwrap.dedent(text).lstrip("\n")


# -- what they print -----------------------------------------------------------------------------


def test_inspect_says_whom_it_belongs_to_and_where_it_stands(three: Directories, run: Run) -> None:
    three.snapshot("n1", 10, compact_to=6)
    code, out, _ = run("inspect", "@n1")
    assert code == ExitCode.OK
    said = out[: out.index("on disk")]
    assert said == golden("""
        directory  ROOT/n1
        cluster  CLUSTER
        node  n1
        incarnation  ID
        formats  identity 1, log 2
        closed properly  yes
        runs  2
        term  2, voted for nobody
        entries  6..20, last term 2
        known committed  at least 15
        chain  HASH
        floor  term 2, entries to 20
        quarantine  no

        configuration of index 10, level 2, stable
        member  address  role  incarnation  attributes
        n1  127.0.0.1:7000  voter  ID
        n2  127.0.0.1:7001  voter  ID
        n3  127.0.0.1:7002  voter  ID

        snapshot  index  term  size
        10-2.snap  10  2  957 B  in force

    """)


def test_inspect_answers_in_json(run: Run) -> None:
    code, out, _ = run("inspect", "@n1", "--json")
    found = json.loads(out)
    assert code == ExitCode.OK
    assert found["identity"]["node_id"] == "n1"
    assert found["last"] == {"term": 2, "index": 20}
    assert found["configuration"]["members"][2]["address"] == "127.0.0.1:7002"


def test_verify_ends_with_a_verdict(three: Directories, run: Run) -> None:
    assert run("verify", "@n1") == (0, "sound: 20 entries and 0 snapshots verified\n", "")
    three.damage("n1")
    code, out, _ = run("verify", "@n1")
    assert code == ExitCode.LOG_CORRUPT
    assert out.splitlines()[0] == ("damage  entry_damaged at 2: checksum of entry 2 does not match")
    assert out.splitlines()[-1] == "NOT SOUND (76): 1 entries and 0 snapshots verified"


def test_dump_prints_entries_in_order_with_the_borders_of_terms(
    three: Directories, run: Run
) -> None:
    entries = [
        Entry(16, 3, EntryType.NOOP),
        Entry(17, 3, EntryType.COMMAND, b"\x1b[2Jcaf\xc3\xa9\xff"),
    ]
    three.append("n3", entries, term=3, commit=15)
    code, out, _ = run("dump", "@n3", "--from", "15", "--data", "text")
    assert code == ExitCode.OK
    assert out == golden("""
        -- term 2 --
        15  command  4 bytes  client 636c69656e74 sequence 45  TIME
          data
        -- term 3 --
        16  noop  0 bytes
        17  command  10 bytes
          \\x1b[2Jcafé\\xff
    """)


@pytest.mark.parametrize(
    ("how", "shown"), [("hex", "64617461"), ("base64", "ZGF0YQ=="), ("none", None)]
)
def test_dump_prints_one_json_object_per_line(run: Run, how: str, shown: str | None) -> None:
    _, out, _ = run("dump", "@n1", "--to", "3", "--data", how, "--json")
    first, *rest = [json.loads(line) for line in out.splitlines()]
    assert [e["index"] for e in (first, *rest)] == [1, 2, 3]
    assert json.loads(first["data"])["members"][0]["node_id"] == "n1"
    assert [e["data"] for e in rest] == [shown, shown]


def test_dump_says_what_is_compacted(three: Directories, run: Run) -> None:
    three.snapshot("n1", 10, compact_to=6)
    _, out, err = run("dump", "@n1", "--to", "7")
    assert "begins at 6" in err
    assert out.splitlines()[1].startswith("6  command")


def test_compare_explains_each_pair(run: Run) -> None:
    code, out, _ = run("compare", "@n1", "@n3")
    assert code == ExitCode.OK
    assert out == golden("""
        node  entries  last term  known committed  snapshot  term  vote
        n1  1..20  2  15  -  2  -
        n3  1..15  2  15  -  2  -

        n1 and n3: prefix
          The log of n3 is the beginning of that of n1, which has 5 entries more. Nothing is
          wrong: n3 will be sent them.
    """)


def test_compare_is_loud_about_corruption(three: Directories, run: Run) -> None:
    for name, term in (("n1", 3), ("n2", 4)):
        three.append(name, commands(21, 25, term), term=term, commit=25)
    code, out, _ = run("compare", "@n1", "@n2")
    assert code == ExitCode.LOG_CORRUPT
    assert "n1 and n2: conflict" in out
    assert "CORRUPTION: at 21 the entries differ" in out
    assert "at 21: term 3 in n1, term 4 in n2" in out
    assert run("compare", "@n1", "@n2", "--json")[0] == ExitCode.LOG_CORRUPT


def test_compare_of_two_clusters_is_a_mistake(three: Directories, run: Run) -> None:
    three.found("other", cluster_id="another")
    assert run("compare", "@n1", "@other")[0] == ExitCode.CONFIG


def test_recover_is_a_dry_run_unless_told_otherwise(three: Directories, run: Run) -> None:
    code, out, _ = run("recover", "@n3")
    assert code == ExitCode.OK
    assert out == golden("""
        cluster  CLUSTER
        quorum  2 of 3 voters

        directory  node  log ends at  known committed  remark
        ROOT/n3  n3  15 (term 2)  15  CHOSEN

        configuration of index 1, level 2, stable
        member  address  role  incarnation  attributes
        n1  127.0.0.1:7000  voter  ID
        n2  127.0.0.1:7001  voter  ID
        n3  127.0.0.1:7002  voter  ID

        Missing: n1 (ID), n2 (ID).
        MAY BE LOST: everything after entry 15. The missing members are enough to have committed
        more, and acknowledged it, without any survivor; how much cannot be known. The newest
        entry held was written TIME: distrust what was acknowledged after that.

        Dry run: nothing was made.
    """)
    assert sorted(p.name for p in three.root.iterdir() if p.is_dir()) == ["n1", "n2", "n3"]


def test_recover_makes_a_new_directory_when_it_is_confirmed(three: Directories, run: Run) -> None:
    cluster = three.configuration.cluster_id
    words = ("recover", "@n1", "--execute", "--into", "@new", "--confirm")
    assert run(*words, "c0ffee")[0] == 1
    assert not three.path("new").exists()
    code, out, _ = run(*words, cluster)
    assert code == ExitCode.OK
    assert "BECOMES PERMANENT: entries 16..20 are held" in out
    assert re.match(r"cluster  CLUSTER\n", out)
    assert "\n\nmade  ROOT/new\nnew cluster  ID (epoch 1)\n" in out
    assert run("verify", "@new")[0] == ExitCode.OK
    _, out, _ = run("inspect", "@new")
    assert "recovered TIME (epoch 1) from cluster CLUSTER, entries up to 20" in out
    code, _, err = run(*words, cluster)
    assert (code, err) == (1, "raftcore: refused: ROOT/new is not an empty directory\n")


def test_recover_with_a_quorum_tells_to_start_the_nodes(three: Directories, run: Run) -> None:
    cluster = three.configuration.cluster_id
    code, out, _ = run("recover", "@n1", "@n2")
    assert code == ExitCode.OK
    assert "The survivors are a quorum. Start them" in out
    words = ("recover", "@n1", "@n2", "--execute", "--into", "@new", "--confirm", cluster)
    assert run(*words)[0] == 1
    assert run(*words, "--despite-quorum", "--json")[0] == ExitCode.OK


def test_recover_says_in_json_what_it_found_and_made(three: Directories, run: Run) -> None:
    cluster = three.configuration.cluster_id
    _, out, _ = run("recover", "@n3", "--json")
    found = json.loads(out)
    assert found["made"] is None
    assert found["plan"]["loss"]["possible"] is True
    _, out, _ = run(
        "recover", "@n3", "--json", "--execute", "--into", "@new", "--confirm", cluster,
        "--node-id", "x", "--address", "h:1", "--attribute", "http=h:2",
    )  # fmt: skip
    assert json.loads(out)["made"]["identity"]["node_id"] == "x"
    _, out, _ = run("inspect", "@new", "--json")
    (member,) = json.loads(out)["configuration"]["members"]
    assert (member["address"], member["attributes"]) == ("h:1", [["http", "h:2"]])


def test_backup_and_restore_bring_everything_into_a_new_cluster(
    three: Directories, run: Run
) -> None:
    code, out, _ = run("backup", "@n1", "@b.tar", "--json")
    assert code == ExitCode.OK
    digest = three.path("b.tar")
    assert json.loads(out)["last_index"] == 20
    assert run("backup", "@n1", "@b.tar")[0] == 1
    assert run("restore", "@b.tar", "@new", "--digest", "0" * 64)[0] == ExitCode.LOG_CORRUPT
    code, out, _ = run("restore", "@b.tar", "@new")
    assert code == ExitCode.OK
    assert out == golden("""
        made  ROOT/new
        new cluster  ID (epoch 1)
        old cluster  CLUSTER
        node  n1
        entries up to  20

        Start the node on it, then let further members join with empty directories.
        Never start a node of the old cluster again: put its directories away.
    """)
    assert run("restore", "@b.tar", "@newer", "--json")[0] == ExitCode.OK
    code, out, _ = run("backup", "@new", "@c.tar")
    assert (code, "digest  HASH" in out) == (ExitCode.OK, True)
    digest.write_bytes(b"")
    assert run("restore", "@b.tar", "@newest")[0] == ExitCode.LOG_CORRUPT
    assert run("restore", "@nowhere.tar", "@newest")[0] == ExitCode.STORAGE_IO


# -- how they end --------------------------------------------------------------------------------


def words_for(command: str, name: str) -> list[str]:
    """A command line that looks at that directory first."""
    more = {"compare": ["@n2"], "backup": ["@b.tar"]}
    return [command, name, *more.get(command, [])]


LOOKING = ("inspect", "verify", "dump", "compare", "recover", "backup")


@pytest.mark.parametrize("command", LOOKING)
def test_a_healthy_directory_is_read_and_nothing_of_it_changes(
    three: Directories, run: Run, command: str
) -> None:
    three.snapshot("n1", 10, compact_to=6)
    before = three.fingerprint("n1", "n2", "n3")
    code, _, err = run(*words_for(command, "@n1"))
    assert (code, err.replace("raftcore: the log begins at 6; the rest is compacted\n", "")) == (
        ExitCode.OK,
        "",
    )
    assert three.fingerprint("n1", "n2", "n3") == before


@pytest.mark.parametrize("command", LOOKING)
def test_a_directory_in_use_is_refused_and_its_user_undisturbed(
    three: Directories, run: Run, command: str
) -> None:
    with contextlib.closing(DataDirectory.open(three.path("n1"), "n1")) as running:
        code, _, err = run(*words_for(command, "@n1"))
        assert code == ExitCode.LOCKED
        assert err.startswith("raftcore: E_LOCKED: ROOT/n1 is in use (pid ")
        assert running.identity is not None


@pytest.mark.parametrize("command", LOOKING)
@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_directory_of_nobody_is_refused(
    three: Directories, run: Run, command: str, name: str
) -> None:
    three.path("empty").mkdir()
    code, _, _ = run(*words_for(command, f"@{name}"))
    assert code == ExitCode.CONFIG
    assert list(three.path("empty").iterdir()) == []
    assert not three.path("missing").exists()


@pytest.mark.parametrize("command", LOOKING)
def test_a_newer_format_is_refused_and_untouched(
    three: Directories, run: Run, command: str
) -> None:
    path = three.path("n1") / "IDENTITY"
    body = unseal(path.read_bytes()) | {"format_version": 9, "min_reader_version": 9}
    path.write_bytes(seal(body))
    before = three.fingerprint("n1")
    code, out, err = run(*words_for(command, "@n1"))
    if command == "dump":  # entries say their own format; whose they are does not matter
        assert code == ExitCode.OK
    else:
        assert code == ExitCode.CONFIG
        assert "E_FORMAT_TOO_NEW" in out + err
    assert three.fingerprint("n1") == before


@pytest.mark.parametrize("command", LOOKING)
def test_damage_is_named_and_nothing_is_repaired(
    three: Directories, run: Run, command: str
) -> None:
    three.damage("n1")
    (three.path("n1") / "log" / "CLEAN").unlink()
    before = three.fingerprint("n1")
    code, out, err = run(*words_for(command, "@n1"))
    if command == "inspect":  # reads no entry but the configuration's
        assert code == ExitCode.OK
    else:
        assert code == ExitCode.LOG_CORRUPT
        assert "checksum" in out + err
    assert three.fingerprint("n1") == before


def test_errors_are_said_in_json_too(three: Directories, run: Run) -> None:
    code, out, err = run("inspect", "@missing", "--json")
    assert code == ExitCode.CONFIG
    assert json.loads(out)["error"]["code"] == "E_IDENTITY"
    assert err == "raftcore: E_IDENTITY: ROOT/missing is not a directory\n"


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("fly",),
        ("compare", "@n1"),
        ("dump", "@n1", "--from", "0"),
        ("dump", "@n1", "--from", "x"),
        ("dump", "@n1", "--data", "rot13"),
        ("recover", "@n1", "--execute"),
        ("recover", "@n1", "--execute", "--into", "@new"),
        ("recover", "@n1", "--attribute", "novalue"),
    ],
)
def test_wrong_use_ends_with_2(run: Run, words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(*words)
    assert ended.value.code == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_names_the_exit_codes(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "exit codes:" in out
    assert "example" in out
    for code in ExitCode:
        if code not in (ExitCode.OK, ExitCode.INVARIANT):
            assert re.search(rf"^  {code.value} ", out, re.MULTILINE)
    assert max(map(len, out.splitlines())) <= 100


def test_the_commands_are_those_that_are_tested_here() -> None:
    (found,) = [a for a in build_parser()._actions if a.choices]
    assert tuple(found.choices or ()) == COMMANDS


def test_python_m_raftcore_is_the_command(three: Directories) -> None:
    child = subprocess.run(
        [sys.executable, "-m", "raftcore", "verify", str(three.path("n1"))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (child.returncode, child.stdout) == (0, "sound: 20 entries and 0 snapshots verified\n")


def test_a_reader_that_has_seen_enough_ends_a_dump_quietly(directories: Directories) -> None:
    directories.found("n1")
    directories.fill("n1", 3000)
    child = subprocess.Popen(
        [sys.executable, "-m", "raftcore", "dump", str(directories.path("n1")), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout is not None
    assert child.stderr is not None
    assert child.stdout.readline().startswith(b'{"index":1,')
    child.stdout.close()
    assert (child.wait(timeout=60), child.stderr.read()) == (141, b"")
    child.stderr.close()
