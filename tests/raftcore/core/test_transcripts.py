"""Golden transcripts: scenarios told command by command, with all that the cores do.

After a change in behaviour ``python -m jepsen_like transcript --rewrite FILE...`` writes them anew;
the difference is to be read like any other change.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from jepsen_like.cli import main
from jepsen_like.sim import words
from jepsen_like.sim.transcript import TranscriptError, rewrite
from raftcore.core import effects as ef
from raftcore.core import messages as msg

TRANSCRIPTS = sorted((Path(__file__).parent / "transcripts").glob("*.txt"))


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_the_core_does_what_the_transcript_says(path: Path) -> None:
    told = path.read_text(encoding="utf-8")
    assert told.startswith("# "), "a transcript says what it is about"
    assert rewrite(told).splitlines() == told.splitlines()


def test_there_are_transcripts_and_every_effect_in_them_has_words() -> None:
    assert len(TRANSCRIPTS) >= 35
    for path in TRANSCRIPTS:
        assert "(" + "index=" not in path.read_text(encoding="utf-8"), "an effect without words"
    effects = {k for k in vars(ef).values() if isinstance(k, type) and issubclass(k, ef.Effect)}
    assert words._EFFECTS.keys() == effects - {ef.Effect, ef.Notification}
    kinds = {k for k in vars(msg).values() if isinstance(k, type) and issubclass(k, msg.Message)}
    assert words._MESSAGES.keys() == kinds - {msg.Message}


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("> dance 1", "is no command"),
        ("> ", "is no command"),
        ("> campaign 1", "there are no nodes yet"),
        ("> nodes 3\n> campaign 9", "there is no node 9"),
        ("> nodes 3\n> tick 1 soon", "is no time"),
        ("> nodes 3\n> restart 1", "1 is up"),
        ("> nodes 3\n> crash 1\n> tick 1", "1 is down"),
        ("> nodes three", "ValueError"),
        ("> nodes 3\n> hold 1 breath", "KeyError"),
    ],
)
def test_a_line_that_can_not_be_carried_out_is_named(line: str, error: str) -> None:
    with pytest.raises(TranscriptError, match=error) as raised:
        rewrite(line)
    assert str(raised.value).startswith(f"line {len(line.splitlines())}:")


def test_what_stops_a_node_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two leaders in one term, made by half of the votes being enough (rule 14)."""
    monkeypatch.setattr("raftcore.core.quorum.majority_size", lambda voters: len(voters) // 2)
    told = rewrite(
        "> nodes 2\n> campaign 1\n> campaign 2\n> persist 1\n> persist 2\n> deliver\n> status\n"
    )
    assert "STOPS" in told
    assert "is down" in told


def test_the_command_compares_and_rewrites(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "story.txt"
    path.write_text("# A story.\n> nodes 1\n> tick 1\n  1 sings\n")
    assert main(["transcript", str(path)]) == 1
    printed = capsys.readouterr().out
    assert "-  1 sings" in printed
    assert "+  1 is leader in t1" in printed
    assert main(["transcript", "--rewrite", str(path)]) == 0
    assert main(["transcript", str(path)]) == 0
    assert "sings" not in path.read_text()
    path.write_text("> sing\n")
    assert main(["transcript", str(path)]) == 3
    assert "line 1" in capsys.readouterr().err
