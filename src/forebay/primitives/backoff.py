"""How long to wait before the next try."""

from __future__ import annotations

from random import Random, SystemRandom


class Backoff:
    """Waits that double from `base` to `cap` seconds, each drawn anew from zero up ("full jitter").

    Full jitter keeps replicas that lost their database together from coming back together.
    """

    def __init__(self, base: float = 0.05, cap: float = 5.0, rng: Random | None = None) -> None:
        self._base = base
        self._cap = cap
        self._rng = rng or SystemRandom()
        self.attempts = 0

    def next_delay(self) -> float:
        """The next wait in seconds."""
        ceiling = min(self._cap, self._base * 2.0 ** min(self.attempts, 32))
        self.attempts += 1
        return self._rng.uniform(0, ceiling)

    def reset(self) -> None:
        """It worked: begin anew the next time."""
        self.attempts = 0
