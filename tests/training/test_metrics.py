"""Metrics on disk across interruptions, and the text of the progress."""

import io
import json
import math
import re

import pytest
import rich.console
from small_disk import fill, small_disk

from ghn_jax.training.metrics import MetricWriter, TrainingProgress


def read(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_one_object_per_line_written_at_once(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(3, {"loss": 1.25, "rate/learning": 1e-3})
        (record,) = read(tmp_path)  # Before anything is closed.
        writer.write(4, {"loss": math.nan, "norm": -math.inf})
    assert record.pop("wall_time") > 1.7e9
    assert record == {"step": 3, "loss": 1.25, "rate/learning": 1e-3}
    assert {**read(tmp_path)[1], "wall_time": 0} == {
        "step": 4,
        "wall_time": 0,
        "loss": None,
        "norm": None,
    }
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"rate/learning" in events.read_bytes()
    assert b"norm" not in events.read_bytes()


def test_resuming_drops_later_steps_and_half_a_line(tmp_path):
    with MetricWriter(tmp_path) as writer:
        for step in (10, 20, 30):
            writer.write(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 15, "lo')
    with MetricWriter(tmp_path, resume_step=20) as writer:
        writer.write(30, {"loss": 31.0})
    assert [(record["step"], record["loss"]) for record in read(tmp_path)] == [
        (10, 10.0),
        (20, 20.0),
        (30, 31.0),
    ]


def test_starting_anew_drops_everything(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(0, {"loss": 1.0})
    MetricWriter(tmp_path).close()
    assert read(tmp_path) == []


def test_a_full_disk_is_named_and_loses_no_finished_step(tmp_path):
    many = {f"loss/{i}": float(i) for i in range(2000)}
    with small_disk(tmp_path / "disk", 400) as disk:
        with pytest.raises(OSError) as error, MetricWriter(disk) as writer:
            writer.write(1, {"loss": 1.0})
            filler = fill(disk)
            writer.write(2, many)
        assert str(error.value) == (
            f"metrics could not be written to {disk} (No space left on device): make room if the"
            " disk is full, then start the same command again"
        )
        with pytest.raises(OSError, match=f"^metrics could not be written to {disk} \\(No space"):
            MetricWriter(disk, resume_step=1)
        filler.unlink()
        with MetricWriter(disk, resume_step=1) as writer:
            writer.write(2, {"loss": 0.5})
        assert [record["step"] for record in read(disk)] == [1, 2]


@pytest.mark.parametrize("reserved", ["step", "wall_time"])
def test_reserved_names_are_refused(tmp_path, reserved):
    with MetricWriter(tmp_path) as writer:
        with pytest.raises(ValueError, match=f"^scalars has the name '{reserved}', expected"):
            writer.write(1, {reserved: 1.0})


def test_plain_lines_where_there_is_no_terminal():
    now = [0.0]
    console = rich.console.Console(file=io.StringIO(), force_terminal=False)
    progress = TrainingProgress(100, first_step=10, console=console, clock=lambda: now[0])
    with progress:
        for step, time in ((20, 5.0), (25, 9.0), (30, 20.0), (100, 21.0)):
            now[0] = time
            progress.update(step, loss=1.5, note="3 compilations", architectures=40)
    lines = console.file.getvalue().splitlines()
    # Step 25 comes too soon after step 20; the last step is always shown.
    assert [line.split("  ")[0] for line in lines] == ["step 20/100", "step 30/100", "step 100/100"]
    # 20 steps and 3 * 40 architectures in 20 s; 70 steps to go at 1 a second.
    assert lines[1] == (
        "step 30/100  loss 1.5000  1.00 steps/s  6.00 architectures/s  3 compilations  ETA 0:01:10"
    )


def test_bar_on_a_terminal():
    console = rich.console.Console(file=io.StringIO(), force_terminal=True, width=120)
    with TrainingProgress(10, console=console) as progress:
        progress.update(5, loss=0.25, architectures=4)
    assert "step 5/10" in console.file.getvalue()
    assert "loss 0.2500" in console.file.getvalue()


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_folder_that_is_removed_ends_the_run_at_the_next_write(tmp_path, is_replaced):
    with MetricWriter(tmp_path / "run") as writer:
        writer.write(1, {"loss": 1.0})
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        if is_replaced:
            (tmp_path / "run").mkdir()
            (tmp_path / "run" / "metrics.jsonl").touch()
        message = f"^{tmp_path}/run/metrics.jsonl was removed or replaced during the run: it stops$"
        with pytest.raises(FileNotFoundError, match=message):
            writer.write(2, {"loss": 1.0})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"step": 15, "lo', "Invalid control character"),
        (b'{"loss": 1.0}', "'step'"),
        (b'{"step": "15"}', "step is '15', expected an int"),
        (b'{"step": null}', "step is None, expected an int"),
        (b"[15]", "list indices"),
        (b"\xff\xfe{", "codec can't decode|Expecting value"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_lines_of_another_kind_name_the_file_and_the_line(tmp_path, line, message):
    with MetricWriter(tmp_path) as writer:
        writer.write(10, {"loss": 1.0})
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + line + b"\n" + path.read_bytes())
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"^{path}, line 2: .* is no line of this run") as error:
        MetricWriter(tmp_path, resume_step=20)
    text = str(error.value)
    assert re.search(message, text) and "\n" not in text and len(text) < 600
    assert path.read_bytes() == before and not (tmp_path / "metrics.tmp").exists()
    MetricWriter(tmp_path).close()  # starting anew drops everything
    assert path.read_bytes() == b""
