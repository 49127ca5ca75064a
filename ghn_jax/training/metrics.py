"""The reports of a run in progress: metrics on disk, and progress on the terminal.

In: scalars by name, at a step. Out: TensorBoard event files and `metrics.jsonl` in the run's folder
(one object per line: step, wall_time in seconds since 1970, then the scalars), `skipped.jsonl` with
a line for each architecture that was skipped, and a progress bar, or one line of text every few
seconds where the output is not a terminal.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping

import rich.console
import rich.progress

from ghn_jax.configuration.validation import describe_value, shorten
from ghn_jax.extras import extra

with extra("train", "metrics of training"):
    from tensorboardX import event_file_writer
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.summary import scalar as scalar_summary

_FILE = "metrics.jsonl"
_SKIPPED_FILE = "skipped.jsonl"


class MetricWriter:
    """Writes scalars to TensorBoard and to `metrics.jsonl`; a context manager."""

    def __init__(self, workdir: str | pathlib.Path, resume_step: int | None = None) -> None:
        """Open the metrics of a run.

        Args:
            workdir: folder of the run, created if missing.
            resume_step: step of the checkpoint that the run goes on from; what was written for
                later steps is dropped, since those steps come again. None drops everything.
        """
        folder = pathlib.Path(workdir)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / _FILE
        self._skipped_path = folder / _SKIPPED_FILE
        with self._naming_failures():
            for path in (self.path, self._skipped_path):
                _truncate(path, resume_step)
            self._file = self.path.open("a", encoding="utf-8")
            first_step = 0 if resume_step is None else resume_step + 1
            self._tensorboard = _EventFile(folder / "tensorboard", first_step)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write scalars of a step at once, so that a crash loses no finished step.

        Args:
            step: number of updates made.
            scalars: name -> value; names with a slash are grouped in TensorBoard. A value that is
                not finite is null in `metrics.jsonl`, as JSON has no word for it, and left out of
                TensorBoard.

        Raises:
            ValueError: if a name is one of the two that every line has.
            FileNotFoundError: if the run's folder or `metrics.jsonl` was removed during the run.
            OSError: if they cannot be written, the disk being full; names the folder.
        """
        self._check_file()
        for name in ("step", "wall_time"):
            if name in scalars:
                raise ValueError(
                    f"scalars has the name {name!r}, expected another: every line has it"
                )
        now = time.time()
        record: dict[str, float | int | None] = {"step": step, "wall_time": now}
        finite = {}
        for name, value in scalars.items():
            number = float(value)
            record[name] = number if math.isfinite(number) else None
            if math.isfinite(number):
                finite[name] = number
        with self._naming_failures():
            self._file.write(json.dumps(record, allow_nan=False) + "\n")
            self._file.flush()
            self._tensorboard.write(step, now, finite)

    def _check_file(self) -> None:
        """Raise unless the open file is the one under its name: writes to another one are lost."""
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.path)):
                return
        raise FileNotFoundError(f"{self.path} was removed or replaced during the run: it stops")

    def write_skipped(self, step: int, index: int, seed: int) -> None:
        """Note that an architecture was skipped.

        Args:
            step: the update that it took no part in.
            index: its index in its stream.
            seed: the stream's seed.
        """
        record = {"step": step, "index": index, "seed": seed}
        with self._naming_failures(), self._skipped_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def close(self) -> None:
        """Close the files.

        Raises:
            OSError: if what is left cannot be written; names the folder.
        """
        with self._naming_failures(), contextlib.closing(self._tensorboard):
            self._file.close()

    @contextlib.contextmanager
    def _naming_failures(self) -> Iterator[None]:
        """Put the folder, and what to do, into the text of what the system refuses."""
        try:
            yield
        except OSError as error:
            raise OSError(
                f"metrics could not be written to {self.path.parent} ({error.strerror or error}):"
                " make room if the disk is full, then start the same command again"
            ) from error

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        # What failed to be written fails again where the files are closed.
        with contextlib.suppress(*(() if kind is None else (OSError,))):
            self.close()


class _EventFile:
    """A file of TensorBoard, written at once: tensorboardX's own writer leaves it to a thread.

    If that thread cannot write, it prints a traceback, and the queue to it fills up for ever.
    """

    def __init__(self, folder: pathlib.Path, first_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = event_file_writer.EventsWriter(str(folder / "events"))
        # What an earlier file has from this step on is not shown.
        start = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(step=first_step, file_version="brain.Event:2"))
        self._writer.write_event(Event(step=first_step, session_log=start))
        self._writer.flush()

    def write(self, step: int, wall_time: float, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            summary = scalar_summary(name, value)
            self._writer.write_event(Event(step=step, wall_time=wall_time, summary=summary))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class NoMetrics(contextlib.nullcontext):
    """Writes nothing: for all processes of a run but the first, and for a run without a folder."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Do nothing."""

    def write_skipped(self, step: int, index: int, seed: int) -> None:
        """Do nothing."""

    def __enter__(self) -> NoMetrics:
        return self


class TrainingProgress:
    """A progress bar with rates, or plain lines where the output is no terminal."""

    def __init__(
        self,
        num_steps: int,
        first_step: int = 0,
        *,
        console: rich.console.Console | None = None,
        seconds_between_lines: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        quiet: bool = False,
    ) -> None:
        """Set up; nothing shows before the context is entered.

        Args:
            num_steps: number of steps of the whole run.
            first_step: steps made before this process began.
            console: where to write; the standard output by default.
            seconds_between_lines: least time between plain lines.
            clock: seconds from any origin.
            quiet: whether nothing is shown; one of several processes reports.
        """
        self._num_steps = num_steps
        self._first_step = first_step
        self._console = console or rich.console.Console(quiet=quiet)
        self._seconds_between_lines = seconds_between_lines
        self._clock = clock
        self._start = clock()
        self._last_line = -math.inf
        self._counts: dict[str, int] = {}
        columns = (
            rich.progress.TextColumn("[bold]step {task.completed:.0f}/{task.total:.0f}"),
            rich.progress.BarColumn(),
            rich.progress.TextColumn("{task.fields[rates]}"),
            rich.progress.TimeRemainingColumn(),
        )
        self._bar = rich.progress.Progress(*columns, console=self._console)
        self._task = self._bar.add_task("", total=num_steps, completed=first_step, rates="")

    def update(self, step: int, *, loss: float, note: str = "", **counts: int) -> None:
        """Show the steps made since the last call.

        Args:
            step: number of updates made.
            loss: loss to show.
            note: anything else to show.
            **counts: how many of other things were done since the last call, by their name, such as
                `architectures=8`; shown as a rate per second.
        """
        elapsed = max(self._clock() - self._start, 1e-9)
        for name, count in counts.items():
            self._counts[name] = self._counts.get(name, 0) + count
        steps_per_second = (step - self._first_step) / elapsed
        parts = [f"loss {loss:.4f}", f"{steps_per_second:.2f} steps/s"]
        parts += [f"{count / elapsed:.2f} {name}/s" for name, count in self._counts.items()]
        rates = "  ".join(filter(None, [*parts, note]))
        if self._console.is_terminal:
            self._bar.update(self._task, completed=step, rates=rates)
            return
        now = self._clock()
        if step < self._num_steps and now - self._last_line < self._seconds_between_lines:
            return
        self._last_line = now
        remaining = (self._num_steps - step) / steps_per_second if steps_per_second else math.inf
        self._console.print(
            f"step {step}/{self._num_steps}  {rates}  ETA {_format_duration(remaining)}",
            soft_wrap=True,
            highlight=False,
        )

    def __enter__(self) -> TrainingProgress:
        # Building the model and compiling ahead do not count as time spent on steps.
        self._start = self._clock()
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._console.is_terminal:
            self._bar.stop()


def _format_duration(seconds: float) -> str:
    """Return hours, minutes and seconds as 1:02:03."""
    if not math.isfinite(seconds):
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def _truncate(path: pathlib.Path, resume_step: int | None) -> None:
    """Keep the lines of steps up to `resume_step`; the last may be half, as after a crash."""
    if not path.exists():
        return
    temporary = path.with_suffix(".tmp")
    with path.open("rb") as file, temporary.open("wb") as kept:
        # Line by line: the file of a long run is large.
        for number, line in enumerate(file if resume_step is not None else (), start=1):
            if not line.endswith(b"\n"):
                break
            try:
                step = json.loads(line)["step"]
                if type(step) is not int:
                    raise ValueError(f"step is {describe_value(step)}, expected an int")
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                temporary.unlink()
                raise ValueError(
                    f"{path}, line {number}: {shorten(line.decode('utf-8', 'replace'), 100)!r} is"
                    f" no line of this run ({shorten(error, 200)}); correct it or move the file"
                    " away"
                ) from error
            if resume_step is not None and step <= resume_step:
                kept.write(line)
    os.replace(temporary, path)
