"""RangeMap against a plain dictionary of bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jepsen_like.durability.ranges import Piece, RangeMap

SIZE = 24
spans = st.tuples(st.integers(0, SIZE - 1), st.integers(0, SIZE)).map(
    lambda pair: (min(pair), max(pair))
)


@given(st.lists(st.tuples(st.sampled_from(["add", "carve"]), spans), max_size=20), spans)
def test_gaps_and_pieces_agree_with_a_dictionary(
    steps: list[tuple[str, tuple[int, int]]], asked: tuple[int, int]
) -> None:
    ranges, model = RangeMap(), dict[int, int]()
    for number, (step, (start, end)) in enumerate(steps):
        if step == "carve":
            ranges.carve(start, end)
            for at in range(start, end):
                model.pop(at, None)
        else:
            for gap_start, gap_end in ranges.gaps(start, end):
                ranges.add(Piece(gap_start, gap_end, bytes([number]) * (gap_end - gap_start)))
            for at in range(start, end):
                model.setdefault(at, number)
    held = {p.start + i: byte for p in ranges for i, byte in enumerate(p.data or b"")}
    assert held == model
    start, end = asked
    uncovered = {at for gap in ranges.gaps(start, end) for at in range(*gap)}
    assert uncovered == set(range(start, end)) - set(model)
    overlapping = {at for p in ranges.overlapping(start, end) for at in range(p.start, p.end)}
    assert overlapping & set(range(start, end)) == set(model) & set(range(start, end))


def test_a_cut_piece_keeps_the_right_bytes() -> None:
    assert Piece(10, 15, b"abcde").cut(12, 20) == Piece(12, 15, b"cde")
    assert Piece(10, 15, None).cut(0, 11) == Piece(10, 11, None)
