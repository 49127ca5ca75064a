"""`ghn-jax`: one command for every program of `launch/`."""

import pytest
from program_runs import ROOT

import ghn_jax
from ghn_jax.cli.command_line import errors_in_one_line
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


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            MemoryError("Unable to allocate 7 PiB"),
            "there is not enough memory (MemoryError: Unable",
        ),
        (RecursionError("deep"), "something is nested too deeply (RecursionError: deep)"),
        (OverflowError("int too large"), "a number is too large (OverflowError: int too large)"),
        (RuntimeError("RESOURCE_EXHAUSTED: 8 GB"), "there is not enough memory (RuntimeError: RES"),
        (ValueError("a\nb  c"), "a b c"),
        (ValueError("x" * 10**6), "x" * 2000 + "..."),
        (ValueError(), "ValueError"),
    ],
)
def test_what_is_too_large_is_said_in_one_line(capsys, error, text):
    with pytest.raises(SystemExit) as end, errors_in_one_line():
        raise error
    assert end.value.code == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {text}") and shown.count("\n") == 1 and len(shown) < 2100


def test_faults_of_the_program_keep_their_traceback():
    with pytest.raises(RuntimeError, match="^a fault$"), errors_in_one_line():
        raise RuntimeError("a fault")
