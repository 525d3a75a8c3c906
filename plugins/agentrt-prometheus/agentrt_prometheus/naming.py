"""Names and units as OpenTelemetry's specification of its compatibility with Prometheus converts them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from agentrt.telemetry.signals import MetricKind

__all__ = ["labels_of", "metric_name", "unit_word"]

UNITS = {
    "d": "days", "h": "hours", "min": "minutes", "s": "seconds", "ms": "milliseconds", "us": "microseconds",
    "ns": "nanoseconds",
    "By": "bytes", "KiBy": "kibibytes", "MiBy": "mebibytes", "GiBy": "gibibytes", "TiBy": "tebibytes",
    "kBy": "kilobytes", "KBy": "kilobytes", "MBy": "megabytes", "GBy": "gigabytes", "TBy": "terabytes",
    "m": "meters", "V": "volts", "A": "amperes", "J": "joules", "W": "watts", "g": "grams",
    "Cel": "celsius", "Hz": "hertz", "%": "percent",
}  # fmt: skip
PER = {
    "s": "second", "min": "minute", "m": "minute", "h": "hour", "d": "day", "w": "week", "mo": "month",
    "y": "year",
}  # fmt: skip


def unit_word(unit: str, kind: MetricKind) -> str:
    """The word that a unit adds to a name: "s" is "seconds", "By/s" "bytes_per_second"; "" for none.

    Annotations ("{token}") say what is counted and are no unit. "1" is "ratio", of gauges only.
    """
    unit = re.sub(r"\{[^}]*\}", "", unit).strip()
    if unit == "1":
        return "ratio" if kind == "gauge" else ""
    amount, slash, per = unit.partition("/")
    word = UNITS.get(amount, _clean(amount).strip("_"))
    if slash and per:
        word += f"_per_{PER.get(per, _clean(per).strip('_'))}"
    return word.strip("_")


def metric_name(name: str, unit: str, kind: MetricKind) -> str:
    """The name of the family, with its unit and without the `_total` of counters; "" if nothing of it is left."""
    found = _clean(name).removesuffix("_total") if kind == "counter" else _clean(name)
    if not found.strip("_"):
        return ""
    word = unit_word(unit, kind)
    if word and found != word and not found.endswith(f"_{word}"):
        found = f"{found.rstrip('_')}_{word}"
    return f"_{found}" if found[0].isdigit() else found


def labels_of(attributes: Mapping[str, Any]) -> dict[str, str]:
    """Attributes as labels. Where two names become the same, their values are joined by a semicolon."""
    labels: dict[str, str] = {}
    for key in sorted(attributes):
        name = re.sub(r"_+", "_", re.sub(r"[^a-zA-Z0-9_]", "_", key)) or "_"
        if name[0].isdigit():
            name = f"key_{name}"
        if name == "le":
            # It would be taken for the bound of a histogram's bucket.
            name = "exported_le"
        value = _text(attributes[key])
        labels[name] = f"{labels[name]};{value}" if name in labels else value
    return labels


def _clean(name: str) -> str:
    return re.sub(r"_+", "_", re.sub(r"[^a-zA-Z0-9_:]", "_", name))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value, enc_hook=str).decode()
