"""A process's metrics as one reads them: totals, rates between two looks, quantiles."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

# Several workers are ready if each is, and their oldest change is the oldest of any.
_OVER_WORKERS: dict[str, Callable[[Iterable[float]], float]] = {"ready": min, "queue_oldest_age_seconds": max}


@dataclass(frozen=True)
class Snapshot:
    """What a process exposes at a moment. `at`: when, in seconds; samples by name, then by labels."""

    at: float
    samples: dict[str, dict[frozenset[tuple[str, str]], float]]

    @classmethod
    def parse(cls, text: str, at: float) -> Snapshot:
        """Read Prometheus's text format. Raises ValueError for anything else."""
        samples: defaultdict[str, dict[frozenset[tuple[str, str]], float]] = defaultdict(dict)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples[sample.name][frozenset(sample.labels.items())] = sample.value
        if "forebay_ready" not in samples:
            raise ValueError("there are no metrics of forebay's")
        return cls(at, dict(samples))

    def total(self, name: str) -> float | None:
        """A metric over its labels, as a rule the sum; None where there is none of this name."""
        found = self.samples.get(f"forebay_{name}")
        return None if found is None else _OVER_WORKERS.get(name, sum)(found.values())

    def by_label(self, name: str, label: str) -> dict[str, float]:
        """A metric's sum for each value of a label, without those that are 0."""
        found: defaultdict[str, float] = defaultdict(float)
        for labels, value in self.samples.get(f"forebay_{name}", {}).items():
            found[dict(labels).get(label, "")] += value
        return {key: value for key, value in sorted(found.items()) if value}

    def info(self, label: str) -> str:
        """A label of the build's."""
        return next(
            (dict(labels).get(label, "") for labels in self.samples.get("forebay_build_info", ())), ""
        )

    def rate(self, name: str, before: Snapshot | None) -> float | None:
        """How much a total grew in a second since a look before; None without one, and after a restart."""
        now, then = self.total(name), before.total(name) if before is not None else None
        if now is None or then is None or before is None or self.at <= before.at or now < then:
            return None
        return (now - then) / (self.at - before.at)

    def quantile(self, name: str, share: float, before: Snapshot | None = None) -> float | None:
        """Under which value so great a share lies, to a bucket's bound; None for none, infinite for beyond all.

        Of what came since the look before, if anything did; else of all.
        """
        found = self._quantile(name, share, before) if before is not None else None
        return self._quantile(name, share, None) if found is None else found

    def mean(self, name: str, before: Snapshot | None = None) -> float | None:
        """A histogram's mean of what came since the look before, if anything did; else of all. None for none."""
        count, total = self.total(f"{name}_count") or 0.0, self.total(f"{name}_sum") or 0.0
        if before is not None and count > (earlier := before.total(f"{name}_count") or 0.0):
            return (total - (before.total(f"{name}_sum") or 0.0)) / (count - earlier)
        return total / count if count else None

    def _quantile(self, name: str, share: float, before: Snapshot | None) -> float | None:
        buckets = self.buckets(name)
        if before is not None:
            earlier = before.buckets(name)
            buckets = {bound: count - earlier.get(bound, 0) for bound, count in buckets.items()}
        most = buckets.get(math.inf, 0)
        return next((bound for bound in sorted(buckets) if most and buckets[bound] >= share * most), None)

    def buckets(self, name: str) -> dict[float, float]:
        """A histogram's upper bounds, and how many values are not above each; of all labels together."""
        found: defaultdict[float, float] = defaultdict(float)
        for bound, count in self._bucket_samples(name):
            found[bound] += count
        return dict(found)

    def _bucket_samples(self, name: str) -> Iterator[tuple[float, float]]:
        for labels, count in self.samples.get(f"forebay_{name}_bucket", {}).items():
            yield float(dict(labels)["le"]), count
