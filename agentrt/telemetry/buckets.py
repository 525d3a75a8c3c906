"""Values that stand for those of a histogram, for services that take values and not buckets."""

from __future__ import annotations

import math

from agentrt.telemetry.signals import Histogram

__all__ = ["values_of"]

Bucket = tuple[float, float, int]
"""(low, high, count)"""


def values_of(histogram: Histogram) -> list[tuple[float, int]]:
    """Values with the number of times that each occurred, ascending.

    Count and sum are those of the histogram, and each value lies in its bucket, so that percentiles are as exact as the
    buckets are. So are the least and the greatest value, if the histogram knows them: of what came between two batches
    only their buckets are known.
    """
    if histogram.count <= 0:
        return []
    buckets = _buckets(histogram)
    found = _with_extremes(buckets, histogram.sum) or _spread(buckets, histogram.sum)
    merged: dict[float, int] = {}
    for value, count in found:
        merged[value] = merged.get(value, 0) + count
    return sorted(merged.items())


def _with_extremes(buckets: list[Bucket], total: float) -> list[tuple[float, int]]:
    """The least and the greatest value once each, the rest spread so that the sum is right; empty if it cannot be."""
    least, greatest = buckets[0][0], buckets[-1][1]
    counts = [count for _, _, count in buckets]
    counts[0] -= 1
    counts[-1] -= 1
    if min(counts) < 0:
        return []  # a single value: the sum is known better
    inner = [(low, high, count) for (low, high, _), count in zip(buckets, counts, strict=True) if count]
    rest = total - least - greatest
    slack = 1e-9 * max(1.0, abs(total))
    if not _lowest(inner) - slack <= rest <= _highest(inner) + slack:
        return []
    return [(least, 1), *_spread(inner, rest), (greatest, 1)]


def _spread(buckets: list[Bucket], total: float) -> list[tuple[float, int]]:
    """One value for each bucket, all at the same share of the way from its low to its high end."""
    lowest = _lowest(buckets)
    room = _highest(buckets) - lowest
    share = _within((total - lowest) / room, 0.0, 1.0) if room > 0.0 else 0.0
    return [(low + share * (high - low), count) for low, high, count in buckets]


def _buckets(histogram: Histogram) -> list[Bucket]:
    """The buckets with something in them, cut to the least and the greatest value."""
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


def _lowest(buckets: list[Bucket]) -> float:
    return math.fsum(low * count for low, _, count in buckets)


def _highest(buckets: list[Bucket]) -> float:
    return math.fsum(high * count for _, high, count in buckets)


def _within(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
