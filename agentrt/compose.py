"""The composer: turns a list of stages and a terminal into one coroutine function, once.

A user's stage is a closure around the rest. Neighbouring built-in stages (`agentrt.call.Inline`) are put into one
coroutine together with the terminal, so that a call pays for a coroutine only where a stage may wait on the way to
success. For timeout, circuit breaker, retry and fallback the generated function reads

    async def composed(call):
        stage3.enter(call)                                # fallback: the first target's share
        try:
            try:
                token1 = stage1.enter(call)               # circuit breaker: admitted
                try:
                    token0 = stage0.enter(call)           # timeout: armed
                    try:
                        result = await call_next(call)
                    except BaseException as error:
                        note(call, error)                 # the failure's label, given once
                        ...                               # timeout: a cancellation of ours becomes AttemptTimeout
                    stage0.done(token0, call)
                except BaseException as error: ...
                stage1.done(token1, call)
            except Exception as error:
                result = await stage2.recover(call, error)   # retry
            else:
                stage2.done(None, call)
        except Exception as error:
            result = await stage3.recover(call, error)       # fallback
        return result

where a stage's `Quick` lines stand in the place of `enter` and `done`: calling them would double the cost of the whole
pipeline. The source depends only on which parts the stages have, so it is compiled once per such shape; tracebacks
show it, and `Pipeline.source()` prints it.
"""

from __future__ import annotations

import functools
import linecache
import re
from collections.abc import Callable, Sequence
from types import CodeType, FunctionType
from typing import Any

from msgspec import Struct

from agentrt.call import Call, Inline, Middleware, Next, label_at_terminal
from agentrt.errors import TRANSIENT, Label, ResultRejected
from agentrt.stream import Stream

__all__ = ["Classify", "Prologue", "compose"]

Classify = Callable[[BaseException], Label | None]
Note = Callable[[Call[Any], BaseException], None]


def compose(
    stages: Sequence[Middleware],
    terminal: Next[Any] | str,
    *,
    stream: bool,
    classify: Classify | None = None,
    retry_on: Any = None,
    retry_result: Callable[[Any], bool] | None = None,
    prologue: Prologue | None = None,
) -> Next[Any]:
    """Put `stages` (from the call outward) around `terminal`. With a `prologue` the result makes its own call.

    `classify` is the terminal's own judgement of its errors (None: no opinion). `retry_on` and `retry_result` are
    Retry's, which are applied here, where errors are labelled, so that every stage sees the same verdict. A
    terminal that is one expression of `call` may be given as its source.
    """
    inner = terminal
    calls_functions = isinstance(terminal, str)
    if retry_result is not None and not stream:
        inner = _rejecting(_as_function(terminal), retry_result)
    note = _labeller(classify, retry_on, calls_functions=calls_functions)
    if stream:
        inner = _opening(_as_function(inner), note)
    group = _Group(inner, note, stream=stream)
    late = True
    for index, stage in enumerate(stages):
        inline = getattr(stage, "inline", None)
        if inline is None:
            # Within one attempt a users' stage may fail it as well: after the terminal, or instead of it.
            late = late and getattr(stage, "name", None) not in ("retry", "fallback")
            link = _link_stream if stream else _link
            group = _Group(link(stage, group.build()), _noting_late(note) if late else None, stream=stream)
        else:
            group.add(inline(_later(group.snapshot()), stages[:index]))
            late = late and group.is_one_attempt
    return group.build(prologue)


class _Group:
    """Neighbouring inlined stages around `call_next`, from the inside outwards."""

    def __init__(self, call_next: Next[Any] | str, note: Note | None, *, stream: bool) -> None:
        self._call_next = call_next
        self._note = note
        self._stream = stream
        self._forms: list[Inline] = []

    def add(self, form: Inline) -> None:
        self._forms.append(form)

    @property
    def is_one_attempt(self) -> bool:
        """Whether no stage so far makes further attempts."""
        return not any(form.recover for form in self._forms)

    def snapshot(self) -> _Group:
        """The stages so far, for a stage that wraps them."""
        copy = _Group(self._call_next, self._note, stream=self._stream)
        copy._forms = list(self._forms)
        return copy

    def build(self, prologue: Prologue | None = None) -> Next[Any]:
        """One coroutine function for all of them."""
        if not self._forms and self._note is None and prologue is None:
            return _as_function(self._call_next)
        names: dict[str, Any] = {}
        terminal = "call_next(call)"
        if isinstance(self._call_next, str):
            terminal = self._call_next
        else:
            names["call_next"] = self._call_next
        if self._note is not None:
            names["note"] = self._note
        if prologue is not None:
            names |= prologue.names
        parts = tuple(self._parts(index, form, names) for index, form in enumerate(self._forms))
        shape = _Shape(
            parts,
            terminal=terminal,
            noted=self._note is not None,
            stream=self._stream,
            prologue=None if prologue is None else (prologue.parameters, prologue.lines),
        )
        return _function(shape, names)

    def _parts(self, index: int, form: Inline, names: dict[str, Any]) -> _Parts:
        """What the source of one stage depends on; it and its values go into `names`."""
        names[f"stage{index}"] = form
        lines = {}
        for part, quick in (("enter", form.quick_enter), ("done", form.quick_done)):
            if quick is not None and not self._stream:
                names |= {f"{name}{index}": value for name, value in quick.names.items()}
                lines[part] = quick.lines
        return _Parts(
            enter=form.enter is not None,
            done=(form.committed if self._stream else form.done) is not None,
            failed=form.failed is not None,
            recover=form.recover is not None,
            quick_enter=lines.get("enter"),
            quick_done=lines.get("done"),
        )


class Prologue(Struct, frozen=True):
    """How a composed function makes its own `call`: its `parameters`, and source `lines` that set `call`, `record`
    and `now`, using `names`."""

    parameters: str
    lines: str
    names: dict[str, Any]


class _Parts(Struct, frozen=True):
    """What the source of one stage depends on."""

    enter: bool
    done: bool
    failed: bool
    recover: bool
    quick_enter: str | None
    quick_done: str | None


class _Shape(Struct, frozen=True):
    """What the source of a composed function depends on."""

    parts: tuple[_Parts, ...]
    terminal: str
    noted: bool
    stream: bool
    prologue: tuple[str, str] | None


def _later(group: _Group) -> Next[Any]:
    """What `group` composes to, built at its first use: recovering stages need it, and only after a failure."""
    built: list[Next[Any]] = []

    def call_next(call: Call[Any]) -> Any:
        if not built:
            built.append(group.build())
        return built[0](call)

    return call_next


# --- the generated source ------------------------------------------------------------------------------


@functools.cache
def _code(shape: _Shape) -> CodeType:
    """Compile the composed coroutine; the stages and what they use are its globals."""
    source = _source(shape)
    # A name of its own, so that tracebacks and profilers show the generated lines.
    file = f"<agentrt pipeline {len(linecache.cache)}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    namespace: dict[str, Any] = {}
    exec(compile(source, file, "exec"), namespace)
    code: CodeType = namespace["composed"].__code__
    return code


def _function(shape: _Shape, names: dict[str, Any]) -> Next[Any]:
    """The composed coroutine for one pipeline.

    Globals, not closure cells: a frame carries each of its cells, and 10,000 calls in flight are as many frames. The
    copy of the code gives each pipeline its own inline caches.
    """
    return FunctionType(_code(shape).replace(), names)


def _source(shape: _Shape) -> str:
    body = [f"result = await {shape.terminal}"]
    quick = "\n".join(f"{parts.quick_enter}\n{parts.quick_done}" for parts in shape.parts)
    reads_end = ["end = time()"] if re.search(r"\bend\b", quick) else []
    body += reads_end
    if shape.noted and not any(parts.failed for parts in shape.parts[:1]):
        body = ["try:", *_indent(body), "except Exception as error:", "    note(call, error)", "    raise"]
    for index, parts in enumerate(shape.parts):
        body = _around(
            body, index, parts, noted=shape.noted and index == 0, stream=shape.stream, reads_end=reads_end
        )
    if shape.prologue is not None:
        body = [*shape.prologue[1].strip("\n").splitlines(), *body]
    elif any(parts.quick_enter or parts.quick_done for parts in shape.parts):
        body = ["record = call.record", "time = record.time", "now = time()", *body]
    parameters = "call" if shape.prologue is None else shape.prologue[0]
    lines = [f"async def composed({parameters}):", *_indent([*body, "return result"])]
    return "\n".join(lines) + "\n"


def _around(
    body: list[str], index: int, parts: _Parts, *, noted: bool, stream: bool, reads_end: list[str]
) -> list[str]:
    """The lines of one stage around `body`."""
    token = f"token{index}" if parts.enter else "None"
    enter = [f"token{index} = stage{index}.enter(call)"] if parts.enter else []
    if parts.quick_enter is not None:
        enter = _numbered(parts.quick_enter, index)
    done = [f"stage{index}.done({token}, call)"] if parts.done else []
    if stream and parts.done:
        done = [f"stage{index}.committed({token}, call, result)"]
    if parts.quick_done is not None:
        done = _numbered(parts.quick_done, index)
    if parts.failed:
        failed = [
            *(["note(call, error)"] if noted else []),
            f"raised = stage{index}.failed({token}, call, error)",
            "if raised is error:",
            "    raise",
            "raise raised from raised.__cause__",
        ]
        return [*enter, "try:", *_indent(body), "except BaseException as error:", *_indent(failed), *done]
    if parts.recover:
        recover = [f"result = await stage{index}.recover(call, error)", *reads_end]
        lines = [*enter, "try:", *_indent(body), "except Exception as error:", *_indent(recover)]
        return [*lines, "else:", *_indent(done)] if done else lines
    return [*enter, *body, *done]


def _numbered(lines: str, index: int) -> list[str]:
    """A stage's lines, with its own names made unlike those of the other stages."""
    return re.sub(r"\$(\w+)", rf"\g<1>{index}", lines).strip("\n").splitlines()


def _indent(lines: Sequence[str]) -> list[str]:
    return ["    " + line for line in lines]


def _as_function(terminal: Next[Any] | str) -> Next[Any]:
    if not isinstance(terminal, str):
        return terminal
    shape = _Shape((), terminal=terminal, noted=False, stream=False, prologue=None)
    return _function(shape, {})


def _link(stage: Middleware, inner: Next[Any]) -> Next[Any]:
    def linked(call: Call[Any]) -> Any:
        return stage(call, inner)

    return linked


def _link_stream(stage: Middleware, inner: Next[Any]) -> Next[Any]:
    async def linked(call: Call[Any]) -> Stream[Any]:
        result = await stage(call, inner)
        if result is None:
            raise TypeError(
                f"a stage around {call.target} returned None instead of the stream; "
                "did it forget `return await call_next(call)`?"
            )
        # A stage that answers by itself, from a cache for example, need not care whether a value or a stream is wanted.
        return result if isinstance(result, Stream) else Stream.of(result)

    return linked


# --- around the terminal -------------------------------------------------------------------------------


def _labeller(classify: Classify | None, retry_on: Any, *, calls_functions: bool) -> Note:
    def note(call: Call[Any], error: BaseException) -> None:
        if not isinstance(error, Exception):
            return  # a cancellation is nobody's failure
        if calls_functions and type(error) is TypeError:
            _explain(error)
        known: Label | None = None
        if retry_on is not None and _matches(retry_on, error):
            known = TRANSIENT
        elif classify is not None:
            known = classify(error)
        call.failed(error, label_at_terminal(call, error, known))

    return note


def _noting_late(note: Note) -> Note:
    def note_late(call: Call[Any], error: BaseException) -> None:
        # A failure of the terminal has ended the attempt in the record already.
        if call.record.attempt_started is not None:
            note(call, error)

    return note_late


def _explain(error: TypeError) -> None:
    """Python's words for the usual mistakes do not say whose they are."""
    text = str(error)
    if "async_generator can't be used" in text:
        error.add_note(
            "an async generator is streamed: `async with pipeline.stream(function, *args) as stream`"
        )
    elif "can't be used in 'await' expression" in text:
        error.add_note("the pipeline awaits what the function returns: give it an async function")
    elif "'coroutine' object is not callable" in text:
        error.add_note("give the pipeline the function and its arguments, call(function, 3), not function(3)")


def _rejecting(terminal: Next[Any], reject: Callable[[Any], bool]) -> Next[Any]:
    async def judged(call: Call[Any]) -> Any:
        result = await terminal(call)
        if reject(result):
            raise ResultRejected(f"{call.target}: retry_result rejected the result", value=result)
        return result

    return judged


def _opening(terminal: Next[Any], note: Note) -> Next[Any]:
    async def opened(call: Call[Any]) -> Stream[Any]:
        stream: Stream[Any] = await terminal(call)
        stream.label_errors(functools.partial(note, call))
        call.record.first_item = call.record.time()
        return stream

    return opened


def _matches(test: Any, error: BaseException) -> bool:
    if isinstance(test, type | tuple):
        return isinstance(error, test)
    return bool(test(error))
