"""Users, their sign-in and their tokens. All of it lives in Postgres; the log knows only ids."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from guardian.domain.entities import Credentials, Principal, User
from guardian.domain.keys import check_email, check_password, is_id, normal_email, normal_password
from guardian.domain.problems import Problem
from guardian.usecases.access import require_admin
from guardian.usecases.executing import new_id
from guardian.usecases.known_users import KnownUsers
from guardian.usecases.paging import Page, PageRequest, page_of
from guardian.usecases.ports import Clock, Passwords, RefreshTokens, Tokens, Users
from guardian.usecases.throttle import FailureWindow

#: bytes of randomness in a refresh token
_REFRESH_BYTES: Final = 32
_REFRESH_MAX_CHARS: Final = 128
#: verified in place of a password that can be nobody's, so that refusing it takes as long
_NOBODYS: Final = "nobody's password"


@dataclass(frozen=True, slots=True)
class AccountPolicy:
    """What is allowed.

    Args:
        registration_open: whether anyone may register.
        refresh_ttl_s: life of a refresh token, seconds.
        failures_per_account: failed logins per account and window.
        failures_per_address: failed logins per address and window.
        window_s: the window, seconds.
    """

    registration_open: bool = False
    refresh_ttl_s: int = 30 * 24 * 3600
    failures_per_account: int = 10
    failures_per_address: int = 50
    window_s: float = 600.0


@dataclass(frozen=True, slots=True)
class TokenPair:
    """What a login gives. ``expires_in_s`` is the access token's life."""

    access_token: str
    refresh_token: str
    expires_in_s: int


class Accounts:
    """The verbs on users and their sessions."""

    def __init__(
        self,
        users: Users,
        refresh_tokens: RefreshTokens,
        passwords: Passwords,
        tokens: Tokens,
        clock: Clock,
        policy: AccountPolicy,
        *,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._users = users
        self._refresh_tokens = refresh_tokens
        self._passwords = passwords
        self._tokens = tokens
        self._clock = clock
        self._policy = policy
        window_s = policy.window_s
        self._known = KnownUsers(users, now_s=now_s)
        self._by_account = FailureWindow(policy.failures_per_account, window_s, now_s)
        self._by_address = FailureWindow(policy.failures_per_address, window_s, now_s)

    # signing in

    async def authenticate(self, access_token: str) -> Principal:
        """Who holds the token, with the rights that the account has now.

        An account deleted or changed by another node is noticed within
        :data:`guardian.usecases.known_users.TTL_S`, by this node at once.

        Raises:
            Problem: ``invalid_token``, also when the account is gone; ``token_expired``;
                ``unavailable``, as a signature alone grants nothing.
        """
        claims = self._tokens.verify_access(access_token)
        user = await self._known.get(claims.user_id)
        if user is None:
            raise Problem("invalid_token")
        return Principal(user.id, user.is_admin)

    def signed_in(self, access_token: str) -> Principal:
        """Whom the token names, without any right: for what any user may see without Postgres.

        Raises:
            Problem: ``invalid_token`` or ``token_expired``.
        """
        return Principal(self._tokens.verify_access(access_token).user_id, is_admin=False)

    async def register(self, email: str, password: str) -> User:
        """An account for anyone who asks, where registration is open.

        Raises:
            Problem: ``registration_closed``, ``validation_failed``, ``invalid_string``,
                ``email_taken``.
        """
        if not self._policy.registration_open:
            raise Problem("registration_closed")
        return await self._add(email, password, is_admin=False)

    async def login(self, email: str, password: str, address: str) -> TokenPair:
        """Tokens for e-mail and password.

        Args:
            address: the caller's network address, in the form that limits count by.

        Raises:
            Problem: ``invalid_credentials``, alike for unknown users and wrong passwords;
                ``rate_limited``; ``overloaded``.
        """
        account = normal_email(email)
        self._by_account.check(account)
        at_address = self._by_address.begin(address)
        at_account = self._by_account.begin(account)
        try:
            found = await self._verified(account, password)
            tokens = None if found is None else await self._start_session(found.user)
        except Problem:  # not decided: no failure of the caller's
            self._by_address.take_back(address, at_address)
            self._by_account.take_back(account, at_account)
            raise
        if tokens is None:
            raise Problem("invalid_credentials")
        self._by_address.take_back(address, at_address)
        self._by_account.clear(account)
        return tokens

    async def refresh(self, refresh_token: str) -> TokenPair:
        """Spend a refresh token for a new pair.

        Raises:
            Problem: ``refresh_reused`` (the family is revoked), ``invalid_token``.
        """
        digest = _token_digest(refresh_token)
        if digest is None:
            raise Problem("invalid_token")
        text, new_digest = _new_refresh_token()
        now_ms = self._clock.now_ms()
        user_id = await self._refresh_tokens.rotate(
            digest, new_digest, self._expiry_ms(now_ms), now_ms
        )
        user = await self._users.get(user_id)
        if user is None:
            raise Problem("invalid_token")
        return self._pair(user, text)

    async def logout(self, refresh_token: str) -> None:
        """Revoke the token's family. An unknown token is as good as revoked (RFC 7009 2.2)."""
        digest = _token_digest(refresh_token)
        if digest is not None:
            await self._refresh_tokens.revoke_family_of(digest)

    # users

    async def me(self, principal: Principal) -> User:
        """The caller. Raises ``Problem("invalid_token")`` when the account is gone."""
        user = await self._users.get(principal.user_id)
        if user is None:
            raise Problem("invalid_token")
        return user

    async def get(self, principal: Principal, user_id: str) -> User:
        """Oneself, or anyone for ``is_admin``. Raises ``Problem("not_found")``."""
        own = user_id == principal.user_id
        if not is_id(user_id) or not (own or principal.is_admin):
            raise Problem("not_found")
        user = await self._users.get(user_id)
        if user is None:
            raise Problem("not_found")
        return user

    async def list(self, principal: Principal, page: PageRequest) -> Page[User]:
        """All users in id order; needs ``is_admin``."""
        require_admin(principal)
        rows = await self._users.list(page.after("users"), page.limit + 1)
        return page_of(rows, page.limit, "users", _id)

    async def create(
        self, principal: Principal, email: str, password: str, *, is_admin: bool = False
    ) -> User:
        """A user made by an administrator.

        Raises:
            Problem: ``forbidden``, ``validation_failed``, ``invalid_string``, ``email_taken``.
        """
        require_admin(principal)
        return await self._add(email, password, is_admin=is_admin)

    async def delete(self, principal: Principal, user_id: str) -> None:
        """Needs ``is_admin``.

        Raises:
            Problem: ``forbidden``, ``not_found``, ``owns_projects``, ``last_admin``.
        """
        require_admin(principal)
        if not is_id(user_id):
            raise Problem("not_found")
        try:
            removed = await self._users.remove(user_id)
        finally:
            self._known.forget(user_id)  # also when the outcome is unknown
        if not removed:
            raise Problem("not_found")

    async def ensure_first_admin(self, email: str, password: str) -> User | None:
        """The first administrator, if there is no user at all; None when there is one.

        Raises:
            Problem: ``validation_failed`` or ``invalid_string``; ``unavailable``.
        """
        if await self._users.any():
            return None
        check_email(email, "/email")
        user = User(new_id(), email, is_admin=True, created_at_ms=self._clock.now_ms())
        password_hash = await self._passwords.hash(check_password(password, "/password"))
        return user if await self._users.add_first_admin(user, password_hash) else None

    # inside

    async def _add(self, email: str, password: str, *, is_admin: bool) -> User:
        check_email(email, "/email")
        normal = check_password(password, "/password")
        user = User(new_id(), email, is_admin, self._clock.now_ms())
        await self._users.add(user, await self._passwords.hash(normal))
        return user

    async def _verified(self, account: str, password: str) -> Credentials | None:
        """The account's credentials if the password is right; takes as long if there is none."""
        normal = normal_password(password)
        found = await self._users.credentials(account) if account else None
        if found is None or normal is None:
            await self._passwords.verify(None, _NOBODYS)
            return None
        if not await self._passwords.verify(found.password_hash, normal):
            return None
        if self._passwords.needs_rehash(found.password_hash):
            new_hash = await self._passwords.hash(normal)
            await self._users.set_password_hash(found.user.id, new_hash)
        return found

    async def _start_session(self, user: User) -> TokenPair:
        text, digest = _new_refresh_token()
        expires_at_ms = self._expiry_ms(self._clock.now_ms())
        await self._refresh_tokens.add(digest, new_id(), user.id, expires_at_ms)
        return self._pair(user, text)

    def _pair(self, user: User, refresh_token: str) -> TokenPair:
        access = self._tokens.issue_access(user)
        return TokenPair(access, refresh_token, self._tokens.access_ttl_s)

    def _expiry_ms(self, now_ms: int) -> int:
        return now_ms + self._policy.refresh_ttl_s * 1000


def _new_refresh_token() -> tuple[str, bytes]:
    text = secrets.token_urlsafe(_REFRESH_BYTES)
    return text, hashlib.sha256(text.encode()).digest()


def _token_digest(text: str) -> bytes | None:
    """None for what can not be one of ours."""
    if not text.isascii() or not 0 < len(text) <= _REFRESH_MAX_CHARS:
        return None
    return hashlib.sha256(text.encode()).digest()


def _id(user: User) -> str:
    return user.id
