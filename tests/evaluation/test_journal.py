"""Results of an evaluation that was stopped: what is reused, and what is not."""

import itertools
import json

import pytest

from ghn_jax.evaluation.evaluate import ArchitectureResult, ArchitectureSplit, evaluate_splits
from ghn_jax.evaluation.journal import keep_results
from ghn_jax.training.folder_lock import FolderInUseError


class Notes:
    """An evaluator that notes what it evaluates, and is stopped before one of them."""

    def __init__(self, stops_at=None):
        self.evaluated, self.stops_at = [], stops_at

    def evaluate(self, ghn_params, architectures, random_seed):
        for index in architectures:
            if index == self.stops_at:
                raise KeyboardInterrupt
            self.evaluated.append(index)
            yield ArchitectureResult(index, 5, 7, {"top1": 0.1 * index}, {"top1": 1 / 3})


def evaluate(folder, evaluator, identity=None, names=("val", "test")):
    splits = [ArchitectureSplit(name, 4, iter(range(4))) for name in names]
    with keep_results(folder, identity or {"seed": 1}) as journal:
        measured = evaluate_splits(evaluator, {}, splits, journal=journal)
        return {split.name: list(results) for split, results in measured}


def stop(folder):
    with pytest.raises(KeyboardInterrupt):
        evaluate(folder, Notes(2), names=("val",))


def test_a_stopped_evaluation_goes_on(tmp_path):
    whole = evaluate(tmp_path / "whole", Notes())
    stop(tmp_path)
    evaluator = Notes()
    assert evaluate(tmp_path, evaluator) == whole
    assert evaluator.evaluated == [2, 3, *range(4)]
    assert not list(tmp_path.glob("*.partial.jsonl"))
    # What has ended is evaluated anew.
    evaluate(tmp_path, again := Notes())
    assert len(again.evaluated) == 8


def test_results_of_something_else_are_dropped(tmp_path):
    stop(tmp_path)
    evaluate(tmp_path, evaluator := Notes(), {"seed": 2}, ("val",))
    assert evaluator.evaluated == [0, 1, 2, 3]


def test_a_line_with_another_number_is_dropped(tmp_path):
    stop(tmp_path)
    path = tmp_path / "val.partial.jsonl"
    text = path.read_text()
    assert '"top1": 0.1' in text
    path.write_text(text.replace('"top1": 0.1', '"top1": 0.9'))
    evaluate(tmp_path, evaluator := Notes(), names=("val",))
    assert evaluator.evaluated == [1, 2, 3]


def test_half_a_line_is_dropped(tmp_path):
    stop(tmp_path)
    path = tmp_path / "val.partial.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    assert [json.loads(line)["index"] for line in lines[1:]] == [0, 1]
    path.write_text("".join(lines[:-1]) + lines[-1][:20])
    evaluate(tmp_path, evaluator := Notes(), names=("val",))
    assert evaluator.evaluated == [1, 2, 3]


def test_splits_that_ended_are_not_repeated(tmp_path):
    class StopsInTest(Notes):
        def evaluate(self, ghn_params, architectures, random_seed):
            first = list(itertools.islice(architectures, 4 - len(self.evaluated)))
            if not first:
                raise KeyboardInterrupt
            yield from super().evaluate(ghn_params, first, random_seed)

    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path, StopsInTest())
    evaluate(tmp_path, evaluator := Notes())
    assert evaluator.evaluated == [0, 1, 2, 3]  # of the second split


def test_two_evaluations_into_one_folder(tmp_path):
    import concurrent.futures

    with keep_results(tmp_path, {}):
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            error = pool.submit(evaluate, tmp_path, Notes()).exception()
    assert isinstance(error, FolderInUseError)
