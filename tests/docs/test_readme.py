"""What the README and the quickstart tell people to type does what they say."""

from __future__ import annotations

import ast
import asyncio
import builtins
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import click
import pytest

import raftcore
from guardian.cli.main import main
from guardian.http.endpoints import ENDPOINTS, PREFIX


class Document(Protocol):
    path: Path
    text: str

    def blocks(self, language: str) -> list[str]: ...


def commands(documents: list[Document]) -> Iterator[list[str]]:
    """Every line that a reader may type, split into words, without assignments in front."""
    for document in documents:
        lines = [line for block in document.blocks("sh") for line in _joined(block)]
        lines += [
            line.removeprefix("$ ")
            for block in document.blocks("console")
            for line in block.splitlines()
            if line.startswith("$ ")
        ]
        for line in lines:
            words = shlex.split(line, comments=True)
            while words and re.match(r"[A-Z_]+=", words[0]):
                words.pop(0)
            if words:
                yield words


def _joined(block: str) -> list[str]:
    text = block.replace("\\\n", " ")
    ours = re.compile(r"(?:[A-Z_]+=\S+ +)*(?:make|guardian|\.venv/bin/guardian) ")
    return [line for line in text.splitlines() if ours.match(line)]


def test_make_targets_exist(documents: list[Document], root: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), re.MULTILINE))
    typed = {word for words in commands(documents) if words[0] == "make" for word in words[1:]}
    typed |= {
        name for document in documents for name in re.findall(r"`make ([a-z-]+)`", document.text)
    }
    assert {"run", "test", "demo", "docs", "examples"} <= typed
    assert typed <= targets


def test_commands_and_flags_exist(documents: list[Document]) -> None:
    checked = 0
    for words in commands(documents):
        if Path(words[0]).name != "guardian":
            continue
        command: click.Command = main
        context = click.Context(main)
        for word in words[1:]:
            if isinstance(command, click.Group) and not word.startswith("-"):
                found = command.get_command(context, word)
                assert found is not None, words
                command = found
        flags = {name for parameter in command.params for name in parameter.opts}
        for word in words[1:]:
            if word.startswith("--"):
                assert word.partition("=")[0] in flags, words
        checked += 1
    assert checked > 3


def test_commands_named_in_prose_exist(documents: list[Document]) -> None:
    context = click.Context(main)
    for document in documents:
        for first, second in re.findall(r"`guardian ([a-z]+)(?: ([a-z-]+))?", document.text):
            command = main.get_command(context, first)
            assert command is not None, f"{document.path.name}: guardian {first}"
            if second and isinstance(command, click.Group):
                assert command.get_command(context, second) is not None, second


def test_routes_exist(documents: list[Document]) -> None:
    paths = {endpoint.path for endpoint in ENDPOINTS}
    patterns = [re.compile(re.sub(r"\{\w+\}", r"[^/\\s]+", path) + "$") for path in paths]
    checked = 0
    for document in documents:
        for path in re.findall(rf"{PREFIX}(?:/[^\s`|\"'?)]+)*", document.text):
            assert path == PREFIX or any(p.match(path) for p in patterns), path
            checked += 1
    assert checked > 5


def test_the_python_in_the_readme_uses_names_that_exist(readme: Document) -> None:
    (block,) = readme.blocks("python")
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST
    tree = compile(block, "README.md", "exec", flags)
    assert isinstance(tree, ast.Module)
    bound = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)
             and isinstance(node.ctx, ast.Store)}  # fmt: skip
    bound |= {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    bound |= {arg.arg for node in ast.walk(tree) if isinstance(node, ast.arguments)
              for arg in node.args}  # fmt: skip
    bound |= {node.name for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)
              and node.name}  # fmt: skip
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - bound
    assert used - {"Path"} - set(dir(builtins)) <= set(raftcore.__all__)
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Attribute)):
        if isinstance(call.value, ast.Name) and call.value.id == "node":
            assert hasattr(raftcore.Node, call.attr)


# -- typed for real -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Running:
    url: str
    password: str


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """What ``make run`` starts, on free ports; the password is read as a person would."""
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
    ):
        http, raft = (f"127.0.0.1:{s.getsockname()[1]}" for s in (one, two))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GUARDIAN_")}
    environment.pop("DATABASE_URL", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "guardian.cli.main", "serve", "--log-format", "text",
         "--log-level", "warning", "--http", http, "--raft", raft],
        cwd=tmp_path_factory.mktemp("node"), env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    password = ""
    try:
        for line in process.stdout:
            if found := re.search(r"shown only now: (\S+)", line):
                password = found[1]
            if line.startswith("Ctrl-C"):
                break
        assert password, f"it ended with {process.poll()}"
        yield Running(f"http://{http}", password)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def typed(document: Document, node: Running) -> str:
    """The output of all blocks of the document that talk to a node, typed into one shell."""
    blocks = [b for b in document.blocks("sh") if re.search(r"\$API|\$CONFIG|\bAPI=", b)]
    assert len(blocks) > 2
    script = "\n".join(blocks).replace("http://127.0.0.1:8080", node.url)
    shell = await asyncio.create_subprocess_exec(
        "bash", "-euo", "pipefail", "-c", script,
        env={**os.environ, "PASSWORD": node.password},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await shell.communicate()
    assert shell.returncode == 0, output.decode()
    return output.decode()


EXPECTED = (
    r'"key":"checkout/flags".*"version":1,.*"content":\{"rate":0.1\}',
    r'"version":2,.*"content":\{"rate":0.5\}',
    r'"code":"version_conflict".*"current_version":2',
    r'"code":"document_invalid".*"pointer":"/rate","message":"must be at most 1"',
    r'"version":3,.*"content":\{"rate":0.1\}',
    r"HTTP/1.1 200 OK",
    r'ETag: "3"',
    r'\{"key":"checkout/flags","version":3,"content":\{"rate":0.1\}\}',
    r"HTTP/1.1 304 Not Modified",
)


@pytest.mark.slow
async def test_the_readme_typed_into_a_shell(readme: Document, node: Running) -> None:
    output = await typed(readme, node)
    assert re.search(".*".join(EXPECTED), output, re.DOTALL), output


@pytest.mark.slow
async def test_the_quickstart_typed_into_a_shell(quickstart: Document, node: Running) -> None:
    output = await typed(quickstart, node)
    assert re.search(".*".join(EXPECTED), output, re.DOTALL), output
