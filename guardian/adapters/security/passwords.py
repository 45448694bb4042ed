"""Password hashing: argon2id in a small pool of its own.

One hash takes 64 MiB and a good part of a second, so the pool is what bounds memory under a flood
of sign-ins: two at a time, a short queue, and a refusal for everybody else. The event loop's own
executor stays free.
"""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import argon2
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError

from guardian.domain.problems import Problem

T = TypeVar("T")

_RETRY_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class Argon2Profile:
    """Cost of one hash (RFC 9106). The default is its second recommended option with one lane,
    because two hashes at a time are as much parallelism as a small machine has."""

    time_cost: int = 3
    memory_kib: int = 64 * 1024
    parallelism: int = 1


#: Worth nothing; for tests alone, which have to ask for it.
CHEAP_FOR_TESTS = Argon2Profile(time_cost=1, memory_kib=8, parallelism=1)


class Argon2Passwords:
    """:class:`guardian.usecases.ports.Passwords`.

    Args:
        profile: cost of new hashes; a stored hash of another cost wants a rehash.
        threads: hashes at a time.
        queue: callers that may wait for a thread; more are refused as ``overloaded``.
    """

    def __init__(
        self, profile: Argon2Profile | None = None, *, threads: int = 2, queue: int = 16
    ) -> None:
        profile = profile or Argon2Profile()
        self._hasher = argon2.PasswordHasher(
            time_cost=profile.time_cost,
            memory_cost=profile.memory_kib,
            parallelism=profile.parallelism,
        )
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="argon2")
        self._limit = threads + queue
        self._busy = 0
        self._dummy: asyncio.Future[str] | None = None

    async def hash(self, password: str) -> str:
        """The encoded hash, with a salt of its own.

        Raises:
            Problem: ``overloaded``; ``invalid_string`` for text that is not Unicode.
        """
        secret = _bytes(password)
        return await self._run(lambda: self._hasher.hash(secret))

    async def verify(self, password_hash: str | None, password: str) -> bool:
        """Whether the password is the hashed one. With None, as much work for the answer False.

        Raises:
            Problem: ``overloaded``, ``invalid_string``.
        """
        secret = _bytes(password)
        known = password_hash is not None
        encoded = password_hash if password_hash is not None else await self._dummy_hash()
        return await self._run(lambda: self._matches(encoded, secret)) and known

    def needs_rehash(self, password_hash: str) -> bool:
        """Whether it was made at another cost than is asked for now."""
        try:
            return self._hasher.check_needs_rehash(password_hash)
        except InvalidHashError:
            return True

    async def prepare(self) -> None:
        """Make the hash that unknown users are verified against, so that the first of them does
        not take twice as long. Call it at start."""
        await self._dummy_hash()

    def close(self) -> None:
        """Let running hashes end, drop the queue."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _matches(self, encoded: str, secret: bytes) -> bool:
        try:
            return self._hasher.verify(encoded, secret)
        except VerifyMismatchError:
            return False
        except (InvalidHashError, VerificationError):
            # a row that is no argon2 hash is nobody's password
            return False

    async def _dummy_hash(self) -> str:
        if self._dummy is None:
            self._dummy = asyncio.ensure_future(
                self._run(lambda: self._hasher.hash(b"nobody has this password"))
            )
            self._dummy.add_done_callback(self._forget_failed_dummy)
        return await asyncio.shield(self._dummy)

    def _forget_failed_dummy(self, future: asyncio.Future[str]) -> None:
        if future.cancelled() or future.exception() is not None:
            self._dummy = None

    async def _run(self, work: Callable[[], T]) -> T:
        if self._busy >= self._limit:
            raise Problem("overloaded", retry_after_s=_RETRY_AFTER_S)
        self._busy += 1
        try:
            future = self._executor.submit(work)
        except RuntimeError as error:  # shut down
            self._busy -= 1
            raise Problem("unavailable", retry_after_s=_RETRY_AFTER_S) from error
        loop = asyncio.get_running_loop()
        # a caller that gives up leaves its hash running: it counts until it is done
        future.add_done_callback(lambda _: _call_soon(loop, self._release))
        return await asyncio.wrap_future(future)

    def _release(self) -> None:
        self._busy -= 1


def _call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(callback)


def _bytes(password: str) -> bytes:
    """NFC, as RFC 8265 wants it: the same password from another keyboard is the same."""
    try:
        return unicodedata.normalize("NFC", password).encode()
    except UnicodeEncodeError as error:
        raise Problem("invalid_string") from error
