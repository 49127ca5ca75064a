"""Measure where the time of a step goes."""

import time


class Clock:
    """A stopwatch with named laps.

    Attributes:
        seconds: Duration of each lap, by name.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """End a lap that started when the previous one ended, or when the clock was created."""
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now
