"""The context of a run: what an agent is given to work with. `agentrt.current()` gives the same object."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import msgspec

from agentrt import events, options
from agentrt.call import ENCLOSING, RUN, Call, Entry
from agentrt.errors import ConfigError
from agentrt.limits import Counters
from agentrt.memories import Memories
from agentrt.models.arguments import as_messages, as_targets
from agentrt.models.collect import pieces
from agentrt.models.protocol import (
    Finished,
    Message,
    ModelRequest,
    ModelResponse,
    Part,
    Settings,
    StreamItem,
    ToolSpec,
    Usage,
)
from agentrt.record_events import as_event, describe
from agentrt.session import Session

if TYPE_CHECKING:
    from agentrt.auditing import Auditing
    from agentrt.pipeline import Pipeline
    from agentrt.secrets.manager import SecretsManager
    from agentrt.security.rate_limits import RateLimiter
    from agentrt.services import Services
    from agentrt.stream import Stream
    from agentrt.telemetry.facade import RuntimeTelemetry
    from agentrt.telemetry.no_span import ActiveSpan
    from agentrt.tools import Tool

__all__ = ["Context", "current"]

T = TypeVar("T")
logger = logging.getLogger("agentrt.run")

MAX_CALLS = 10_000
"""A run keeps the records of its first so many calls."""


class Context:
    """One run, as its agent sees it.

    `id`: of the run. `session`: the conversation. `deadline`: loop time in seconds, infinite if there is none.
    `calls`: the calls made so far, each with its record. `usage`: tokens of this run and its child runs.
    `degraded`: some answer of this run or of a child did not come from its first target. `live`: its span, if it is
    traced.
    """

    def __init__(
        self,
        services: Services,
        agent: Any,
        *,
        id: str,
        agent_name: str,
        session: Session,
        counters: Counters,
        deadline: float,
        started: float,
        streaming: bool = False,
        sink: events.Sink | None = None,
        parent: Context | None = None,
    ) -> None:
        self.id = id
        self.agent_name = agent_name
        self.session = session
        self.deadline = deadline
        self.streaming = streaming
        self.parent = parent
        self.counters = counters
        self.calls: list[Call[Any]] = []
        self.degraded = False
        self.usage = Usage()
        self.live: Any = None
        self.loop = asyncio.get_running_loop()
        self.started = started
        self._services = services
        self._agent = agent
        self._sink = sink
        self._sequence = 0
        self._tool_events = 0
        self._memory: Memories | None = None

    # --- what agents use -------------------------------------------------------------------------------

    @property
    def idempotency_key(self) -> str | None:
        """Inside a tool or `ctx.call`: a key that is the same for every attempt of this call, else None."""
        enclosing = ENCLOSING.get()
        return None if enclosing is None or enclosing.call is None else enclosing.call.key

    @property
    def memory(self) -> Memories:
        """The memory of this runtime; each use is a call of kind "memory" through the pipeline."""
        if self._memory is None:
            self._memory = Memories(self._services.memory, self.call_memory)
        return self._memory

    @overload
    async def model(
        self,
        messages: str | Sequence[Message | dict[str, Any]],
        *,
        model: str | Sequence[str] | None = None,
        tools: Sequence[Any] = (),
        output: None = None,
        settings: Settings | None = None,
    ) -> ModelResponse: ...

    @overload
    async def model(
        self,
        messages: str | Sequence[Message | dict[str, Any]],
        *,
        model: str | Sequence[str] | None = None,
        tools: Sequence[Any] = (),
        output: type[T],
        settings: Settings | None = None,
    ) -> T: ...

    async def model(
        self,
        messages: str | Sequence[Message | dict[str, Any]],
        *,
        model: str | Sequence[str] | None = None,
        tools: Sequence[Any] = (),
        output: Any = None,
        settings: Settings | None = None,
    ) -> Any:
        """Ask a model (default: the agent's own) and return its `ModelResponse`, or an `output` if that type is given.

        `tools` are offered to the model, not run: the response's `tool_calls` say what it wants, so they do not go
        with `output`.
        """
        if output is not None and tools:
            raise ConfigError(
                "ctx.model takes output= or tools=, not both: a model that asks for a tool gives no output; "
                "the loop of `Agent` has both"
            )
        request, targets = self.request(messages, model=model, tools=tools, output=output, settings=settings)
        response = await self.send_model(request, targets)
        return response if request.parse is None else request.parse(response)

    @asynccontextmanager
    async def stream_model(
        self,
        messages: str | Sequence[Message | dict[str, Any]],
        *,
        model: str | Sequence[str] | None = None,
        tools: Sequence[Any] = (),
        settings: Settings | None = None,
    ) -> AsyncGenerator[Stream[StreamItem], None]:
        """Stream an answer: `async with ctx.stream_model("...") as stream: async for item in stream: ...`."""
        request, targets = self.request(messages, model=model, tools=tools, settings=settings)
        async with self.open_model(request, targets) as stream:
            yield stream

    async def tool(self, tool: Any, /, **arguments: Any) -> Any:
        """Call a tool through the pipeline and return its result."""
        found = self._services.tool(self._agent, tool)
        found.check(arguments)
        return await self.call_tool(found, arguments)

    async def call(
        self,
        kind: str,
        target: str,
        function: Callable[[], Awaitable[T]],
        *,
        idempotent: bool = False,
    ) -> T:
        """Call `await function()` through the pipeline of `kind` ("call" or a name of yours) to `target`."""
        options.text("kind", kind)
        options.text("target", target)
        if not callable(function):
            raise ConfigError(f"ctx.call takes an async function of no arguments to call, not {function!r}")
        pipeline = self._services.pipeline(self._agent, kind)
        call = pipeline.new_call(
            function, target=target, operation=target, key=self._key(target), idempotent=idempotent
        )
        result: T = await self._send(pipeline, call)
        return result

    async def secret(self, name: str) -> str:
        """A secret by reference (`secret://...`) or plain name, from the configured provider."""
        return (await self.secrets.get(name)).reveal()

    @property
    def secrets(self) -> SecretsManager:
        """The runtime's: `await ctx.secrets.get("secret://vault/app#key")` is a `Secret`, which no output shows."""
        return self._services.secrets

    @property
    def rate_limits(self) -> RateLimiter:
        """`if not await ctx.rate_limits.check_rate_limit("user:42", 100, 60.0): ...`, counted for the whole runtime."""
        return self._services.rate_limits

    async def run(self, agent: Any, message: str | list[Part]) -> Any:
        """Run another agent as a child: it inherits deadline, limits and cancellation. Returns its RunResult."""
        return await self._services.run_child(self, agent, message)

    def log(self, level: str, message: str, /, **context: Any) -> None:
        """Log a line of this run; `level` as in the standard library ("info")."""
        extra = {"run": self.id, "agent": self.agent_name}
        self._services.telemetry.write_log(level, message, context, extra=extra)

    def record_metric(
        self,
        name: str,
        value: float,
        tags: Mapping[str, Any] | None = None,
        *,
        kind: Literal["counter", "gauge", "histogram"] = "histogram",
        unit: str = "",
    ) -> None:
        """Record a value of a metric of yours: how it is distributed ("histogram"), added up ("counter"), or as it
        stands ("gauge"). `tags`: few different values, never ids. Nothing that is wrong with it fails the run."""
        self._services.telemetry.record_metric(name, value, tags, kind=kind, unit=unit)

    def start_span(self, name: str, attributes: Mapping[str, Any] | None = None) -> ActiveSpan:
        """A span of your own inside this run's: `with ctx.start_span("parse", {"size": 3}) as span: ...`."""
        return self._services.telemetry.start_run_span(self, name, attributes)

    # --- what the loop and the tools use ---------------------------------------------------------------

    async def converse(self, agent: Any, message: str | list[Part]) -> Any:
        """Run the loop model -> tools -> model for `agent`."""
        return await self._services.converse(self, agent, message)

    def tools_of(self, agent: Any) -> dict[str, Tool[..., Any]]:
        """The tools of an agent by name."""
        return self._services.tools_of(agent)

    def request(
        self,
        messages: str | Sequence[Message | dict[str, Any]],
        *,
        model: str | Sequence[str] | None = None,
        tools: Sequence[Any] = (),
        output: Any = None,
        settings: Settings | None = None,
    ) -> tuple[ModelRequest, tuple[str, ...]]:
        """The request and its targets."""
        targets = self._services.default_targets(self._agent) if model is None else as_targets(model)
        schema, name, parse = (None, "output", None)
        if output is not None:
            schema, name, parse = self._services.output_parser(output)
        request = ModelRequest(
            model="",
            messages=as_messages(messages),
            tools=self._specs(tools),
            output_schema=schema,
            output_name=name,
            settings=Settings() if settings is None else settings,
            parse=parse,
        )
        return request, targets

    async def send_model(self, request: ModelRequest, targets: tuple[str, ...]) -> ModelResponse:
        self.counters.model_call()
        pipeline = self._services.pipeline(self._agent, "model", targets=targets)
        call = pipeline.new_call(request)
        number = self._model_started(call)
        try:
            response: ModelResponse | str = await self._send(pipeline, call)
        finally:
            self._use(call.record.usage)  # what a rejected answer took was used as well
        if isinstance(response, str):  # of a default, or a stage
            response = ModelResponse(text=response)
        if not isinstance(response, ModelResponse):
            raise TypeError(
                f"a stage around {call.target} returned {response!r} instead of the ModelResponse; "
                "did it forget `return await call_next(call)`?"
            )
        self._model_finished(call, number, response.finish)
        return response

    @asynccontextmanager
    async def open_model(
        self, request: ModelRequest, targets: tuple[str, ...]
    ) -> AsyncGenerator[Stream[StreamItem], None]:
        self.counters.model_call()
        pipeline = self._services.pipeline(self._agent, "model", targets=targets)
        call = pipeline.new_call(request, True)
        number = self._model_started(call)
        stream: Stream[StreamItem] = await self._send(pipeline, call)
        finish: list[str] = []

        def see(item: StreamItem) -> None:
            if isinstance(item, Finished):
                finish.append(item.response.finish)

        stream.observe(see)
        try:
            async with stream:
                stream.unfold(pieces)
                yield stream
        finally:
            self._use(call.record.usage)
        if finish:
            self._model_finished(call, number, finish[0])

    async def call_tool(self, tool: Tool[..., Any], arguments: dict[str, Any]) -> Any:
        """Call a tool that the agent's own code wants, with its events. Direct calls of async tools come here too."""
        if self._sink is None:
            return await self.send_tool(tool, arguments)
        number, started = self.number_tool_event(), self.elapsed
        text = msgspec.json.encode(arguments, enc_hook=str).decode()
        self.emit(events.ToolStarted(run=self.id, at=started, call=number, tool=tool.name, arguments=text))
        failure: str | None = "cancelled"
        try:
            result = await self.send_tool(tool, arguments)
            failure = None
            return result
        except Exception as error:
            failure = describe(error)
            raise
        finally:
            self.emit(
                events.ToolFinished(
                    run=self.id,
                    at=self.elapsed,
                    call=number,
                    tool=tool.name,
                    outcome="ok" if failure is None else "error",
                    seconds=self.elapsed - started,
                    error=failure,
                )
            )

    async def send_tool(self, tool: Tool[..., Any], arguments: dict[str, Any]) -> Any:
        """Call a tool through its pipeline."""
        self.counters.tool_call()
        pipeline = self._services.pipeline(self._agent, "tool", tool=tool)
        call = pipeline.new_call((tool, arguments, self), key=self._key(tool.name))
        return await self._send(pipeline, call)

    async def call_memory(
        self, operation: str, function: Callable[[], Awaitable[T]], *, idempotent: bool
    ) -> T:
        pipeline = self._services.pipeline(self._agent, "memory")
        call = pipeline.new_call(function, operation=operation, idempotent=idempotent)
        result: T = await self._send(pipeline, call)
        return result

    @property
    def telemetry(self) -> RuntimeTelemetry:
        """Where this run reports to."""
        return self._services.telemetry

    @property
    def audit(self) -> Auditing | None:
        """The runtime's audit log, if there is one."""
        return self._services.audit

    @property
    def is_watched(self) -> bool:
        """Whether anybody receives this run's events."""
        return self._sink is not None

    def emit(self, event: events.Event) -> None:
        if self._sink is not None:
            self._sink(event)

    @property
    def elapsed(self) -> float:
        """Seconds since the stream's first run started."""
        return self.loop.time() - self.started

    def observe(self, call: Call[Any], entry: Entry) -> None:
        """Turn what a record learns into events."""
        if self._sink is not None:
            event = as_event(call, entry, run=self.id, at=self.elapsed)
            if event is not None:
                self._sink(event)

    def collect(self, call: Call[Any]) -> None:
        """Keep a call that has ended, with its record."""
        record = call.record
        if record.noted is not None and record.error is None and record.degraded:
            self.degraded = True
        if len(self.calls) < MAX_CALLS:
            # Without what was asked: each request of a conversation holds the whole of it.
            self.calls.append(call.replace(request=None))

    def warn(self, message: str) -> None:
        """Tell the user something: as an event, and in the log if nobody watches."""
        if self._sink is None:
            logger.warning("%s", message, extra={"run": self.id, "agent": self.agent_name})
        else:
            self.emit(events.Warned(run=self.id, at=self.elapsed, message=message))

    # --- inside ----------------------------------------------------------------------------------------

    async def _send(self, pipeline: Pipeline, call: Call[Any]) -> Any:
        if RUN.get() is self:
            return await pipeline.send(call)
        # Used outside its own run's code (kept by the user, or by a thread): the call still belongs to this run.
        call.record.share = deadline = min(call.deadline, self.deadline)
        call = call.replace(run=self, deadline=deadline)
        token, span = RUN.set(self), self.telemetry.enter_run(self)
        try:
            return await pipeline.send(call)
        finally:
            self.telemetry.leave_run(span)
            RUN.reset(token)

    def _specs(self, tools: Sequence[Any]) -> list[ToolSpec]:
        return [
            tool if isinstance(tool, ToolSpec) else self._services.tool(self._agent, tool).spec()
            for tool in tools
        ]

    def _key(self, name: str) -> str:
        self._sequence += 1
        return f"{self.id}-{self._sequence}-{name}"

    def number_tool_event(self) -> int:
        """The next number for a tool_started event: one for each call that the model asks for, good or bad."""
        self._tool_events += 1
        return self._tool_events

    def _model_started(self, call: Call[Any]) -> int:
        number = self.counters.model_calls
        if self._sink is not None:
            self.emit(events.ModelStarted(run=self.id, at=self.elapsed, call=number, target=call.target))
        return number

    def _use(self, usage: Usage | None) -> None:
        if usage is None:
            return
        self.counters.usage = self.counters.usage + usage
        ctx: Context | None = self
        while ctx is not None:
            ctx.usage = ctx.usage + usage
            ctx = ctx.parent

    def _model_finished(self, call: Call[Any], number: int, finish: str) -> None:
        if self._sink is None:
            return
        record = call.record
        usage: Usage = record.usage or Usage()  # a stage that answers by itself uses none
        self.emit(
            events.ModelFinished(
                run=self.id,
                at=self.elapsed,
                call=number,
                target=record.target,
                finish=finish,
                seconds=record.elapsed,
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
                estimated=usage.estimated,
                attempts=max(1, len(record.attempts)),
            )
        )


def current() -> Context:
    """The context of the run that this code is inside of."""
    run = RUN.get()
    if run is None:
        raise ConfigError("there is no run here: agentrt.current() works inside an agent or a tool that runs")
    assert isinstance(run, Context)
    return run
