"""The suite for authors of backends, applied to our own, and to backends that are wrong, which it finds."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from servers.faulty import BlackHole
from servers.http_server import Answer
from servers.otlp import Collector, Tap, open_tap

from agentrt.errors import PermanentError, TransientError
from agentrt.telemetry.console import Console
from agentrt.telemetry.file import File
from agentrt.telemetry.otlp import Jaeger, Otlp
from agentrt.telemetry.signals import Batch
from agentrt.testing import TelemetryBackendTests, backend_thread, telemetry_suite

# ---------------------------------------------------------------------------------------------- the built-in


class TestFile(TelemetryBackendTests):
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path) -> None:
        self.folder_path = tmp_path / "made" / "later"
        self.path = self.folder_path / "telemetry.jsonl"

    def make(self) -> File:
        return File(path=self.path)

    def delivered(self) -> bytes:
        return self.path.read_bytes() if self.path.exists() else b""

    @contextmanager
    def failing(self) -> Generator[None]:
        """Somebody has put a directory where the file was."""
        aside = self.path.with_suffix(".aside")
        self.folder_path.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self.path.rename(aside)
        self.path.mkdir()
        try:
            yield
        finally:
            self.path.rmdir()
            if aside.exists():
                aside.rename(self.path)


class TestConsole(TelemetryBackendTests):
    @pytest.fixture(autouse=True)
    def captured(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        self.seen = ""

    def make(self) -> Console:
        return Console(stream="stdout")

    def delivered(self) -> str:
        self.seen += self.capsys.readouterr().out
        return self.seen


class OtlpTests(TelemetryBackendTests):
    """To a collector of ours, which can fail."""

    @pytest.fixture(autouse=True)
    def server(self, collector: Collector, black_hole: BlackHole) -> None:
        self.collector = collector
        self.black_hole = black_hole
        self.made: list[Otlp] = []

    def delivered(self) -> str:
        names = [each.name for each in (*self.collector.spans, *self.collector.metrics)]
        return "\n".join([*names, *(line.body.string_value for line in self.collector.logs)])

    @contextmanager
    def failing(self) -> Generator[None]:
        self.collector.answer(Answer(503))
        yield
        self.collector.answer()

    @contextmanager
    def hanging(self) -> Generator[None]:
        self.collector.answer(Answer(delay=60.0))
        yield


class TestOtlp(OtlpTests):
    secrets: ClassVar[Mapping[str, str]] = {"secret://env/COLLECTOR_TOKEN": "abc"}

    @pytest.fixture(autouse=True)
    def token(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLLECTOR_TOKEN", "abc")

    def make(self) -> Otlp:
        headers = {"authorization": "Bearer secret://env/COLLECTOR_TOKEN"}
        return Otlp(endpoint=self.collector.url, headers=headers)


class TestOtlpWithDeltas(OtlpTests):
    def make(self) -> Otlp:
        return Otlp(endpoint=self.collector.url, delta=True, signals=("metrics", "logs"))


class TestJaeger(OtlpTests):
    def make(self) -> Jaeger:
        return Jaeger(endpoint=self.collector.url)


class TestOtlpToOteltap(TelemetryBackendTests):
    """A third party's receiver."""

    @pytest.fixture(autouse=True)
    def tap(self) -> Iterator[None]:
        with _tap_in_a_thread() as self.received:
            yield

    def make(self) -> Otlp:
        return Otlp(endpoint=self.received.url)

    def delivered(self) -> str:
        names = [each.name for each in (*self.received.spans, *self.received.metrics)]
        return "\n".join([*names, *(line.body.string_value for line in self.received.logs)])


@contextmanager
def _tap_in_a_thread() -> Generator[Tap]:
    """The suite's tests are no coroutines: nothing else would run its event loop."""
    started = threading.Event()
    taps: list[tuple[Tap, asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        async with open_tap() as tap:
            done = asyncio.Event()
            taps.append((tap, asyncio.get_running_loop(), done))
            started.set()
            await done.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="oteltap")
    thread.start()
    assert started.wait(10.0)
    ((tap, loop, done),) = taps
    try:
        yield tap
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join()


# ------------------------------------------------------------------------------------- what the suite finds


class Good:
    """Keeps names; fails and hangs as its server says."""

    def __init__(self, *, server: Any = None) -> None:
        self.server = server

    async def export(self, batch: Batch, /) -> None:
        if self.server.hangs:
            await asyncio.sleep(3600)
        if self.server.fails:
            raise TransientError("503")
        self.server.text += batch.json().decode()


class Server:
    def __init__(self) -> None:
        self.text = ""
        self.fails = False
        self.hangs = False


class Suite(TelemetryBackendTests):
    """Of a backend without a network: `backend` is its class."""

    backend: type[Any] = Good

    def __init__(self) -> None:
        self.server = Server()

    def make(self) -> Any:
        return self.backend(server=self.server)

    def delivered(self) -> str:
        return self.server.text

    @contextmanager
    def failing(self) -> Generator[None]:
        self.server.fails = True
        yield
        self.server.fails = False

    @contextmanager
    def hanging(self) -> Generator[None]:
        self.server.hangs = True
        yield
        self.server.hangs = False


TESTS = [name for name in dir(Suite) if name.startswith("test_")]


def failed(backend: type[Any]) -> dict[str, str]:
    """The tests of the suite that `backend` fails, with what they say."""
    kind = type("Of", (Suite,), {"backend": backend})
    problems = {}
    for name in TESTS:
        try:
            getattr(kind(), name)()
        except AssertionError as error:
            problems[name] = str(error)
    return problems


def one(backend: type[Any], test: str) -> str:
    """What `test` says about `backend`."""
    # What is wrong stays so: there is nothing to wait for.
    kind = type("Of", (Suite,), {"backend": backend, "patience": 0.1})
    with pytest.MonkeyPatch.context() as patch:
        for module in (backend_thread, telemetry_suite):
            patch.setattr(module, "LEFT", 0.3)
        if "hangs" in test:
            patch.setattr(backend_thread, "SLACK", 0.3)
        with pytest.raises(AssertionError) as caught:
            getattr(kind(), test)()
    return str(caught.value)


def test_nothing_is_wrong_with_a_good_backend() -> None:
    assert len(TESTS) == 27
    assert failed(Good) == {}


def test_an_error_of_a_library_that_comes_through_is_found() -> None:
    class Raw(Good):
        async def export(self, batch: Batch, /) -> None:
            if self.server.fails:
                raise KeyError("status")
            await super().export(batch)

    said = one(Raw, "test_a_failure_that_passes_is_raised_as_one")
    assert "builtins.KeyError" in said
    assert "TransientError" in said


def test_a_failure_for_good_where_it_passes_is_found() -> None:
    class Hasty(Good):
        async def export(self, batch: Batch, /) -> None:
            if self.server.fails:
                raise PermanentError("503")
            await super().export(batch)

    said = one(Hasty, "test_a_failure_that_passes_is_raised_as_one")
    assert "the batch would be lost" in said


def test_a_failure_that_is_swallowed_is_found() -> None:
    class Silent(Good):
        async def export(self, batch: Batch, /) -> None:
            if not self.server.fails:
                await super().export(batch)

    assert set(failed(Silent)) == {
        "test_a_failure_that_passes_is_raised_as_one",
        "test_what_failed_arrives_when_it_is_tried_again",
        "test_it_leaves_nothing_behind_after_a_failure",
        "test_a_run_does_not_notice_failures",
    }


def test_what_does_not_arrive_is_found() -> None:
    class Forgetful(Good):
        async def export(self, batch: Batch, /) -> None:
            await super().export(Batch(batch.resource, batch.spans, (), batch.logs))

    said = one(Forgetful, "test_what_was_sent_arrives")
    assert said.count("metrics (") == 3
    assert "spans (" not in said


def test_a_second_try_that_sends_nothing_is_found() -> None:
    class Once(Good):
        seen: Any = None

        async def export(self, batch: Batch, /) -> None:
            if batch.spans and batch.spans[0].span_id == self.seen:
                return
            self.seen = batch.spans[0].span_id if batch.spans else None
            await super().export(batch)

    assert "did not arrive" in one(Once, "test_what_failed_arrives_when_it_is_tried_again")


def test_values_that_it_cannot_take_are_found() -> None:
    class Narrow(Good):
        async def export(self, batch: Batch, /) -> None:
            for span in batch.spans:
                "\n".join(span.attributes.values())
            await super().export(batch)

    said = one(Narrow, "test_it_takes_attributes_of_every_type")
    assert said.startswith("attributes of every type: export raised TypeError: ")


def test_a_changed_batch_is_found() -> None:
    class Tidy(Good):
        async def export(self, batch: Batch, /) -> None:
            for span in batch.spans:
                span.attributes.clear()

    assert "change a copy" in one(Tidy, "test_it_does_not_change_the_batch")


def test_a_batch_that_is_kept_is_found() -> None:
    class Collecting(Good):
        batches: ClassVar[list[Batch]] = []

        async def export(self, batch: Batch, /) -> None:
            self.batches.append(batch)

    assert "still referred to" in one(Collecting, "test_it_lets_go_of_the_batch")


def test_options_that_cannot_be_configured_are_found() -> None:
    class Loose(Good):
        def __init__(self, server: Any = None, url=None) -> None:  # type: ignore[no-untyped-def]
            super().__init__(server=server)

    class Untyped(Good):
        def __init__(self, *, server: Any = None, url=None) -> None:  # type: ignore[no-untyped-def]
            super().__init__(server=server)

    class Live(Good):
        def __init__(self, *, server: Any = None, **more: Any) -> None:
            super().__init__(server=server)

    name = "test_its_options_can_be_read_from_a_table"
    assert "put `*` before the options" in one(Loose, name)
    assert "'url' needs an annotation" in one(Untyped, name)
    assert "'more' must be keyword-only" in one(Live, name)


@pytest.mark.parametrize(
    ("attribute", "value", "says"),
    [
        ("signals", ("traces",), "there are spans, metrics, logs"),
        ("signals", (), "is empty"),
        ("interval", 0, "above 0"),
        ("timeout", float("inf"), "above 0"),
        ("batch_size", 0, "from 1"),
        ("delta", "yes", "True or False"),
    ],
)
def test_what_it_says_wrong_of_itself_is_found(attribute: str, value: Any, says: str) -> None:
    kind = type("Wrong", (Good,), {attribute: value})
    assert says in one(kind, "test_what_it_says_of_itself_can_be_used")


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # but the suite's own are to be seen
def test_a_socket_a_thread_and_a_task_that_are_left_are_found() -> None:
    kept: list[Callable[[], object]] = []

    class Socket(Good):
        async def export(self, batch: Batch, /) -> None:
            kept.append(socket.socket().close)

    class Dropped(Good):
        async def export(self, batch: Batch, /) -> None:
            socket.socket()

    class Thread(Good):
        async def export(self, batch: Batch, /) -> None:
            stop = threading.Event()
            threading.Thread(target=stop.wait, name="forgotten").start()
            kept.append(stop.set)

    class Task(Good):
        async def export(self, batch: Batch, /) -> None:
            self.task = asyncio.create_task(asyncio.sleep(60.0))

    name = "test_it_leaves_nothing_behind"
    try:
        assert "left: socket:[" in one(Socket, name)
        assert "left: unclosed <socket.socket" in one(Dropped, name)
        assert "left: the thread 'forgotten'" in one(Thread, name)
        assert "tasks left: <Task pending" in one(Task, name)
    finally:
        for end in kept:
            end()


def test_a_life_that_cannot_begin_or_end_twice_is_found() -> None:
    class Fragile(Good):
        opened = False

        async def open(self, host: object) -> None:
            if self.opened:
                raise TransientError("it is open")
            self.opened = True

        async def aclose(self) -> None:
            if not self.opened:
                raise TransientError("it is not open")

    for name in (
        "test_it_may_be_opened_and_closed_twice",
        "test_it_may_be_closed_without_having_been_opened",
        "test_it_may_be_used_again_in_another_thread",
    ):
        with pytest.raises(TransientError):
            getattr(type("Of", (Suite,), {"backend": Fragile})(), name)()


def test_what_blocks_and_what_catches_its_cancellation_is_found() -> None:
    released = threading.Event()

    class Blocking(Good):
        async def export(self, batch: Batch, /) -> None:
            if self.server.hangs:
                released.wait()
            await super().export(batch)

    class Deaf(Good):
        async def export(self, batch: Batch, /) -> None:
            while self.server.hangs and not released.is_set():
                try:
                    await asyncio.sleep(0.05)
                except asyncio.CancelledError:
                    pass

    try:
        for backend in (Blocking, Deaf):
            assert "it blocks, or it caught" in one(backend, "test_a_delivery_that_hangs_ends_in_time")
    finally:
        released.set()


def test_tests_for_which_a_class_has_no_method_are_left_out() -> None:
    class Least(TelemetryBackendTests):
        def make(self) -> Any:
            return Good(server=Server())

    class More(Least):
        def delivered(self) -> str:
            return ""

    def tests(kind: type) -> set[str]:
        return {name for name in dir(kind) if name.startswith("test_") and getattr(kind, name) is not None}

    every = set(TESTS)
    assert every - tests(More) - {"test_what_failed_arrives_when_it_is_tried_again"} == {
        "test_a_failure_that_passes_is_raised_as_one",
        "test_it_leaves_nothing_behind_after_a_failure",
        "test_a_run_does_not_notice_failures",
        "test_a_delivery_that_hangs_ends_in_time",
        "test_a_server_that_hangs_does_not_hold_up_the_end",
    }
    assert tests(More) - tests(Least) == {"test_what_was_sent_arrives", "test_what_a_run_did_arrives"}
    assert tests(TelemetryBackendTests) == every


def test_the_suite_needs_neither_pytest_nor_a_runtime_until_it_is_used() -> None:
    import subprocess

    code = (
        "import sys; import agentrt.testing; print('agentrt.runtime' in sys.modules);"
        "from agentrt.testing import TelemetryBackendTests; print('pytest' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
