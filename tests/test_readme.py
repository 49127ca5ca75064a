"""The README and CONTRIBUTING keep their promises: examples run, commands and links are right."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from ghn_jax.interop.locations import CHECKPOINTS

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")  # also finds images


def code_blocks(text: str, language: str) -> list[str]:
    """Contents of the fenced code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def missing_targets(text: str, folder: Path) -> list[str]:
    """Relative links that lead nowhere."""
    targets = [link.split("#")[0] for link in LINK.findall(text) if "://" not in link]
    return [target for target in targets if target and not (folder / target).exists()]


def test_code_blocks_by_hand():
    text = "a\n```bash\nls\n```\n```python\nx = 1\ny = 2\n```\n"
    assert code_blocks(text, "python") == ["x = 1\ny = 2\n"]
    assert code_blocks(text, "bash") == ["ls\n"]


def test_missing_targets_by_hand(tmp_path):
    (tmp_path / "here.md").touch()
    text = "[a](here.md#part) ![b](gone.png) [c](https://arxiv.org) [d](#top)"
    assert missing_targets(text, tmp_path) == ["gone.png"]


@pytest.mark.skipif(
    not (CHECKPOINTS / "digits").is_dir(),
    reason="the packaged checkpoint ghn_jax/checkpoints/digits is not there",
)
def test_python_example_runs():
    (example,) = code_blocks(README, "python")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(example, "README.md", "exec"), {})
    match = re.fullmatch(r"[\d,]+ predicted parameters, accuracy ([\d.]+)%\n", printed.getvalue())
    assert match, printed.getvalue()
    assert float(match[1]) > 30  # three times chance


def test_python_example_is_short():
    (example,) = code_blocks(README, "python")
    statements = [line for line in example.splitlines() if line and not line.startswith("import")]
    assert len(statements) <= 10


def test_first_command_trains_on_digits():
    (command,) = [block for block in code_blocks(README, "bash") if "-e '.[train]' " in block]
    installed, trained = command.rstrip("\n").rsplit(" && ", 1)
    assert installed == "python3 -m venv .venv && .venv/bin/pip install --quiet -e '.[train]'"
    assert trained.startswith(".venv/bin/python launch/train.py --config launch/configs/digits.py")


def test_test_command_is_that_of_ci():
    ci = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    (command,) = [block for block in code_blocks(README, "bash") if "pytest" in block]
    assert command.rstrip("\n") in ci


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_relative_links_exist(name):
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    assert missing_targets(text, REPOSITORY) == []


def test_every_config_is_listed():
    configs = {path.name for path in (REPOSITORY / "launch" / "configs").glob("*.py")}
    listed = re.findall(r"^\| \[`(\w+\.py)`\]\(launch/configs/\1\)", README, flags=re.MULTILINE)
    assert set(listed) == configs - {"__init__.py"}
    assert len(listed) == len(set(listed))


def test_folders_of_the_layout_exist():
    (layout,) = code_blocks(README, "text")
    paths = [line.split()[0] for line in layout.splitlines()]
    assert [path for path in paths if not (REPOSITORY / path).exists()] == []
    packages = {
        f"ghn_jax/{path.parent.name}/" for path in (REPOSITORY / "ghn_jax").glob("*/__init__.py")
    }
    assert packages <= set(paths)
