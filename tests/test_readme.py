"""The README and CONTRIBUTING keep their promises: examples run, commands and links are right."""

import contextlib
import io
import re

import jax
import numpy as np
import pytest
from documentation import (
    REPOSITORY,
    code_blocks,
    commands,
    help_text,
    lone_flags,
    missing_links,
    missing_paths,
    program,
    unknown_flags,
    wrong_names,
)

from ghn_jax.interop.locations import CHECKPOINTS

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
COMMANDS = (REPOSITORY / "docs" / "commands.md").read_text(encoding="utf-8")
LAYOUT = (REPOSITORY / "docs" / "repository.md").read_text(encoding="utf-8")
TEXTS = ("README.md", "CONTRIBUTING.md")


def read(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def test_code_blocks_by_hand():
    text = "a\n```bash\nls\n```\n```python\nx = 1\ny = 2\n```\n"
    assert code_blocks(text, "python") == ["x = 1\ny = 2\n"]
    assert code_blocks(text, "bash") == ["ls\n"]


def test_missing_links_by_hand(tmp_path):
    (tmp_path / "here.md").touch()
    text = "[a](here.md#part) ![b](gone.png) [c](https://arxiv.org) [d](#top)"
    assert missing_links(text, tmp_path) == ["gone.png"]
    source = "https://github.com/ghn-jax/ghn_jax/blob/main"
    text = f"[a]({source}/README.md) [b]({source}/GONE.md)"
    assert missing_links(text, tmp_path) == [f"{source}/GONE.md"]


def test_missing_paths_by_hand():
    text = "`launch/train.py` `launch/trian.py` `digits.py` `digitz.py` `metrics.jsonl` `a/b.npz`"
    assert missing_paths(text) == ["launch/trian.py", "digitz.py"]
    assert missing_paths("```text\nghn_jax/gone.py\n```\n") == ["ghn_jax/gone.py"]


def test_wrong_names_by_hand():
    right = '`ghn_jax.load("digits")` `ghn_jax.models.build("vit", num_classes=3)` `ghn.config`'
    assert wrong_names(right + " `prediction.report.kept` `x.y` `--flag` `(B, N)`") == []
    for code, reason in {
        "ghn_jax.laod(path)": "no attribute 'laod'",
        "ghn_jax.load(path, modle=model)": "unexpected keyword argument 'modle'",
        "ghn_jax.GHN.predict_all": "no attribute 'predict_all'",
        "ghn.predict()": "missing a required argument",
        "prediction.report.keep": "no attribute 'keep'",
    }.items():
        (found,) = wrong_names(f"see `{code}`.")
        assert found.startswith(f"{code}: ") and reason in found


def test_commands_by_hand():
    text = "`A=1 python x.py --a 1` `python` `val/3 --b`\n"
    text += "```bash\nls && ghn-jax train \\\n --c\n```\n"
    assert commands(text) == ["ghn-jax train   --c", "python x.py --a 1"]
    assert program("python x.py --a 1") == ("x.py",)
    assert program(".venv/bin/python -m pytest -n 2") is None
    assert program("ghn-jax train --c") == ("-m", "ghn_jax.cli.main", "train")
    help_of = "flags:\n  --ghn\n  --[no]random\n  --config.ghn.decoder (default 'conv')"
    command = "x --ghn a --norandom --config.ghn.decoder=mlp --gnn=1"
    assert unknown_flags(command, help_of) == ["gnn"]


def test_lone_flags_by_hand():
    text = "`--ghn a` `--config.training.seed=1` `x --gnn` `--config.training.sead=1` `--gnn`"
    assert lone_flags(text) == ["config.training.sead", "gnn"]


def test_readme_has_at_most_6_kilobytes():
    assert len(README.encode()) <= 6 * 1024


@pytest.mark.skipif(
    not (CHECKPOINTS / "digits").is_dir(),
    reason="the packaged checkpoint ghn_jax/checkpoints/digits is not there",
)
def test_python_example_runs():
    (example,) = code_blocks(README, "python")
    printed = io.StringIO()
    names: dict = {}
    with contextlib.redirect_stdout(printed):
        exec(compile(example, "README.md", "exec"), names)
    match = re.match(r"([\d,]+) of ([\d,]+) parameters predicted, ", printed.getvalue())
    assert match, printed.getvalue()
    parameters = names["variables"]["params"]
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(parameters))
    assert match[1] == match[2] == f"{num_parameters:,}"
    assert names["logits"].shape == (len(names["images"]), 10)
    assert np.isfinite(names["logits"]).all()


def test_python_example_is_six_lines():
    (example,) = code_blocks(README, "python")
    statements = [line for line in example.splitlines() if line and not line.startswith("import")]
    assert len(statements) <= 6


def test_first_command_trains_on_digits():
    (command,) = [block for block in code_blocks(README, "bash") if "-e '.[train]' " in block]
    installed, trained = command.rstrip("\n").rsplit(" && ", 1)
    assert installed == "python3 -m venv .venv && .venv/bin/pip install --quiet -e '.[train]'"
    assert trained.startswith(".venv/bin/python launch/train.py --config launch/configs/digits.py")


def test_test_command_is_that_of_ci():
    ci = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    (command,) = [block for block in code_blocks(README, "bash") if "pytest" in block]
    assert command.rstrip("\n") in ci


@pytest.mark.parametrize("name", [*TEXTS, "CHANGELOG.md"])
def test_links_exist(name):
    assert missing_links(read(name), REPOSITORY) == []


@pytest.mark.parametrize("name", TEXTS)
def test_inline_code_is_right(name):
    assert missing_paths(read(name)) == []
    assert wrong_names(read(name)) == []


@pytest.mark.parametrize("name", TEXTS)
def test_commands_have_their_flags(name):
    ours = [command for command in commands(read(name)) if program(command)]
    assert ours
    for command in ours:
        assert unknown_flags(command, help_text(program(command))) == [], command


def test_numbers_of_the_readme_are_those_of_the_results():
    """The README's table is two of the columns of the tables in docs/results.md."""
    results = (REPOSITORY / "docs" / "results.md").read_text(encoding="utf-8")
    rows = [row for row in table_rows(README) if "±" in row[2]]
    assert len(rows) == 5
    for split, count, command, packaged, random in rows:
        name = "bnfree" if split == "no batch norm" else split
        found = [row for row in table_rows(results) if row[0] == name and "±" in row[2]]
        assert [(row[1], row[2]) for row in found] == [(count, command), (count, packaged)]
        # With other threads, rounding decides otherwise on an image or two of some networks.
        assert found[1][4] == random


def table_rows(text: str) -> list[list[str]]:
    """Cells of all rows of tables with five columns."""
    lines = re.findall(r"^\|(.+)\|$", text, flags=re.MULTILINE)
    rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    return [row for row in rows if len(row) == 5]


def test_every_config_is_listed():
    configs = {path.name for path in (REPOSITORY / "launch" / "configs").glob("*.py")}
    listed = re.findall(
        r"^\| \[`(\w+\.py)`\]\(\S+/launch/configs/\1\)", COMMANDS, flags=re.MULTILINE
    )
    assert set(listed) == configs - {"__init__.py"}
    assert len(listed) == len(set(listed))


def test_folders_of_the_layout_exist():
    (layout,) = code_blocks(LAYOUT, "text")
    paths = [line.split()[0] for line in layout.splitlines()]
    assert [path for path in paths if not (REPOSITORY / path).exists()] == []
    packages = {
        f"ghn_jax/{path.parent.name}/" for path in (REPOSITORY / "ghn_jax").glob("*/__init__.py")
    }
    assert packages <= set(paths)
