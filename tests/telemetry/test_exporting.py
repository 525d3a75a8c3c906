"""One backend at work: whatever it does, everything that it was offered is delivered once or counted as lost once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.errors import ConfigError, PermanentError, ThrottledError, TransientError
from agentrt.telemetry import Batch
from agentrt.telemetry import exporting as module
from agentrt.telemetry.exporting import Exporting
from agentrt.telemetry.meter import Instrument, Meter
from tests.telemetry.recording import Kept, exporting, line, losses, span, until

COUNTER = Instrument("c", "counter")

ENOUGH = 40.0
"""Seconds that nothing here needs, whatever the machine does."""

AT_ONCE = 20.0
"""Seconds: far less than `ENOUGH` and than what hangs does, far more than a busy machine stands still."""


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.005)
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.02)


@contextlib.contextmanager
def at_work(backend: Any, **options: Any) -> Iterator[Exporting]:
    """An exporter that is closed at the end, in time."""
    exporter = exporting(backend, **options)
    try:
        yield exporter
    finally:
        end(exporter)


def end(exporter: Exporting, seconds: float = ENOUGH) -> None:
    until_ = time.monotonic() + seconds
    exporter.close(until_)
    if not exporter.ended(until_ - time.monotonic()):
        exporter.abandon()


def offered_and_flushed(exporter: Exporting, *names: str, lines: int = 0) -> bool:
    """What a flush says of these: the thread has seen nothing of them before it is asked for."""
    with exporter._changed:
        exporter.offer([span(name) for name in names], [line() for _ in range(lines)])
        return exporter.flush(ENOUGH)


def metered() -> Meter:
    meter = Meter()
    meter.series(COUNTER, {}).add(1.0)
    return meter


class Gate:
    """An export that waits until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self, batch: Batch) -> None:
        self.entered.set()
        assert self.opened.wait(ENOUGH)


# --- what an export may be ------------------------------------------------------------------------------


def test_an_export_may_be_a_plain_function() -> None:
    backend = Kept()
    with at_work(backend) as exporter:
        exporter.offer([span()], [line()])
    assert (len(backend.spans), len(backend.lines)) == (1, 1)
    assert exporter.report().delivered == {"spans": 1, "logs": 1, "metrics": 0}
    assert (backend.opened, backend.closed) == (1, 1)


def test_an_export_may_be_a_coroutine_function() -> None:
    class Slow(Kept):
        async def export(self, batch: Batch, /) -> None:
            await asyncio.sleep(0.01)
            self.batches.append(batch)

    backend = Slow()
    with at_work(backend) as exporter:
        exporter.offer([span()], [])
        assert exporter.flush(ENOUGH)
        assert len(backend.spans) == 1


@pytest.mark.parametrize("garbage", [True, 0, "ok", object(), [], NotImplemented])
def test_what_a_plain_export_returns_does_not_matter(garbage: object) -> None:
    backend = Kept(lambda batch: garbage)
    with at_work(backend) as exporter:
        exporter.offer([span()], [])
    assert exporter.report().lost == {}
    assert exporter.report().delivered["spans"] == 1


def test_what_a_coroutine_returns_does_not_matter() -> None:
    class Chatty(Kept):
        async def export(self, batch: Batch, /) -> Any:
            return {"status": 200}

    with at_work(Chatty()) as exporter:
        exporter.offer([span()], [])
    assert exporter.report().delivered["spans"] == 1


def test_an_export_with_a_yield_in_it_is_told_not_taken_for_a_success(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Mistaken:
        async def export(self, batch: Batch, /) -> Any:
            yield batch

    with at_work(Mistaken()) as exporter:
        exporter.offer([span()], [])
    assert losses(exporter) == {"failed": 1}
    assert "there is a `yield` in it" in caplog.text


def test_a_backend_gets_the_signals_that_it_wants_and_no_others() -> None:
    backend = Kept(signals=("logs",))
    with at_work(backend, meter=metered()) as exporter:
        exporter.offer([span()], [line()])
    (batch,) = backend.batches
    assert (len(batch.spans), len(batch.metrics), len(batch.logs)) == (0, 0, 1)
    assert exporter.report().lost == {}


# --- failures -------------------------------------------------------------------------------------------


class Odd(BaseException):
    pass


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("nothing to say")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        PermanentError("no"),
        SystemExit(3),
        KeyboardInterrupt(),
        asyncio.CancelledError(),
        GeneratorExit(),
        Odd("odd"),
        Mute(),
        ExceptionGroup("several", [ValueError("no")]),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("is_async", [False, True])
def test_whatever_an_export_raises_costs_one_batch(
    error: BaseException, is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def later(batch: Batch) -> None:
        await asyncio.sleep(0)
        raise error

    backend = Kept(*(2 * [later if is_async else error]))
    with at_work(backend) as exporter:
        for number in range(3):
            assert offered_and_flushed(exporter, f"s{number}", lines=1) == (number == 2)
    report = exporter.report()
    assert report.lost == {("spans", "failed"): 2, ("logs", "failed"): 2}
    assert [each.name for each in backend.batches[-1].spans] == ["s2"]
    assert report.delivered["spans"] == 1
    assert len([r for r in caplog.records if "refuses" in r.getMessage()]) == 1, "it is told once"
    assert type(error).__name__ in str(report)


@pytest.mark.parametrize(
    "error", [TransientError("busy"), ConnectionResetError(), TimeoutError(), OSError("disk")], ids=repr
)
def test_what_may_work_later_is_tried_again_and_delivered_once(error: Exception) -> None:
    backend = Kept(error, error)
    with at_work(backend) as exporter:
        exporter.offer([span()], [])
        assert exporter.flush(ENOUGH)
    assert (backend.tries, len(backend.spans)) == (3, 1)
    assert exporter.report().lost == {}
    assert exporter.report().error is not None


def test_what_never_works_is_given_up_after_eight_tries(caplog: pytest.LogCaptureFixture) -> None:
    backend = Kept(*(8 * [TransientError("busy")]))
    with at_work(backend) as exporter:
        assert not offered_and_flushed(exporter, "before")
        exporter.offer([span("after")], [])
        assert exporter.flush(ENOUGH)
    assert losses(exporter) == {"failed": 1}
    assert [each.name for each in backend.spans] == ["after"]
    assert len([r for r in caplog.records if "fails for now" in r.getMessage()]) == 1


@pytest.mark.parametrize("asked", [0.25, 1e9, float("nan"), -1, "soon", None])
def test_a_throttled_export_waits_as_it_was_asked_within_reason(
    asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.3)
    times: list[float] = []
    backend = Kept(
        ThrottledError("429", retry_after=asked),
        lambda batch: times.append(time.monotonic()),
    )
    with at_work(backend) as exporter:
        started = time.monotonic()
        exporter.offer([span()], [])
        assert exporter.flush(ENOUGH)
    if isinstance(asked, int | float) and asked > 0:
        assert times[0] - started >= min(asked, 0.3)
    assert len(backend.spans) == 1


def test_a_slow_coroutine_is_cut_off_and_tried_again() -> None:
    async def hang(batch: Batch) -> None:
        await asyncio.sleep(60)

    backend = Kept(hang, timeout=0.05)
    with at_work(backend) as exporter:
        exporter.offer([span()], [])
        assert exporter.flush(ENOUGH)
    assert backend.tries == 2
    assert "TimeoutError" in (exporter.report().error or "")


def test_work_in_a_thread_that_ends_after_it_was_given_up_hurts_nobody() -> None:
    given_up, ended = threading.Event(), threading.Event()

    def work() -> None:
        given_up.wait(ENOUGH)
        ended.set()

    async def in_a_thread(batch: Batch) -> None:
        await asyncio.to_thread(work)

    backend = Kept(in_a_thread, lambda batch: given_up.set(), timeout=0.03)
    with at_work(backend) as exporter:
        exporter.offer([span()], [])
        assert exporter.flush(ENOUGH)
        assert ended.wait(ENOUGH)
        time.sleep(0.02)  # whatever the thread raises at its end is a warning, and so an error
    assert len(backend.spans) == 2  # `Kept` had the batch before it hung, too


def test_a_task_of_the_backends_own_that_raises_system_exit_is_survived(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def leave() -> None:
        raise SystemExit(1)

    async def starts_a_task(batch: Batch) -> None:
        task = asyncio.get_running_loop().create_task(leave())
        await asyncio.sleep(1)
        await task

    backend = Kept(starts_a_task)
    with at_work(backend) as exporter:
        exporter.offer([span()], [])
        until(lambda: losses(exporter))
        assert not offered_and_flushed(exporter, "one", "two")
    assert losses(exporter) == {"failed": 3}
    assert "can take nothing any more" in caplog.text


def test_a_log_handler_that_fails_does_not_end_the_thread(capsys: pytest.CaptureFixture[str]) -> None:
    class Failing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ValueError("the log is full")

    handler = Failing()
    logger = logging.getLogger("agentrt.telemetry")
    logger.addHandler(handler)
    try:
        backend = Kept(ValueError("no"))
        with at_work(backend) as exporter:
            assert not offered_and_flushed(exporter, "lost")
            exporter.offer([span("found")], [])
            assert exporter.flush(ENOUGH)
    finally:
        logger.removeHandler(handler)
    assert [each.name for each in backend.spans] == ["found"]
    assert losses(exporter) == {"failed": 1}
    assert "the log is full" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("interval", 0, "interval must be a number of seconds more than 0, not 0"),
        ("interval", float("nan"), "interval must be a number of seconds"),
        ("timeout", None, "timeout must be a number of seconds"),
        ("batch_size", 0, "batch_size must be a whole number of at least 1, not 0"),
        ("signals", ("spans", "traces"), "signals must be one of 'spans', 'metrics', 'logs', not 'traces'"),
    ],
)
def test_an_attribute_of_a_backend_that_makes_no_sense_is_told_with_its_name(
    option: str, value: Any, problem: str
) -> None:
    backend = Kept()
    setattr(backend, option, value)
    with pytest.raises(ConfigError, match="the telemetry backend acme: ") as caught:
        exporting(backend, name="acme")
    assert problem in str(caught.value)


def test_the_one_signal_of_a_backend_may_be_plain_text() -> None:
    backend = Kept()
    backend.signals = "spans"  # type: ignore[assignment]
    assert exporting(backend).wants == {"spans"}


# --- opening and closing --------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(2), ConnectionRefusedError()], ids=repr)
def test_a_backend_that_cannot_be_opened_loses_everything_and_is_told_once(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Kept):
        async def open(self, host: Any) -> None:
            raise error

    backend = Broken()
    with at_work(backend) as exporter:
        assert not offered_and_flushed(exporter, "before")
        exporter.offer([span()], [line()])
        started = time.monotonic()
    assert time.monotonic() - started < AT_ONCE
    assert losses(exporter) == {"failed": 3}
    assert (backend.tries, backend.closed) == (0, 0)
    assert len([r for r in caplog.records if "could not be opened" in r.getMessage()]) == 1


def test_a_backend_that_cannot_be_opened_is_closed_at_once() -> None:
    class Broken(Kept):
        def open(self, host: Any) -> None:  # type: ignore[override]
            raise ValueError("no")

    for _ in range(50):  # closing must not fall between a look at it and the wait for it
        exporter = exporting(Broken(interval=ENOUGH))
        exporter.offer([span()], [])
        exporter.close(time.monotonic() + ENOUGH)
        assert exporter.ended(AT_ONCE)


def test_an_open_that_hangs_is_cut_off() -> None:
    class Hanging(Kept):
        async def open(self, host: Any) -> None:
            await asyncio.sleep(60)

    backend = Hanging(timeout=0.05)
    with at_work(backend) as exporter:
        assert not offered_and_flushed(exporter, "before")
    assert losses(exporter) == {"failed": 1}


@pytest.mark.parametrize("blocks", [False, True])
def test_a_close_that_hangs_costs_the_time_and_nothing_else(blocks: bool) -> None:
    release = threading.Event()

    class Hanging(Kept):
        async def aclose(self) -> None:
            if blocks:
                release.wait(30)
            else:
                await asyncio.sleep(60)

    backend = Hanging(timeout=60.0)
    exporter = exporting(backend)
    exporter.offer([span()], [])
    assert exporter.flush(ENOUGH)
    started = time.monotonic()
    end(exporter, 0.3)
    assert time.monotonic() - started < AT_ONCE
    assert exporter.report().lost == {}
    assert len(backend.spans) == 1
    release.set()


def test_a_close_that_fails_is_told(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Kept):
        async def aclose(self) -> None:
            raise SystemExit("no")

    with at_work(Failing()) as exporter:
        exporter.offer([span()], [])
    assert exporter.report().lost == {}
    assert "could not be closed (SystemExit: no)" in caplog.text


def test_a_task_that_does_not_end_holds_nothing_up() -> None:
    async def stubborn(release: threading.Event) -> None:
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    release = threading.Event()
    tasks: list[asyncio.Task[None]] = []

    class Restless(Kept):
        async def open(self, host: Any) -> None:
            tasks.append(asyncio.get_running_loop().create_task(stubborn(release)))

    backend = Restless()
    exporter = exporting(backend)
    exporter.offer([span()], [])
    exporter.close(time.monotonic() + ENOUGH)
    assert exporter.ended(AT_ONCE)
    release.set()
    assert len(backend.spans) == 1


def test_what_comes_after_the_end_is_lost_as_shutdown() -> None:
    backend = Kept()
    with at_work(backend) as exporter:
        exporter.offer([span()], [])
    exporter.offer([span()], [line(), line()])
    assert exporter.report().lost == {("spans", "shutdown"): 1, ("logs", "shutdown"): 2}


def test_a_backend_that_nothing_was_offered_is_neither_started_nor_waited_for() -> None:
    backend = Kept(signals=("spans",))
    exporter = exporting(backend)
    exporter.close(time.monotonic() + 5.0)
    assert exporter.ended(0.0)
    assert (backend.opened, backend.tries) == (0, 0)


def test_metrics_are_told_at_the_end_even_if_nothing_else_was() -> None:
    backend = Kept()
    with at_work(backend, meter=metered()):
        pass
    assert backend.metrics["c"].points[0].value == 1.0


# --- hanging --------------------------------------------------------------------------------------------


def test_what_hangs_is_abandoned_and_counted_once_even_if_it_comes_through_later() -> None:
    gate = Gate()
    backend = Kept(gate, signals=("spans", "logs"), batch_size=2)
    exporter = exporting(backend)
    exporter.offer([span(), span()], [])
    assert gate.entered.wait(ENOUGH)
    exporter.offer([span(), span(), span()], [line()])
    assert not exporter.flush(0.02)
    end(exporter, 0.05)
    assert exporter.report().lost == {("spans", "shutdown"): 5, ("logs", "shutdown"): 1}
    gate.opened.set()
    until(lambda: backend.closed)
    assert exporter.report().lost == {("spans", "shutdown"): 5, ("logs", "shutdown"): 1}
    assert exporter.report().delivered == {}


def test_a_shutdown_ends_a_pause_with_one_last_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 600.0)
    monkeypatch.setattr(module, "LONGEST_PAUSE", 600.0)
    backend = Kept(TransientError("down"))  # and up again
    exporter = exporting(backend)
    exporter.offer([span()], [])
    until(lambda: backend.tries == 1)
    started = time.monotonic()
    end(exporter)
    assert time.monotonic() - started < AT_ONCE
    assert exporter.report().lost == {}
    assert len(backend.spans) == 1


def test_a_shutdown_does_not_press_a_backend_that_asked_for_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_PAUSE", 600.0)
    backend = Kept(ThrottledError("429", retry_after=500.0), signals=("spans",))
    exporter = exporting(backend)
    exporter.offer([span()], [])
    until(lambda: backend.tries == 1)
    started = time.monotonic()
    end(exporter)
    assert time.monotonic() - started < AT_ONCE
    assert (backend.tries, losses(exporter)) == (1, {"shutdown": 1})


def test_a_backend_that_stays_down_is_tried_during_the_shutdown_and_no_longer() -> None:
    backend = Kept(*(1000 * [TransientError("down")]), signals=("spans",), batch_size=1)
    exporter = exporting(backend)
    exporter.offer([span() for _ in range(500)], [])
    started = time.monotonic()
    end(exporter, 0.2)
    assert time.monotonic() - started < AT_ONCE
    report = exporter.report()
    assert sum(report.lost.values()) + report.delivered.get("spans", 0) == 500
    assert ("spans", "shutdown") in report.lost


# --- queues ---------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_lost_and_told_as_a_number() -> None:
    gate = Gate()
    noted: list[tuple[str, str, str, int]] = []
    backend = Kept(gate, signals=("spans", "logs"), batch_size=1)
    exporter = exporting(backend, queue=10, dropped=lambda *loss: noted.append(loss))
    exporter.offer([span()], [])
    assert gate.entered.wait(ENOUGH)
    exporter.offer([span() for _ in range(8)], [line() for _ in range(5)])
    exporter.offer([span()], [])
    gate.opened.set()
    end(exporter)
    assert exporter.report().lost == {("logs", "queue full"): 3, ("spans", "queue full"): 1}
    assert exporter.report().delivered == {"spans": 9, "logs": 2, "metrics": 0}
    assert noted == [("kept", "logs", "queue full", 3), ("kept", "spans", "queue full", 1)]


def test_a_full_batch_is_not_waited_for() -> None:
    backend = Kept(interval=600.0, batch_size=4, signals=("spans",))
    with at_work(backend) as exporter:
        exporter.start()
        assert exporter.flush(ENOUGH)  # from now on it waits for its interval
        exporter.offer([span() for _ in range(4)], [])
        until(lambda: len(backend.spans) == 4, seconds=AT_ONCE)


def test_a_backend_that_is_always_behind_gets_its_metrics() -> None:
    def slow(batch: Batch) -> None:
        time.sleep(0.005)

    backend = Kept(*(10_000 * [slow]), batch_size=2, interval=0.01)
    exporter = exporting(backend, meter=metered())
    end_ = time.monotonic() + ENOUGH
    while not backend.metrics:
        assert time.monotonic() < end_, "there was always more to deliver first"
        exporter.offer([span() for _ in range(20)], [])
        time.sleep(0.001)
    exporter.offer([span()], [])
    assert not exporter.flush(0.0)
    end(exporter, 0.1)


def test_a_system_without_threads_loses_nothing_that_can_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    real = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    backend = Kept()
    with at_work(backend) as exporter:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        exporter.offer([span()], [])
        assert not exporter.flush(0.1)
        monkeypatch.setattr(threading.Thread, "start", real)
        exporter.offer([span()], [])
    assert len(backend.spans) == 2
    never = exporting(Kept())
    monkeypatch.setattr(threading.Thread, "start", refuse)
    never.offer([span()], [])
    end(never)
    assert losses(never) == {"shutdown": 1}


# --- metrics --------------------------------------------------------------------------------------------


def test_metrics_hold_the_whole_or_what_came_since_as_the_backend_wants() -> None:
    for delta, expected in ((False, [1.0, 3.0]), (True, [1.0, 2.0])):
        meter = metered()
        backend = Kept(delta=delta, interval=60.0)
        with at_work(backend, meter=meter) as exporter:
            exporter.start()
            assert exporter.flush(ENOUGH)
            meter.series(COUNTER, {}).add(2.0)
            assert exporter.flush(ENOUGH)
        values = [metric.points[0].value for batch in backend.batches for metric in batch.metrics]
        assert values[:2] == expected
        assert all(metric.is_delta == delta for batch in backend.batches for metric in batch.metrics)


def test_a_lost_delta_is_counted_and_a_lost_snapshot_is_not_for_the_next_says_it_again() -> None:
    for delta, expected in ((False, {}), (True, {("metrics", "failed"): 1})):
        backend = Kept(ValueError("no"), delta=delta, interval=60.0)
        with at_work(backend, meter=metered()) as exporter:
            exporter.start()
            assert not exporter.flush(ENOUGH)
        assert exporter.report().lost == expected


def test_metrics_are_redacted_for_deltas_too_and_lists_in_tags_do_no_harm() -> None:
    from agentrt.telemetry.redaction import Redactor

    redactor = Redactor()
    redactor.add("hunter2hunter2")
    meter = Meter()
    meter.series(COUNTER, {"tag": ["a", "hunter2hunter2"]}).add(1.0)
    backend = Kept(delta=True)
    with at_work(backend, meter=meter, redact=redactor.metric) as exporter:
        exporter.start()
        exporter.flush(ENOUGH)
        exporter.flush(ENOUGH)
    assert backend.metrics["c"].points[0].attributes == {"tag": ["a", "[redacted]"]}
    assert exporter.report().lost == {}


# --- whatever happens -----------------------------------------------------------------------------------

OUTCOMES: list[Any] = [
    None,
    None,
    None,
    TransientError("busy"),
    ThrottledError("429", retry_after=0.01),
    ValueError("no"),
    SystemExit(1),
    "hang",
    "slow",
    "block",
]
STEPS = st.lists(
    st.tuples(st.just("offer"), st.integers(0, 6), st.integers(0, 6))
    | st.tuples(st.just("flush"), st.sampled_from([0.0, 0.01, 1.0]), st.none())
    | st.tuples(st.just("sleep"), st.sampled_from([0.0, 0.002, 0.01]), st.none()),
    max_size=12,
)


def as_told(outcome: Any, release: threading.Event) -> BaseException | Callable[[Batch], Any] | None:
    async def hang(batch: Batch) -> None:
        await asyncio.sleep(60)

    async def slow(batch: Batch) -> None:
        await asyncio.sleep(0.005)

    def block(batch: Batch) -> None:
        release.wait(0.05)

    return {"hang": hang, "slow": slow, "block": block}.get(outcome, outcome)  # type: ignore[call-overload,no-any-return]


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(OUTCOMES), max_size=8),
    STEPS,
    st.integers(1, 12),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.02, 0.5]),
)
def test_every_item_is_delivered_once_or_lost_once(
    outcomes: list[Any], steps: list[tuple[str, Any, Any]], queue: int, size: int, seconds: float
) -> None:
    release = threading.Event()

    class Exact(Kept):
        """Has a batch when its export has returned."""

        async def export(self, batch: Batch, /) -> None:
            outcome = as_told(self.outcomes.pop(0) if self.outcomes else None, release)
            if isinstance(outcome, BaseException):
                raise outcome
            waiting = None if outcome is None else outcome(batch)
            if waiting is not None:
                await waiting
            self.batches.append(batch)

    backend = Exact(*outcomes, batch_size=size, timeout=0.02, signals=("spans", "logs"), interval=0.005)
    exporter = exporting(backend, queue=queue)
    offered = {"spans": 0, "logs": 0}
    for step, first, second in steps:
        if step == "offer":
            names = [f"s{offered['spans'] + number}" for number in range(first)]
            texts = [f"l{offered['logs'] + number}" for number in range(second)]
            exporter.offer([span(name) for name in names], [line(text) for text in texts])
            offered["spans"] += first
            offered["logs"] += second
        elif step == "flush":
            exporter.flush(first)
        else:
            time.sleep(first)
    end(exporter, seconds)
    release.set()
    exporter.offer([span("late")], [])
    offered["spans"] += 1
    thread = exporter._thread
    if thread is not None:
        thread.join(ENOUGH)
        assert not thread.is_alive()
    report = exporter.report()
    lost = {"spans": 0, "logs": 0}
    for (signal, _), count in report.lost.items():
        lost[signal] += count
    for signal in ("spans", "logs"):
        assert report.delivered.get(signal, 0) + lost[signal] == offered[signal]
    names = [each.name for each in backend.spans]
    assert len(set(names)) == len(names)
    # A batch that came through after it was abandoned is counted as lost, and is all the same there.
    assert len(names) >= report.delivered.get("spans", 0)
