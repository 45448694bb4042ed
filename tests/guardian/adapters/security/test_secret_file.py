from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from guardian.adapters.security.secret_file import SecretFileError, load_or_create_secret


def test_the_secret_is_made_once_and_closed_to_others(tmp_path: Path) -> None:
    secret = load_or_create_secret(tmp_path)
    assert len(secret) == 32
    assert load_or_create_secret(tmp_path) == secret
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def test_whoever_comes_at_once_gets_the_same(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        secrets = set(pool.map(lambda _: load_or_create_secret(tmp_path), range(32)))
    assert len(secrets) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_two_directories_have_two_secrets(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert load_or_create_secret(tmp_path / "a") != load_or_create_secret(tmp_path / "b")


def test_a_secret_that_others_may_read_is_refused(tmp_path: Path) -> None:
    load_or_create_secret(tmp_path)
    os.chmod(next(tmp_path.iterdir()), 0o644)
    with pytest.raises(SecretFileError, match="chmod"):
        load_or_create_secret(tmp_path)


def test_a_short_secret_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "jwt-secret"
    file.write_bytes(b"short")
    file.chmod(0o600)
    with pytest.raises(SecretFileError, match="fewer"):
        load_or_create_secret(tmp_path)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(bytes(32))
    (tmp_path / "jwt-secret").symlink_to(target)
    with pytest.raises(OSError, match="symbolic"):
        load_or_create_secret(tmp_path)
