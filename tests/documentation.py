"""Read documentation as a reader tries it: blocks of code, code between words, commands, links."""

import ast
import dataclasses
import functools
import importlib
import inspect
import os
import re
import shlex
import subprocess
import sys
import types
import typing
from pathlib import Path
from typing import Any

import ghn_jax
from ghn_jax.configuration.conversion import iterate_fields
from ghn_jax.finetune.config import FinetuneConfig, NetworkConfig
from ghn_jax.graphs import GraphBatch
from ghn_jax.training.config import ExperimentConfig

REPOSITORY = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
FILE = re.compile(r"# (\w+\.py)\n")  # the first line of a block to be saved
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")  # also finds images
SOURCE = "https://github.com/ghn-jax/ghn_jax/blob/main/"
# What a page calls the objects whose attributes it mentions.
OBJECTS = {
    "ghn_jax": ghn_jax,
    "ghn": ghn_jax.GHN,
    "prediction": ghn_jax.Prediction,
    "batch": GraphBatch,
}
TOP_LEVEL = {path.name for path in REPOSITORY.iterdir()}
FOLDERS = ("ghn_jax", "launch", "benchmarks", "docs", "tests", ".ci")
FILE_NAMES = {path.name for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py")}
PACKAGE_FILE = re.compile(r"(?<![\w/])ghn_jax/[\w/]+\.py")  # not in a link


def code_blocks(text: str, language: str) -> list[str]:
    """Contents of the fenced code blocks of a language."""
    return [block for found, block in FENCE.findall(text) if found == language]


def inline_code(text: str) -> list[str]:
    """What stands in backticks outside of blocks."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", FENCE.sub("", text))


def commands(text: str) -> list[str]:
    """Command lines of blocks and between words, from the program on."""
    lines = [line for block in code_blocks(text, "bash") for line in _join_lines(block)]
    parts = [part for line in [*lines, *inline_code(text)] for part in line.split(" && ")]
    parts = [re.sub(r"^(\w+=\S+ )+", "", part) for part in parts]  # the environment
    return [part for part in parts if re.match(r"(\S*/)?(python3?|ghn-jax) ", part)]


def _join_lines(block: str) -> list[str]:
    lines = block.replace("\\\n", " ").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def missing_links(text: str, folder: Path) -> list[str]:
    """Links to files of the repository that are not there, relative or as GitHub's address."""
    missing = []
    for link in LINK.findall(text):
        target, base = link.split("#")[0], folder
        if target.startswith(SOURCE):
            target, base = target.removeprefix(SOURCE), REPOSITORY
        if target and "://" not in target and not (base / target).exists():
            missing.append(link)
    return missing


def missing_paths(text: str) -> list[str]:
    """Files and folders of the repository that are named but not there.

    Paths in backticks that begin in the repository's top folder or are a Python file's name, and
    every `ghn_jax/...py` wherever it stands but in a link.
    """
    missing = [path for path in PACKAGE_FILE.findall(text) if not _exists(path)]
    blocks = code_blocks(text, "python")
    saved = {match[1] for block in blocks if (match := FILE.match(block))}  # by the reader
    for code in inline_code(text):
        is_path = re.fullmatch(r"[\w.\-/]+", code) and code.split("/")[0] in TOP_LEVEL
        if is_path and "/" in code and not _exists(code):
            missing.append(code)
        if re.fullmatch(r"\w+\.py", code) and code not in FILE_NAMES | saved:
            missing.append(code)
    return missing


def _exists(path: str) -> bool:
    if path.startswith(".venv/"):
        return True  # which programs are there depends on the extras that were installed
    return (REPOSITORY / path).exists()


def wrong_names(text: str) -> list[str]:
    """Code in backticks whose names or arguments the package does not have, each with the reason.

    Names that begin with one of `OBJECTS`, such as `ghn_jax.load("digits")`.
    """
    wrong = []
    for code in inline_code(text):
        try:
            tree = ast.parse(code)
        except SyntaxError:
            continue  # prose, shapes, commands
        try:
            for node in ast.walk(tree):
                if isinstance(node, ast.Attribute):
                    _resolve(node)
                elif isinstance(node, ast.Call):
                    _check_call(node)
        except (AttributeError, TypeError) as error:
            wrong.append(f"{code}: {error}")
    return wrong


_UNKNOWN = object()


def _resolve(node: ast.expr) -> Any:
    """What an expression of names and attributes stands for; `_UNKNOWN` if it is no such."""
    if isinstance(node, ast.Name):
        return OBJECTS.get(node.id, _UNKNOWN)
    if not isinstance(node, ast.Attribute):
        return _UNKNOWN
    owner = _resolve(node.value)
    if owner is _UNKNOWN:
        return _UNKNOWN
    if isinstance(owner, types.ModuleType):
        try:
            return getattr(owner, node.attr)
        except AttributeError:
            if importlib.util.find_spec(f"{owner.__name__}.{node.attr}") is None:
                raise
            return importlib.import_module(f"{owner.__name__}.{node.attr}")
    if isinstance(owner, type) and node.attr in getattr(owner, "__annotations__", {}):
        kind = typing.get_type_hints(owner)[node.attr]
        return kind if isinstance(kind, type) and dataclasses.is_dataclass(kind) else _UNKNOWN
    if isinstance(owner, type) and not hasattr(owner, node.attr):
        source = inspect.getsource(owner)  # an attribute that its constructor sets
        if f"self.{node.attr} " in source or f"self.{node.attr}:" in source:
            return _UNKNOWN
    return getattr(owner, node.attr)


def _check_call(node: ast.Call) -> None:
    function = _resolve(node.func)
    is_spread = any(isinstance(argument, ast.Starred) for argument in node.args)
    if function is _UNKNOWN or is_spread or any(word.arg is None for word in node.keywords):
        return
    arguments: list[Any] = [None] * len(node.args)
    is_method = isinstance(node.func, ast.Attribute) and isinstance(_resolve(node.func.value), type)
    if is_method and inspect.isfunction(function):
        arguments.append(None)  # self
    words = {word.arg: None for word in node.keywords if word.arg is not None}
    inspect.signature(function).bind(*arguments, **words)


def program(command: str) -> tuple[str, ...] | None:
    """The program of this repository that a command runs, as arguments of Python; else None."""
    first, *words = shlex.split(command)
    if first.endswith("ghn-jax"):
        return ("-m", "ghn_jax.cli.main", words[0]) if words[0].islower() else None
    if words[0].endswith(".py"):
        return (words[0],)
    is_ours = words[0] == "-m" and words[1].startswith("ghn_jax")
    return ("-m", words[1]) if is_ours else None


@functools.cache
def help_text(arguments: tuple[str, ...]) -> str:
    """What a program prints for `--help`."""
    if arguments[:2] == ("-m", "ghn_jax.cli.main"):
        arguments = (f"launch/{arguments[2].replace('-', '_')}.py",)
    result = subprocess.run(
        [sys.executable, *arguments, "--help"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "COLUMNS": "100"},
        check=False,
    )
    assert result.returncode == 0, f"{arguments}: {result.stderr}"
    return result.stdout


def unknown_flags(command: str, text: str) -> list[str]:
    """Flags of a command that its program's help does not list."""
    flags = re.findall(r"(?<!\S)--([\w.\-]+)", command)
    known = set(re.findall(r"--([\w.\-]+)", text.replace("--[no]", "--"))) | {"help"}
    return [flag for flag in flags if flag not in known and flag.removeprefix("no") not in known]


@functools.cache
def known_flags() -> frozenset[str]:
    """Flags of all programs, as the source defines them, and fields of configs."""
    sources = [path.read_text("utf-8") for path in (REPOSITORY / "ghn_jax").rglob("*.py")]
    defined = re.compile(r"""(?:DEFINE_\w+\(|add_argument\()\s*"(?:--)?(\w+)""")
    names = {name for source in sources for name in defined.findall(source)}
    configs = (ExperimentConfig, FinetuneConfig, NetworkConfig)
    fields = {f"config.{field.name}" for config in configs for field in iterate_fields(config)}
    return frozenset(names | fields | {"help"})


def lone_flags(text: str) -> list[str]:
    """Flags that stand in backticks without a program and that no program has."""
    codes = [code for code in inline_code(text) if re.match(r"--\w", code)]
    flags = [flag for code in codes for flag in re.findall(r"(?<!\S)--([\w.\-]+)", code)]
    return [flag for flag in flags if flag not in known_flags()]
