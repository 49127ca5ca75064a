"""Batches depend on (seed, step) only, evaluation counts each image once, threads report errors."""

import dataclasses
import threading
import time

import numpy as np
import pytest

from ghn_jax.data import (
    ArraySplit,
    CropAndFlip,
    Dataset,
    EvaluationBatches,
    Prefetcher,
    Resize,
    TrainBatches,
)


def _split(num_images, first=0):
    """Images of which every pixel is the image's number; the label is it, too."""
    numbers = np.arange(first, first + num_images)
    images = np.broadcast_to(numbers[:, None, None, None], (num_images, 8, 8, 3)).astype(np.uint8)
    return ArraySplit(images, numbers.astype(np.int32))


def _dataset(num_train=50, num_test=150, transform=None):
    return Dataset(
        name="numbers",
        num_classes=256,
        image_size=8,
        num_channels=3,
        mean=(0.0, 0.5, 1.0),
        std=(1.0, 1.0, 0.5),
        train=_split(num_train),
        validation=_split(5, 50),
        test=_split(num_test),
        train_transform=transform or CropAndFlip(padding=0),
        eval_transform=Resize(),
    )


def _assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_epochs_are_permutations_and_images_match_labels():
    batches = TrainBatches(_dataset(), batch_size=16, seed=3)
    assert batches.steps_per_epoch == 3
    epochs = []
    for epoch in range(2):
        labels = []
        for step in range(3 * epoch, 3 * epoch + 3):
            images, step_labels = batches.batch(step)
            assert images.shape == (16, 8, 8, 3) and images.dtype == np.float32
            assert step_labels.dtype == np.int32
            # Hand-computed normalisation: label / 255, minus the mean, over the std.
            expected = (step_labels[:, None] / 255 - [0.0, 0.5, 1.0]) / [1.0, 1.0, 0.5]
            np.testing.assert_allclose(images[:, 3, 4], expected, atol=1e-6)
            labels += step_labels.tolist()
        assert len(set(labels)) == 48
        epochs.append(labels)
    assert epochs[0] != epochs[1]


def test_resuming_gives_bit_identical_batches():
    dataset = _dataset(transform=CropAndFlip(padding=2))
    batches = TrainBatches(dataset, 16, seed=1)
    uninterrupted = [batches.batch(step) for step in range(8)]
    resumed = TrainBatches(dataset, 16, seed=1)
    with resumed.prefetch(start_step=5, num_workers=2, buffer_size=3) as iterator:
        for step in (5, 6, 7):
            _assert_same(next(iterator), uninterrupted[step])
    _assert_same(resumed.batch(2), uninterrupted[2])
    other = TrainBatches(dataset, 16, seed=2).batch(0)
    assert not np.array_equal(other[1], uninterrupted[0][1])


def test_order_and_augmentation_are_separate_streams():
    class Recorder:
        def __init__(self):
            self.draws = []

        def __call__(self, images, generator):
            self.draws.append(generator.random())
            return np.asarray(images)

    recorder = Recorder()
    batches = TrainBatches(_dataset(transform=recorder), 16, seed=0)
    for step in (0, 1, 2, 3, 0):
        batches.batch(step)
    assert len(set(recorder.draws[:4])) == 4
    assert recorder.draws[4] == recorder.draws[0]


def test_train_batches_errors():
    with pytest.raises(
        ValueError, match="batch_size is 51, expected at most the 50 training images"
    ):
        TrainBatches(_dataset(), 51, 0)
    with pytest.raises(ValueError, match="batch_size is 0, expected a positive int"):
        TrainBatches(_dataset(), 0, 0)
    with pytest.raises(ValueError, match="seed is -1, expected a whole number of at least 0"):
        TrainBatches(_dataset(), 5, -1)
    with pytest.raises(ValueError, match="step is 1.5, expected a whole number"):
        TrainBatches(_dataset(), 5, 0).batch(1.5)
    # A step restored from a checkpoint is a numpy integer.
    TrainBatches(_dataset(), 5, 0).batch(np.int64(3))


@pytest.mark.parametrize("num_test", [3, 64, 150])
def test_evaluation_counts_each_image_once_in_full_batches(num_test):
    batches = EvaluationBatches(_dataset(num_test=num_test))
    seen, counted = [], []
    for batch in batches:
        assert batch.images.shape == (64, 8, 8, 3) and batch.counted_mask.dtype == bool
        np.testing.assert_allclose(batch.images[:, 0, 0, 0], batch.labels / 255, rtol=1e-6)
        seen += batch.labels.tolist()
        counted += batch.labels[batch.counted_mask].tolist()
    assert len(batches) == {3: 1, 64: 1, 150: 3}[num_test]
    assert counted == list(range(num_test))
    # What fills up is taken from the start.
    assert seen == [i % num_test for i in range(64 * len(batches))]


def test_evaluation_prefetch_equals_batches():
    batches = EvaluationBatches(_dataset(), batch_size=40)
    with batches.prefetch(num_workers=2) as iterator:
        prefetched = list(iterator)
    assert len(prefetched) == 4
    for one, other in zip(prefetched, batches, strict=True):
        _assert_same(one, other)


def test_evaluation_noise_is_reproducible_and_before_normalisation():
    dataset = dataclasses.replace(_dataset(), mean=(0.0,) * 3, std=(2.0,) * 3)
    clean = EvaluationBatches(dataset).batch(1).images
    noisy = EvaluationBatches(dataset, noise_std=0.08, seed=4).batch(1).images
    np.testing.assert_array_equal(
        noisy, EvaluationBatches(dataset, noise_std=0.08, seed=4).batch(1).images
    )
    assert not np.array_equal(
        noisy, EvaluationBatches(dataset, noise_std=0.08, seed=5).batch(1).images
    )
    # Pixels 64..127 of 255 are 3 standard deviations from the clip; 0.08 is halved by std = 2.
    # 12288 samples: the error of the std is 0.04 / sqrt(2 * 12288) = 0.0003.
    assert abs(float((noisy - clean).std()) - 0.04) < 0.0015


def test_evaluation_errors():
    with pytest.raises(ValueError, match=r"split is 'testing' \(did you mean 'test'\?\)"):
        EvaluationBatches(_dataset(), "testing")
    with pytest.raises(ValueError, match="noise_std is -1, expected a finite number"):
        EvaluationBatches(_dataset(), noise_std=-1)
    with pytest.raises(ValueError, match="index is 3, expected less than the 3 batches"):
        EvaluationBatches(_dataset()).batch(3)


def _prefetch_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_prefetch_keeps_order_and_stops():
    def slow_if_even(step):
        time.sleep(0.01 * (step % 2 == 0))
        return step

    iterator = Prefetcher(slow_if_even, start=4, stop=15, num_workers=3, buffer_size=4)
    assert list(iterator) == list(range(4, 15))
    assert list(iterator) == []
    assert not _prefetch_threads()


def test_prefetch_raises_the_workers_error_in_the_consumer_after_earlier_batches():
    def fail_at_two(step):
        if step == 2:
            raise OSError(f"record of step {step} is broken")
        return step

    iterator = Prefetcher(fail_at_two, buffer_size=5)
    assert [next(iterator), next(iterator)] == [0, 1]
    with pytest.raises(OSError, match="record of step 2 is broken"):
        next(iterator)
    with pytest.raises(StopIteration):
        next(iterator)
    assert not _prefetch_threads()


def test_prefetch_works_ahead_but_only_by_the_buffer():
    made = []
    with Prefetcher(lambda step: made.append(step) or step, buffer_size=3) as iterator:
        deadline = time.monotonic() + 10
        while len(made) < 3 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.02)
        assert made == [0, 1, 2]
        assert next(iterator) == 0
    assert len(made) <= 4


def test_close_does_not_wait_for_batches_not_begun():
    release = threading.Event()
    made = []

    def wait_then_make(step):
        made.append(step)
        release.wait(10)
        return step

    iterator = Prefetcher(wait_then_make, buffer_size=8)
    while not made:
        time.sleep(0.001)
    threading.Timer(0.05, release.set).start()
    iterator.close()
    iterator.close()
    assert made == [0]
    assert list(iterator) == [] and not _prefetch_threads()


def test_prefetch_arguments():
    with pytest.raises(ValueError, match="num_workers is 0, expected a positive int"):
        Prefetcher(lambda step: step, num_workers=0)
    with pytest.raises(ValueError, match="start is -2, expected a whole number"):
        Prefetcher(lambda step: step, start=-2)
