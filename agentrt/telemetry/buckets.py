"""Values that stand for those of a histogram, for services that take values and not buckets."""

from __future__ import annotations

import math

from agentrt.telemetry.signals import Histogram

__all__ = ["values_of"]


def values_of(histogram: Histogram) -> list[tuple[float, int]]:
    """Values with the number of times that each occurred, ascending.

    Count, sum, least and greatest are those of the histogram; each value lies in its bucket, so that percentiles are
    as exact as the buckets are.
    """
    if histogram.count <= 0:
        return []
    buckets = _buckets(histogram)
    if histogram.count == 1:
        return [(_within(histogram.sum, buckets[0][0], buckets[-1][1]), 1)]
    least, greatest = buckets[0][0], buckets[-1][1]
    # One value each is known exactly; what remains is spread so that the sum comes out right.
    counts = [count for _, _, count in buckets]
    counts[0] -= 1
    counts[-1] -= 1
    inner = [(low, high, count) for (low, high, _), count in zip(buckets, counts, strict=True) if count > 0]
    lowest = math.fsum(low * count for low, _, count in inner)
    room = math.fsum((high - low) * count for low, high, count in inner)
    rest = histogram.sum - least - greatest
    share = _within((rest - lowest) / room, 0.0, 1.0) if room > 0.0 else 0.0
    found: dict[float, int] = {least: 1}
    for low, high, count in inner:
        value = low + share * (high - low)
        found[value] = found.get(value, 0) + count
    found[greatest] = found.get(greatest, 0) + 1
    return sorted(found.items())


def _buckets(histogram: Histogram) -> list[tuple[float, float, int]]:
    """The buckets with something in them, as (low, high, count), cut to the least and the greatest value."""
    least, greatest = histogram.min, histogram.max
    if not (math.isfinite(least) and math.isfinite(greatest) and least <= greatest):
        mean = histogram.sum / histogram.count
        ends = [mean, *histogram.bounds]
        least, greatest = min(0.0, *ends), max(ends)
    lows, highs = (least, *histogram.bounds), (*histogram.bounds, greatest)
    found = [
        (_within(low, least, greatest), _within(high, least, greatest), count)
        for low, high, count in zip(lows, highs, histogram.counts, strict=True)
        if count > 0
    ]
    # A histogram without buckets has one count, of everything.
    return found or [(least, greatest, histogram.count)]


def _within(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
