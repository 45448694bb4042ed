"""Frames that wait for one connection, and requests that wait for an answer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from raftcore.core.messages import Message
from raftcore.transport.wire import Response


@dataclass(slots=True, eq=False)
class PendingRequest:
    """A request that was not answered yet.

    ``answer`` becomes None when the connection is gone. ``sent`` is False as long as not one byte
    can have left: only then is it certain that the peer never sees the request.
    """

    answer: asyncio.Future[Response | None]
    sent: bool = False


class SendQueue:
    """A queue bounded in frames and in bytes; what does not fit is not taken (drop newest).

    Raft repeats what matters, so the oldest frames are kept: they continue what the peer has.
    """

    def __init__(self, max_frames: int, max_bytes: int) -> None:
        self._max_frames = max_frames
        self._max_bytes = max_bytes
        self._frames: deque[tuple[bytes, PendingRequest | Message | None]] = deque()
        self._size_bytes = 0

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def offer(self, frame: bytes, source: PendingRequest | Message | None = None) -> bool:
        """Take ``frame``; False if it does not fit. An empty queue takes a frame of any size.

        ``source`` is the request that the frame holds, or the message if it may have to be encoded
        in another way before it leaves (:meth:`encode_again`).
        """
        if self._frames and (
            len(self._frames) >= self._max_frames or self._size_bytes + len(frame) > self._max_bytes
        ):
            return False
        self._frames.append((frame, source))
        self._size_bytes += len(frame)
        return True

    def take(self, max_bytes: int) -> list[bytes]:
        """The next frames, about ``max_bytes`` of them (at least one); they count as sent.

        Requests whose asker has given up are left out.
        """
        taken: list[bytes] = []
        size = 0
        while self._frames and size < max_bytes:
            frame, source = self._frames.popleft()
            self._size_bytes -= len(frame)
            if isinstance(source, PendingRequest):
                if source.answer.done():
                    continue
                source.sent = True
            taken.append(frame)
            size += len(frame)
        return taken

    def encode_again(self, encode: Callable[[Message], bytes]) -> None:
        """Replace the frames of messages: the peer speaks another version than was thought."""
        frames = [
            (encode(source) if isinstance(source, Message) else frame, source)
            for frame, source in self._frames
        ]
        self._frames = deque(frames)
        self._size_bytes = sum(len(frame) for frame, _ in frames)

    def clear(self) -> int:
        """Drop everything; how many frames that was."""
        count = len(self._frames)
        self._frames.clear()
        self._size_bytes = 0
        return count
