"""`ghn-jax`: one command for every program of `launch/`."""

import pytest
from program_runs import ROOT

import ghn_jax
from ghn_jax.cli.main import PROGRAMS, main


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["ghn-jax", *arguments])
    return ended.value.code, *capsys.readouterr()


def test_every_program_of_launch_is_a_subcommand():
    files = {path.stem for path in (ROOT / "launch").glob("*.py")}
    assert {name.replace("-", "_") for name in PROGRAMS} == files


def test_overview_has_a_line_for_each(capsys):
    status, output, errors = call(capsys, "--help")
    assert (status, errors) == (0, "")
    lines = [line.split() for line in output.splitlines()[2:]]
    assert tuple(line[0] for line in lines) == PROGRAMS
    assert all(len(line) > 3 for line in lines)
    assert call(capsys)[0] == 2  # nothing asked for


def test_version(capsys):
    assert call(capsys, "--version") == (0, f"ghn_jax {ghn_jax.__version__}\n", "")


def test_unknown_programs_give_one_line(capsys):
    status, output, errors = call(capsys, "trian")
    assert (status, output) == (2, "")
    assert errors.startswith("error: program is 'trian' (did you mean 'train'?), expected train, e")
    assert errors.count("\n") == 1
