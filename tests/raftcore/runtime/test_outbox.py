"""Messages leave when what they wait for is durable: never early, and never out of order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from raftcore.core.effects import Persist, Send
from raftcore.core.messages import Heartbeat, HeartbeatReply, Message
from raftcore.core.types import WriteMark
from raftcore.runtime.outbox import MAX_HELD, Outbox


class Told:
    """What left, by the number that stands in it."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.numbers: list[int] = []
        self.outbox = Outbox(self._give, lambda: self.now_ns)

    def _give(self, _to: str, message: Message) -> None:
        assert isinstance(message, Heartbeat | HeartbeatReply)
        self.numbers.append(message.read_counter)

    def send(self, number: int, after: int | None) -> None:
        mark = None if after is None else WriteMark(after, 1)
        self.outbox.send(Send("b", Heartbeat("a", 1, 0, number), mark))

    def echo(self, number: int, after: int, to: str = "b") -> None:
        self.outbox.send(Send(to, HeartbeatReply("a", 1, number), WriteMark(after, 1)))

    def write(self, sequence: int) -> None:
        self.outbox.writing(Persist(WriteMark(sequence, 1), None, None, (), 0))


def test_what_waits_for_nothing_leaves_at_once_past_what_waits() -> None:
    told = Told()
    told.send(1, 5)
    told.send(2, None)
    assert told.numbers == [2]
    told.outbox.durable(WriteMark(5, 1))
    assert told.numbers == [2, 1]


def test_what_waits_for_a_write_that_is_durable_already_leaves_at_once() -> None:
    told = Told()
    told.outbox.durable(WriteMark(5, 1))
    told.send(1, 4)
    assert told.numbers == [1]
    assert told.outbox.held_messages == 0


def test_a_later_message_never_overtakes_an_earlier_one_that_waits() -> None:
    told = Told()
    told.send(1, 7)
    told.send(2, 3)
    told.outbox.durable(WriteMark(3, 1))
    assert told.numbers == []
    told.outbox.durable(WriteMark(7, 1))
    assert told.numbers == [1, 2]


def test_ages_are_those_of_the_oldest() -> None:
    told = Told()
    assert (told.outbox.write_age_ms(), told.outbox.held_age_ms()) == (0, 0)
    told.write(1)
    told.now_ns = 3_000_000
    told.write(2)
    told.send(1, 2)
    told.now_ns = 10_000_000
    assert told.outbox.writes_waiting == 2
    assert (told.outbox.write_age_ms(), told.outbox.held_age_ms()) == (10, 7)
    told.outbox.durable(WriteMark(1, 1))
    assert (told.outbox.write_age_ms(), told.outbox.held_messages) == (7, 1)
    told.outbox.clear()
    told.outbox.durable(WriteMark(2, 1))
    assert told.numbers == [], "what was cleared never leaves"


def test_of_the_replies_to_heartbeats_that_wait_only_the_newest_of_each_peer_is_kept() -> None:
    """A leader asks on and on, and the disk of this node hangs at a change of term."""
    told = Told()
    for number in range(1, 5001):
        told.echo(number, 1)
    told.echo(7, 1, to="c")
    told.echo(0, 1)  # to a heartbeat of an earlier term: tells less than what waits already
    told.send(9999, 1)
    assert told.outbox.held_messages == 3
    told.outbox.durable(WriteMark(1, 1))
    assert told.numbers == [5000, 7, 9999]
    told.echo(5001, 2)
    assert told.outbox.held_messages == 1, "what has left is not what waits"


def test_a_newer_reply_that_takes_the_place_of_another_waits_for_its_own_write() -> None:
    told = Told()
    told.echo(1, 1)
    told.echo(2, 4)
    told.outbox.durable(WriteMark(1, 1))
    assert told.numbers == []
    told.outbox.durable(WriteMark(4, 1))
    assert told.numbers == [2]


def test_what_waits_is_bounded_and_room_comes_back() -> None:
    told = Told()
    for number in range(MAX_HELD + 5):
        told.send(number, 1)
    assert told.outbox.held_messages == MAX_HELD
    told.outbox.durable(WriteMark(1, 1))
    assert told.numbers == list(range(MAX_HELD))
    told.send(1, 2)
    assert told.outbox.held_messages == 1


@given(
    st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=30),
)
def test_nothing_leaves_before_its_write_and_nothing_stays_after_all_are_durable(
    steps: list[tuple[int, bool]],
) -> None:
    told, durable, waits = Told(), 0, {}
    for number, (sequence, is_write) in enumerate(steps):
        if is_write:
            durable = max(durable, sequence)
            told.outbox.durable(WriteMark(durable, 1))
        else:
            waits[number] = sequence
            told.send(number, sequence)
        assert all(waits[n] <= durable for n in told.numbers)
    told.outbox.durable(WriteMark(9, 1))
    assert told.numbers == sorted(waits), "all left, in the order in which they were given"
