"""The lines of telemetry's acceptance that its benchmark shows, at full length."""

from __future__ import annotations

import json
from typing import Any

from _acceptance import Acceptance, Place, expect

__all__ = ["register"]

MEASURED: dict[str, Any] = {}
STATES = ("off", "sampled_out", "memory", "otlp")
PEERS = ("otel_sdk", "otel_sdk_otlp", "logfire", "traceloop")
FULL_SPEED = 100_000


def measured(place: Place) -> dict[str, Any]:
    """The benchmark's figures at full length, measured once for all lines."""
    if not MEASURED:
        done = place.run("./dev", "bench", "telemetry", "--json", timeout=1800)
        expect(done.returncode == 0, done.stderr)
        MEASURED.update(json.loads(done.stdout))
    return MEASURED


def ours(place: Place, *, python: str) -> dict[str, Any]:
    """Our own figures on another Python."""
    done = place.run("./dev", "bench", "telemetry", "--json", "--ours", "--python", python, timeout=900)
    expect(done.returncode == 0, done.stderr)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def register(acceptance: Acceptance) -> None:
    line = acceptance.line

    @line(
        "the benchmark reports path_x and all_threads_x for each state and peer, and docs/performance.md has them"
    )
    def benchmark(place: Place) -> str:
        figures = measured(place)
        text = (place.clone / "docs" / "performance.md").read_text()
        for figure in ("path_x", "all_threads_x"):
            expect(figure in text, f"docs/performance.md has no {figure}")
            for name in (*STATES, *PEERS):
                expect(
                    isinstance(figures.get(f"{figure}_{name}"), int | float), f"no {figure}_{name}: {figures}"
                )
        expect(not figures.get("absent"), figures.get("absent"))
        return ", ".join(
            f"{state}: {figures[f'path_x_{state}']} / {figures[f'all_threads_x_{state}']}" for state in STATES
        )

    @line("recording stays within its limits: on the path, and in all threads, on 3.11 and 3.13")
    def limits(place: Place) -> str:
        seen = []
        installed = place.run("./dev", "pythons").stdout.split()
        expect("3.13" in installed, f"Python 3.13 is not installed, only {installed}")
        for figures in (measured(place), ours(place, python="3.13")):
            path, threads = figures["path_x"], figures["all_threads_x"]
            said = f"Python {figures['python']}: path_x {path} (at most 1.1), all_threads_x {threads} (at most 4)"
            expect(path <= 1.1 and threads <= 4.0, said)
            seen.append(said)
        return "; ".join(seen)

    @line("100,000 calls at full speed: delivered + reported dropped = 100,000")
    def full_speed(place: Place) -> str:
        figures = measured(place)
        expect(figures["full_speed_calls"] == FULL_SPEED, figures["full_speed_calls"])
        for suffix in ("", "_otlp"):
            expect(figures[f"lost_silently{suffix}"] == 0, figures)
        return f"{figures['lost_at_full_speed_otlp']} reported as dropped by OTLP, none silently"

    @line("4,000 calls a second lose nothing")
    def paced(place: Place) -> str:
        figures = measured(place)
        lost = {suffix: figures[f"lost_at_4000_a_second{suffix}"] for suffix in ("", "_otlp")}
        expect(set(lost.values()) == {0}, lost)
        return "none lost, null and OTLP"

    @line("shutdown with a black-holed collector ends within its budget")
    def black_hole(place: Place) -> str:
        seconds = measured(place)["shutdown_seconds"]
        expect(seconds <= 5.5, f"{seconds} s")
        return f"{seconds} s"
