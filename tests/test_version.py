"""The version stands in one place, and changelog and tag agree with it."""

import importlib.metadata
import runpy
from pathlib import Path

import pytest

import ghn_jax

REPOSITORY = Path(__file__).resolve().parents[1]
CHECK = runpy.run_path(str(REPOSITORY / ".ci" / "check_version.py"))
RELEASED = "## [Unreleased]\n\n## [1.2.0] - 2026-01-01\n\n- New.\n\n## [1.1.3]\n\n- Old.\n"
PENDING = RELEASED.replace("[Unreleased]\n", "[Unreleased]\n\n### Added\n\n- More.\n")


def test_this_version_is_right():
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert CHECK["find_faults"](ghn_jax.__version__, changelog, []) == []
    assert importlib.metadata.version("ghn_jax") == ghn_jax.__version__
    assert CHECK["read_version"]('x = 1\n__version__ = "1.2.3"\n') == "1.2.3"


@pytest.mark.parametrize(
    ("version", "changelog", "tags"),
    [
        ("1.2.0", RELEASED, []),
        ("1.2.0", RELEASED, ["v1.2.0", "other"]),
        ("1.3.0.dev0", PENDING, []),
        ("0.1.0.dev0", "## [Unreleased]\n\n- First.\n", []),
    ],
)
def test_agreement(version, changelog, tags):
    assert CHECK["find_faults"](version, changelog, tags) == []


@pytest.mark.parametrize(
    ("version", "changelog", "tags", "fault"),
    [
        ("1.2", RELEASED, [], "the version is '1.2', expected one such as"),
        ("1.1.3", RELEASED, [], "the version is 1.1.3, but CHANGELOG.md's newest is 1.2.0"),
        ("1.2.0", PENDING, [], "the version is 1.2.0, but CHANGELOG.md has unreleased changes"),
        ("1.2.0.dev1", RELEASED, [], "expected one after CHANGELOG.md's 1.2.0"),
        ("1.2.0", RELEASED, ["v1.3.0"], "the commit is tagged v1.3.0, but the version is 1.2.0"),
        ("1.3.0.dev0", PENDING, ["v1.3.0"], "is tagged v1.3.0, but the version is 1.3.0.dev0"),
        ("1.10.0", "## [1.9.0]\n\n## [1.10.0]\n", [], "expected the newest first"),
    ],
)
def test_disagreement(version, changelog, tags, fault):
    faults = CHECK["find_faults"](version, changelog, tags)
    assert any(fault in found for found in faults), faults
