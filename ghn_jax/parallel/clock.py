"""Where the time of a step goes."""

import time


class Clock:
    """Measures laps.

    Attributes:
        seconds: Of each lap, by name.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """End a lap that began with the last one, or with the clock."""
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now
