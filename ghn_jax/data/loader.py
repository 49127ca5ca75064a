"""Batches of images and labels.

In: a `Dataset`, a seed and a step. Out: normalised images (B, H, W, C) float32, and labels as the
data set has them: (B,) int32 classes, or (B, ...) of another task. Every batch is a function of
(seed, step) alone, so training that stops and resumes at a step sees bit-identical batches, and
several threads may prepare them in any order. All batches are full: batch norm runs on batch
statistics, where a smaller or padded batch changes every prediction.
"""

from __future__ import annotations

import functools
import operator
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from ghn_jax.configuration.validation import check_positive_int
from ghn_jax.data.augmentation import add_gaussian_noise, cut_out, normalize
from ghn_jax.data.splits import Dataset
from ghn_jax.tasks import Batch

T = TypeVar("T")

# First words of the spawn keys that separate a seed's streams.
ORDER_STREAM, AUGMENTATION_STREAM, NOISE_STREAM, CUTOUT_STREAM = 0, 1, 2, 3


class TrainBatches:
    """Shuffled and augmented batches of the training images, by step.

    Each epoch is a new permutation of the images; the len(train) % batch_size images left at its
    end are skipped until the next one.
    """

    def __init__(self, dataset: Dataset, batch_size: int, seed: int, cutout: int = 0) -> None:
        """Set up batches.

        Args:
          dataset: the data set, whose training images are used.
          batch_size: number of images in a batch, B.
          seed: at least 0; decides order and augmentation.
          cutout: side of the square that is set to 0 in each image, pixels; 0 is none.

        Raises:
          ValueError: if batch_size is not positive or exceeds the number of training images, or
            the seed is negative.
        """
        check_positive_int("batch_size", batch_size)
        if batch_size > len(dataset.train):
            raise ValueError(
                f"batch_size is {batch_size}, expected at most the {len(dataset.train)} training"
                f" images of {dataset.name!r}"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = _check_index("seed", seed)
        self.cutout = _check_index("cutout", cutout)
        self.steps_per_epoch = len(dataset.train) // batch_size

    def batch(self, step: int) -> Batch:
        """Return the batch of a step.

        Args:
          step: at least 0, counted from the first batch of the first epoch.

        Returns:
          Images (B, H, W, C) float32, normalised, and labels (B, ...).

        Raises:
          ValueError: if the step is negative or no integer.
        """
        step = _check_index("step", step)
        epoch, position = divmod(step, self.steps_per_epoch)
        order = _epoch_order(len(self.dataset.train), self.seed, epoch)
        indices = order[position * self.batch_size : (position + 1) * self.batch_size]
        images, labels = self.dataset.train.read(indices)
        generator = _make_generator(self.seed, AUGMENTATION_STREAM, step)
        images = self.dataset.train_transform(images, generator)
        images = normalize(images, self.dataset.mean, self.dataset.std)
        if self.cutout:
            generator = _make_generator(self.seed, CUTOUT_STREAM, step)
            images = cut_out(images, self.cutout, generator)
        return Batch(images, labels)

    def prefetch(
        self, start_step: int = 0, num_workers: int = 1, buffer_size: int = 2
    ) -> Prefetcher[Batch]:
        """Return an endless iterator over the batches from a step on, prepared ahead in threads."""
        return Prefetcher(self.batch, start_step, None, num_workers, buffer_size)


class EvaluationBatch(NamedTuple):
    """A full batch of which only some images are counted.

    Attributes:
      images: (B, H, W, C) float32, normalised.
      labels: (B, ...), as the data set has them.
      counted_mask: (B,) bool; False where the image fills up the last batch and was counted before.
    """

    images: np.ndarray
    labels: np.ndarray
    counted_mask: np.ndarray


class EvaluationBatches:
    """All images of a split in their order, in full batches.

    The last batch is filled with images from the start of the split whose predictions are not
    counted, so an accuracy over `counted_mask` counts each image once. The original instead
    evaluates the last images (16 of CIFAR-10's 10000 at batch 64) on the statistics of their own
    small batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str = "test",
        batch_size: int = 64,
        noise_std: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Set up batches.

        Args:
          dataset: the data set.
          split: 'train', 'validation' or 'test'; none is augmented.
          batch_size: number of images in a batch, B.
          noise_std: standard deviation of Gaussian noise added to the images in [0, 1] before they
            are normalised: 0.08 for CIFAR-10, 0.18 for ImageNet. 0 adds none.
          seed: at least 0; decides the noise.

        Raises:
          ValueError: if an argument is not as described.
        """
        check_positive_int("batch_size", batch_size)
        if not 0 <= noise_std < float("inf"):
            raise ValueError(f"noise_std is {noise_std!r}, expected a finite number of at least 0")
        self.dataset = dataset
        self.split = dataset.split(split)
        self.batch_size = batch_size
        self.noise_std = noise_std
        self.seed = _check_index("seed", seed)

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-len(self.split) // self.batch_size)

    def batch(self, index: int) -> EvaluationBatch:
        """Return the batch at a position.

        Args:
          index: 0 .. len - 1.

        Returns:
          The batch, of exactly B images.

        Raises:
          ValueError: if the index is out of range.
        """
        index = _check_index("index", index)
        if index >= len(self):
            raise ValueError(f"index is {index}, expected less than the {len(self)} batches")
        positions = index * self.batch_size + np.arange(self.batch_size)
        images, labels = self.split.read(positions % len(self.split))
        images = self.dataset.eval_transform(images)
        if self.noise_std > 0:
            generator = _make_generator(self.seed, NOISE_STREAM, index)
            images = add_gaussian_noise(images, self.noise_std, generator)
        return EvaluationBatch(
            images=normalize(images, self.dataset.mean, self.dataset.std),
            labels=labels,
            counted_mask=positions < len(self.split),
        )

    def __iter__(self) -> Iterator[EvaluationBatch]:
        """Iterate over all batches."""
        return (self.batch(index) for index in range(len(self)))

    def prefetch(self, num_workers: int = 1, buffer_size: int = 2) -> Prefetcher[EvaluationBatch]:
        """Return an iterator over all batches, prepared ahead in threads."""
        return Prefetcher(self.batch, 0, len(self), num_workers, buffer_size)


class Prefetcher(Generic[T]):
    """Iterator over batch_fn(start), batch_fn(start + 1), ..., prepared ahead in threads, in order.

    An error in a thread is raised by the `next` that would have returned its batch, and ends the
    iterator. Use it as a context manager, or call `close`, to stop the threads.
    """

    def __init__(
        self,
        batch_fn: Callable[[int], T],
        start: int = 0,
        stop: int | None = None,
        num_workers: int = 1,
        buffer_size: int = 2,
    ) -> None:
        """Start preparing the first batches.

        Args:
          batch_fn: makes the batch of a step; called from `num_workers` threads at once.
          start: the first step.
          stop: the step to end before; None never ends.
          num_workers: number of threads. More than one pays for ImageNet, where decoding and
            resizing release the interpreter lock.
          buffer_size: number of batches prepared or being prepared ahead.

        Raises:
          ValueError: if an argument is not as described.
        """
        self._next_step = _check_index("start", start)
        check_positive_int("num_workers", num_workers)
        check_positive_int("buffer_size", buffer_size)
        self._batch_fn = batch_fn
        self._stop = None if stop is None else _check_index("stop", stop)
        self._pending: deque[Future[T]] = deque()
        # Futures carry results and errors in order, and an executor that is no longer referenced
        # lets its threads end: there is no queue to hang on.
        self._executor = ThreadPoolExecutor(num_workers, thread_name_prefix="prefetch")
        self._closed = False
        for _ in range(buffer_size):
            self._submit()

    def _submit(self) -> None:
        """Ask the threads for one more batch, if there is one."""
        if self._stop is None or self._next_step < self._stop:
            self._pending.append(self._executor.submit(self._batch_fn, self._next_step))
            self._next_step += 1

    def __iter__(self) -> Prefetcher[T]:
        return self

    def __next__(self) -> T:
        """Return the next batch, waiting for it if necessary.

        Raises:
          StopIteration: after the last batch, after an error and after `close`.
          Exception: what `batch_fn` raised for this batch.
        """
        if self._closed or not self._pending:
            self.close()
            raise StopIteration
        try:
            batch = self._pending.popleft().result()
        except BaseException:  # whatever it is, also an interrupt while waiting, no thread stays
            self.close()
            raise
        self._submit()
        return batch

    def close(self) -> None:
        """Drop the batches prepared ahead and wait for the threads to end; may be called twice."""
        self._closed = True
        self._pending.clear()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@functools.lru_cache(maxsize=4)
def _epoch_order(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """Return the epoch's permutation (num_images,); kept since every step of it asks for it."""
    order = _make_generator(seed, ORDER_STREAM, epoch).permutation(num_images)
    order.setflags(write=False)
    return order


def _make_generator(seed: int, stream: int, index: int) -> np.random.Generator:
    """Return the generator of one epoch, step or batch of a stream of a seed."""
    # A spawn key and not SeedSequence([seed, stream, index]): lists are padded with zeros, so
    # that [seed, 1] and [seed, 1, 0] would be the same stream.
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream, index)))


def _check_index(name: str, value: object) -> int:
    """Return a whole number of at least 0 as an int, or raise ValueError."""
    try:
        index = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        index = -1
    if index < 0 or isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}, expected a whole number of at least 0")
    return index
