"""The secret behind the access tokens, when nobody supplied one: a file in the data directory."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from guardian.adapters.security.tokens import SECRET_BYTES

SECRET_FILE = "jwt-secret"  # noqa: S105 - the name of the file


class SecretFileError(Exception):
    """The file is there and can not be used; the message says what to do."""


def load_or_create_secret(directory: Path, name: str = SECRET_FILE) -> bytes:
    """The secret of ``directory``, made at the first call; the same for ever after.

    The file appears complete or not at all, readable by its owner only, and is on disk when this
    returns. Several processes may call it at once: they all get the same secret.

    Raises:
        SecretFileError: too short, or open to others.
        OSError: it can not be read or written.
    """
    path = directory / name
    try:
        return _load(path)
    except FileNotFoundError:
        _create(path)
        return _load(path)


def _load(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with os.fdopen(fd, "rb") as file:
        if stat.S_IMODE(os.fstat(fd).st_mode) & 0o077:
            raise SecretFileError(f"{path.name} is open to other users: chmod 600 it, or delete it")
        secret = file.read(4096)
    if len(secret) < SECRET_BYTES:
        raise SecretFileError(f"{path.name} has fewer than {SECRET_BYTES} bytes: delete it")
    return secret


def _create(path: Path) -> None:
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(secrets.token_bytes(SECRET_BYTES))
            file.flush()
            os.fsync(fd)
        # a link, not a rename: who comes second must not replace what the first already uses
        with contextlib.suppress(FileExistsError):
            os.link(scratch, path)
    finally:
        scratch.unlink()
    directory_fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory_fd)
    finally:
        os.close(directory_fd)
