"""Messages to one agent, one after the other, with everything that a command owes the user around each."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from agentrt.cli.model_targets import check_can_answer
from agentrt.cli.output import Lines, Printer
from agentrt.cli.project import Project, make_runtime
from agentrt.cli.report import AGENT_ERROR, OK, USAGE, report
from agentrt.cli.signals import DRAIN_SECONDS, Signals
from agentrt.cli.terminal import Terminal
from agentrt.errors import AgentrtError, ConfigError, PermanentError
from agentrt.events import ModelStarted
from agentrt.hosting import Hosted
from agentrt.limits import Limits
from agentrt.run_stream import RunStream
from agentrt.runtime import Runtime
from agentrt.session import Session
from agentrt.state import StateConflict

if TYPE_CHECKING:
    from agentrt.cli.run_trace import RunTrace

__all__ = ["Outcome", "Turns", "run_in"]

T = TypeVar("T")


class Outcome(Struct, frozen=True):
    """How a turn ended: the exit code that it asks for, and the first signal that came meanwhile, if any."""

    code: int
    signal: int | None = None


class Turns:
    """The agent of a project, in a runtime of its own that the first turn opens.

    `timeout`: seconds that each turn may take (None: what agent and configuration say). `session`: the id of the stored
    conversation that the turns belong to; each is stored when it has succeeded. `full`: whole tracebacks. `trace`:
    shows the spans of each turn. What the agent raises is reported here, and raised nowhere.
    """

    def __init__(
        self,
        project: Project,
        terminal: Terminal,
        *,
        timeout: float | None = None,
        session: str | None = None,
        full: bool = False,
        trace: RunTrace | None = None,
    ) -> None:
        self.name = project.target.text.rpartition(":")[2]
        self._project = project
        self._terminal = terminal
        self._timeout = timeout
        self._session_id = session
        self._stored: Session | None = None
        self._full = full
        self._trace = trace
        self._runtime: Runtime | None = None
        self._hosted: Hosted | None = None
        self._stream: RunStream | None = None
        self._asked: set[str] = set()
        self._is_warned = False

    async def take(
        self, message: str, printer: Printer, *, session: Session | None = None, is_last: bool = False
    ) -> Outcome:
        """One turn; after the last one the runtime is closed. SIGINT and SIGTERM are ours until it returns.

        Raises OutputClosed if nobody reads the answer any more.
        """
        return await self._with_signals(
            lambda signals: self._take(message, printer, session, signals, is_last)
        )

    async def open(self) -> Outcome:
        """Make the agent ready before anything is asked: what would fail every turn is reported now."""
        return await self._with_signals(self._open)

    async def close(self) -> int:
        """Close agent and runtime, and return the exit code that this asks for."""
        runtime, self._runtime = self._runtime, None
        if runtime is None:
            return OK
        try:
            await runtime.aclose()
        except Exception as error:
            return report(error, self._terminal, full=self._full, doing=f"closing {self.name}")
        except SystemExit as error:
            return self._exited(error)
        return self._traced()

    # --- inside ----------------------------------------------------------------------------------------

    async def _with_signals(self, work: Callable[[Signals], Coroutine[Any, Any, int]]) -> Outcome:
        task: asyncio.Task[int] | None = None

        def cancel() -> None:
            if self._stream is not None:
                self._stream.cancel()  # its last event is still to come
            elif task is not None:
                task.cancel()

        with Signals(cancel=cancel, note=self._terminal.note) as signals:
            task = asyncio.ensure_future(work(signals))
            await asyncio.wait([task])
        if signals.received == signal.SIGINT:
            self._terminal.end_interrupted_line()
        # A signal before or after the run itself cancels the task as such.
        code = AGENT_ERROR if task.cancelled() else task.result()
        return Outcome(code if signals.exit_code is None else signals.exit_code, signals.received)

    async def _open(self, signals: Signals) -> int:
        try:
            runtime, hosted = await self._opened()
            await self._load(runtime)
            await check_can_answer(runtime, hosted)
        except Exception as error:
            return report(error, self._terminal, full=self._full, doing=self.name)
        except SystemExit as error:
            return self._exited(error)
        return OK

    async def _take(
        self, message: str, printer: Printer, session: Session | None, signals: Signals, is_last: bool
    ) -> int:
        closed = OK
        try:
            code = await self._reported(message, printer, session, signals)
        finally:
            if is_last:
                closed = await self.close()
        if not is_last and self._trace is not None and self._runtime is not None:
            await self._runtime.telemetry.flush()
            self._trace.draw()
        return code or closed

    def _traced(self) -> int:
        """Show what the runtime has delivered when it was closed; the exit code that this asks for."""
        if self._trace is None:
            return OK
        try:
            self._trace.end()
        except ConfigError as error:
            return report(error, self._terminal)
        return OK

    async def _reported(
        self, message: str, printer: Printer, session: Session | None, signals: Signals
    ) -> int:
        try:
            await self._answer(message, printer, session)
        except asyncio.CancelledError as error:
            printer.failed(error)
            self._say_who_cancelled(signals, printer)
            return AGENT_ERROR
        except Exception as error:
            printer.failed(error)
            code = report(error, self._terminal, full=self._full, doing=self.name)
            if isinstance(error, PermanentError) and await self._is_for_want_of_a_model():
                return USAGE
            return code
        except SystemExit as error:
            printer.failed(error)
            return self._exited(error)
        return OK

    async def _is_for_want_of_a_model(self) -> bool:
        """Whether no model of the agent could be asked: that is for whoever configures it, as in a conversation."""
        if self._runtime is None or self._hosted is None:
            return False
        try:
            await check_can_answer(self._runtime, self._hosted)
        except ConfigError:
            return True
        except AgentrtError:
            return False  # it would have been asked
        return False

    def _exited(self, error: SystemExit) -> int:
        code = "" if error.code is None else repr(error.code)
        self._terminal.error(f"{self.name} called sys.exit({code})")
        return AGENT_ERROR

    def _say_who_cancelled(self, signals: Signals, printer: Printer) -> None:
        if signals.received is None:
            self._terminal.error(f"{self.name} cancelled its own run")
        elif signals.received == signal.SIGTERM:
            why = f"SIGTERM came, and the run did not end within {DRAIN_SECONDS:g} s"
            if signals.second is not None:
                came_first = "a second SIGTERM" if signals.second == signal.SIGTERM else "SIGINT"
                why = f"{came_first} came while the run had time to finish"
            self._terminal.error(f"cancelled: {why}")
        elif isinstance(printer, Lines):
            self._terminal.error("cancelled by SIGINT")  # a program reads the events, and somebody its log

    async def _answer(self, message: str, printer: Printer, session: Session | None) -> None:
        runtime, hosted = await self._opened()
        limits = self._limits(runtime, hosted)
        stored = await self._load(runtime)
        session = stored or session
        stream = runtime.stream(hosted, message, session=session, limits=limits, deltas=printer.deltas)
        self._stream = stream
        try:
            async with stream:
                async for event in stream:
                    if isinstance(event, ModelStarted):
                        self._asked.add(event.target)
                    printer.event(event)
        finally:
            self._stream = None
        printer.result(stream.result)
        if stored is not None:
            await self._store(runtime, stored)
        self._warn_of_models_without_effect()

    async def _load(self, runtime: Runtime) -> Session | None:
        """The stored conversation; None if the turns belong to none."""
        if self._session_id is not None and self._stored is None:
            self._stored = await runtime.conversations.load(self._session_id)
        return self._stored

    async def _store(self, runtime: Runtime, session: Session) -> None:
        try:
            await runtime.conversations.save(session)
        except StateConflict:
            self._stored = None  # the next turn goes on from what the other has stored
            raise

    def _warn_of_models_without_effect(self) -> None:
        models = self._project.models
        if not models or self._is_warned or not self._asked.isdisjoint(models):
            return
        self._is_warned = True
        why = (
            f"chose its models itself: {', '.join(sorted(self._asked))}" if self._asked else "asked no model"
        )
        self._terminal.warning(f"--model had no effect: {self.name} {why}")

    async def _opened(self) -> tuple[Runtime, Hosted]:
        if self._runtime is None:
            backends = () if self._trace is None else self._trace.backends
            runtime = make_runtime(self._project, backends=backends)
            self._terminal.redactor = runtime.telemetry.redactor
            await runtime.__aenter__()
            self._runtime = runtime
        if self._hosted is None:
            self._hosted = await self._runtime.host(self._project.target.value, factory=self._project.factory)
            self.name = self._hosted.name
        return self._runtime, self._hosted

    def _limits(self, runtime: Runtime, hosted: Hosted) -> Limits | None:
        """The limits of a turn, where `--timeout` changes them."""
        if self._timeout is None:
            return None
        return replace(runtime.limits_of(hosted.subject), seconds=self._timeout)


def run_in(runner: asyncio.Runner, turn: Coroutine[Any, Any, T]) -> T:
    """Run a turn in the loop of `runner`.

    `sys.exit` in a task stops the loop at once, as asyncio has it. The turn goes on here: it finds the exception where
    it waits for that task, as it finds any other, and the agent is closed.
    """
    main: asyncio.Task[Any] | None = None

    async def begin() -> T:
        nonlocal main
        main = asyncio.current_task()
        return await turn

    before = signal.getsignal(signal.SIGINT)
    try:
        return runner.run(begin())
    except SystemExit:
        if main is None or main.done():
            raise
        loop = runner.get_loop()
        while not main.done():
            try:
                loop.run_until_complete(main)
            except SystemExit:
                if main.done():
                    raise
        result: T = main.result()
        return result
    finally:
        signal.signal(signal.SIGINT, before)  # the runner did not come to it
