"""`scripted:NAME`: a model that says what it was told to say, for tests.

    script = Scripted.script("greeter", [Step("Hello."), Step(error=TransientError("down"))])
    ...                                         # an agent with model = "scripted:greeter"
    assert script.requests[0].messages[-1].content == "hi"

`scripted:echo` repeats the user's last message word by word, and `scripted:path/to/steps.json` plays a list of steps
from a file.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import msgspec
from msgspec import Struct

from agentrt.errors import ConfigError, PermanentError, ThrottledError, TransientError
from agentrt.models.collect import estimate, new_call_id
from agentrt.models.protocol import (
    Finished,
    FinishReason,
    Host,
    ModelRequest,
    ModelResponse,
    ReasoningDelta,
    StreamItem,
    TextDelta,
    TextPart,
    ToolCall,
    ToolCallDelta,
    Usage,
)

__all__ = ["Script", "ScriptError", "Scripted", "Step", "StepCall"]

KEPT_REQUESTS = 1000


class StepCall(Struct, frozen=True):
    """A tool call of a step. `id`: made up if empty."""

    name: str
    arguments: dict[str, Any] = {}
    id: str = ""


class ScriptError(Struct, frozen=True, forbid_unknown_fields=True):
    """An error as a file writes it."""

    type: Literal["transient", "throttled", "permanent"] = "transient"
    message: str = "scripted"
    retry_after: float | None = None
    fault: Literal["request", "target"] = "request"
    context_too_long: bool = False

    def make(self) -> Exception:
        match self.type:
            case "transient":
                return TransientError(self.message, retry_after=self.retry_after)
            case "throttled":
                return ThrottledError(self.message, retry_after=self.retry_after)
            case "permanent":
                return PermanentError(self.message, fault=self.fault, context_too_long=self.context_too_long)


class Step(Struct, frozen=True, kw_only=True):
    """What the model does for one request.

    It waits `delay_seconds`, then gives `reasoning`, `text` and `tool_calls`. A stream has the text in `chunks`
    (default: word by word), waiting `chunk_delay_seconds` before each. `error` is raised after the pieces of a stream,
    and instead of the answer otherwise. `usage`: estimated if None.
    """

    text: str = ""
    tool_calls: list[StepCall] = []
    error: Any = None
    delay_seconds: float = 0.0
    chunks: list[str] | None = None
    chunk_delay_seconds: float = 0.0
    reasoning: str = ""
    finish: FinishReason | None = None
    usage: Usage | None = None


StepSource = Step | str | Callable[[ModelRequest], "Step | str"]
"""A step, its text, or a function of the request that returns either."""


class Script:
    """Steps for the requests to come, in order. `requests` are the last 1,000, `played` counts them all.

    `repeat`: begin again after the last step; otherwise a further request is a PermanentError.
    """

    def __init__(self, name: str, steps: Sequence[StepSource], *, repeat: bool = False) -> None:
        self.name = name
        self.steps = tuple(steps)
        self.repeat = repeat
        self.played = 0
        self.requests: deque[ModelRequest] = deque(maxlen=KEPT_REQUESTS)

    def next(self, request: ModelRequest) -> Step:
        """The step for this request."""
        self.requests.append(request)
        number = self.played
        self.played += 1
        if self.repeat and self.steps:
            number %= len(self.steps)
        if number >= len(self.steps):
            raise PermanentError(
                f"scripted:{self.name} has {len(self.steps)} steps, and this is request number {number + 1}: "
                "add a step, or repeat=True",
                fault="target",
            )
        step = self.steps[number]
        if callable(step):
            step = step(request)
        return Step(text=step) if isinstance(step, str) else step


class Scripted:
    """The client of scripts. Scripts made in code belong to the process; those of files begin anew in each client."""

    name: ClassVar[str] = "scripted"
    _scripts: ClassVar[dict[str, Script]] = {}

    def __init__(self) -> None:
        self._own: dict[str, Script] = {}

    @classmethod
    def script(cls, name: str, steps: Sequence[StepSource], *, repeat: bool = False) -> Script:
        """Register the steps of `scripted:NAME`, in place of any earlier ones, and return the script."""
        script = cls._scripts[name] = Script(name, steps, repeat=repeat)
        return script

    async def check(self, model: str, host: Host) -> None:
        """Raise ConfigError if there is no such script, or its file cannot be read."""
        del host
        self._find(model)

    def identity(self, model: str) -> str:
        return f"scripted:{model}"

    def target(self, model: str) -> str:
        return f"scripted:{model}"

    async def complete(self, request: ModelRequest, /) -> ModelResponse:
        """The next step's answer, or its error."""
        step = self._find(request.model).next(request)
        await asyncio.sleep(step.delay_seconds)
        if step.error is not None:
            raise _made(step.error)
        return _response(request, step)

    async def stream(self, request: ModelRequest, /) -> AsyncGenerator[StreamItem, None]:
        """The next step piece by piece, `Finished` last; its error after the pieces."""
        step = self._find(request.model).next(request)
        await asyncio.sleep(step.delay_seconds)
        response = _response(request, step)
        if step.reasoning:
            yield ReasoningDelta(step.reasoning)
        for chunk in step.chunks if step.chunks is not None else words(step.text):
            await asyncio.sleep(step.chunk_delay_seconds)
            yield TextDelta(chunk)
        for index, call in enumerate(response.tool_calls):
            yield ToolCallDelta(index, call.id, call.name, call.arguments)
        if step.error is not None:
            raise _made(step.error)
        yield Finished(response)

    def _find(self, name: str) -> Script:
        script = self._scripts.get(name) or self._own.get(name)
        if script is None:
            if name == "echo":
                script = Script(name, [_echo], repeat=True)
            elif name.endswith(".json"):
                script = Script(name, _load(Path(name)))
            else:
                known = ", ".join(sorted({"echo", *self._scripts}))
                raise ConfigError(
                    f"there is no script named {name!r}; there are: {known}. Register one with "
                    f"Scripted.script({name!r}, [...]), or name a file that ends in .json"
                )
            self._own[name] = script
        return script


def words(text: str) -> list[str]:
    """The text in pieces of one word with the blanks around it."""
    return re.findall(r"\s*\S+\s*|\s+", text)


def _echo(request: ModelRequest) -> Step:
    for message in reversed(request.messages):
        if message.role == "user":
            if isinstance(message.content, str):
                return Step(text=message.content)
            return Step(text=" ".join(part.text for part in message.content if isinstance(part, TextPart)))
    return Step()


def _made(error: Any) -> BaseException:
    made = error.make() if isinstance(error, ScriptError) else error() if isinstance(error, type) else error
    assert isinstance(made, BaseException)
    return made


def _response(request: ModelRequest, step: Step) -> ModelResponse:
    calls = [
        ToolCall(call.id or new_call_id(), call.name, msgspec.json.encode(call.arguments).decode())
        for call in step.tool_calls
    ]
    response = ModelResponse(
        text=step.text or "".join(step.chunks or ()),
        tool_calls=calls,
        finish=step.finish or ("tool_calls" if calls else "stop"),
        reasoning=step.reasoning,
        model=request.model,
        id="scripted",
    )
    usage = step.usage if step.usage is not None else estimate(request, response)
    return msgspec.structs.replace(response, usage=usage)


class _FileStep(Struct, kw_only=True, forbid_unknown_fields=True):
    """A step as a file writes it: the same fields, an error as data."""

    text: str = ""
    tool_calls: list[StepCall] = []
    error: ScriptError | None = None
    delay_seconds: float = 0.0
    chunks: list[str] | None = None
    chunk_delay_seconds: float = 0.0
    reasoning: str = ""
    finish: FinishReason | None = None
    usage: Usage | None = None


def _load(path: Path) -> list[StepSource]:
    try:
        steps = msgspec.json.decode(path.read_bytes(), type=list[_FileStep | str])
    except OSError as error:
        raise ConfigError(f"the script {path} cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the script {path} must be a JSON list of steps: {error}") from error
    return [step if isinstance(step, str) else Step(**msgspec.structs.asdict(step)) for step in steps]
