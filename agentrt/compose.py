"""The composer: turns a list of stages and a terminal into one coroutine function, once.

A user's stage is a closure around the rest. Neighbouring built-in stages (`agentrt.call.Inline`) are put into one
coroutine together with the terminal, so that a call pays for a coroutine only where a stage may wait on the way to
success. For timeout, circuit breaker, retry and fallback the generated function reads

    async def composed(call):
        enter3(call)                                      # fallback: the first target's share
        try:
            try:
                token1 = enter1(call)                     # circuit breaker: admitted
                try:
                    token0 = enter0(call)                 # timeout: armed
                    try:
                        result = await call_next(call)
                    except BaseException as error:
                        note(call, error)                 # the failure's label, given once
                        ...                               # timeout: a cancellation of ours becomes AttemptTimeout
                    done0(token0, call)
                except BaseException as error: ...
                done1(token1, call)
            except Exception as error:
                result = await recover2(call, error)      # retry
            else:
                done2(None, call)
        except Exception as error:
            result = await recover3(call, error)          # fallback
        return result

The source depends only on which functions the stages have, so it is compiled once per such shape.
"""

from __future__ import annotations

import functools
import linecache
from collections.abc import Callable, Sequence
from typing import Any

from agentrt.call import Call, Inline, Middleware, Next, label_at_terminal
from agentrt.errors import TRANSIENT, Label, ResultRejected
from agentrt.stream import Stream

__all__ = ["Classify", "compose"]

Classify = Callable[[BaseException], Label | None]
Note = Callable[[Call[Any], BaseException], None]


def compose(
    stages: Sequence[Middleware],
    terminal: Next[Any],
    *,
    stream: bool,
    classify: Classify | None = None,
    retry_on: Any = None,
    retry_result: Callable[[Any], bool] | None = None,
) -> Next[Any]:
    """Put `stages` (from the call outward) around `terminal`.

    `classify` is the terminal's own judgement of its errors (None: no opinion). `retry_on` and `retry_result` are
    Retry's, which are applied here, where errors are labelled, so that every stage sees the same verdict.
    """
    inner = _rejecting(terminal, retry_result) if retry_result is not None and not stream else terminal
    note = _labeller(classify, retry_on)
    if stream:
        inner = _opening(inner, note)
    group = _Group(inner, note, stream=stream)
    for index, stage in enumerate(stages):
        inline = getattr(stage, "inline", None)
        if inline is None:
            group = _Group(_link(stage, group.build()), None, stream=stream)
        else:
            group.add(inline(_later(group.snapshot()), stages[:index]))
    return group.build()


class _Group:
    """Neighbouring inlined stages around `call_next`, from the inside outwards."""

    def __init__(self, call_next: Next[Any], note: Note | None, *, stream: bool) -> None:
        self._call_next = call_next
        self._note = note
        self._stream = stream
        self._forms: list[Inline] = []

    def add(self, form: Inline) -> None:
        self._forms.append(form)

    def snapshot(self) -> _Group:
        """The stages so far, for a stage that wraps them."""
        copy = _Group(self._call_next, self._note, stream=self._stream)
        copy._forms = list(self._forms)
        return copy

    def build(self) -> Next[Any]:
        """One coroutine function for all of them."""
        if not self._forms and self._note is None:
            return self._call_next
        names: dict[str, Any] = {"call_next": self._call_next}
        if self._note is not None:
            names["note"] = self._note
        shape = []
        for index, form in enumerate(self._forms):
            parts = {
                "enter": form.enter,
                "done": form.committed if self._stream else form.done,
                "failed": form.failed,
                "recover": form.recover,
            }
            present = {part: function for part, function in parts.items() if function is not None}
            shape.append(tuple(present))
            names |= {f"{part}{index}": function for part, function in present.items()}
        make = _factory(tuple(shape), noted=self._note is not None, stream=self._stream)
        composed: Next[Any] = make(**names)
        return composed


def _later(group: _Group) -> Next[Any]:
    """What `group` composes to, built at its first use: recovering stages need it, and only after a failure."""
    built: list[Next[Any]] = []

    def call_next(call: Call[Any]) -> Any:
        if not built:
            built.append(group.build())
        return built[0](call)

    return call_next


@functools.cache
def _factory(shape: tuple[tuple[str, ...], ...], *, noted: bool, stream: bool) -> Callable[..., Next[Any]]:
    """Compile the function that closes a composed coroutine over the stages' functions."""
    body = ["result = await call_next(call)"]
    if noted and not any("failed" in parts for parts in shape[:1]):
        body = ["try:", *_indent(body), "except Exception as error:", "    note(call, error)", "    raise"]
    for index, parts in enumerate(shape):
        body = _around(body, index, parts, note=noted and index == 0, stream=stream)
    parameters = ["call_next"] + (["note"] if noted else [])
    parameters += [f"{part}{index}" for index, parts in enumerate(shape) for part in parts]
    lines = [
        f"def make({', '.join(parameters)}):",
        "    async def composed(call):",
        *_indent(_indent([*body, "return result"])),
        "    return composed",
    ]
    source = "\n".join(lines) + "\n"
    file = f"<agentrt pipeline {'-'.join('+'.join(parts) for parts in shape) or 'bare'}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    namespace: dict[str, Any] = {}
    exec(compile(source, file, "exec"), namespace)
    make: Callable[..., Next[Any]] = namespace["make"]
    return make


def _around(body: list[str], index: int, parts: Sequence[str], *, note: bool, stream: bool) -> list[str]:
    """The lines of one stage around `body`."""
    token = f"token{index}" if "enter" in parts else "None"
    done = f"done{index}({token}, call{', result' if stream else ''})" if "done" in parts else None
    lines = [f"token{index} = enter{index}(call)"] if "enter" in parts else []
    if "failed" in parts:
        lines += ["try:", *_indent(body), "except BaseException as error:"]
        lines += ["    note(call, error)"] if note else []
        lines += [
            f"    raised = failed{index}({token}, call, error)",
            "    if raised is error:",
            "        raise",
            "    raise raised from raised.__cause__",
        ]
        return lines + ([done] if done else [])
    if "recover" in parts:
        lines += ["try:", *_indent(body), "except Exception as error:"]
        lines += [f"    result = await recover{index}(call, error)"]
        return lines + (["else:", f"    {done}"] if done else [])
    return lines + body + ([done] if done else [])


def _indent(lines: Sequence[str]) -> list[str]:
    return ["    " + line for line in lines]


def _link(stage: Middleware, inner: Next[Any]) -> Next[Any]:
    def linked(call: Call[Any]) -> Any:
        return stage(call, inner)

    return linked


# --- around the terminal -------------------------------------------------------------------------------


def _labeller(classify: Classify | None, retry_on: Any) -> Note:
    def note(call: Call[Any], error: BaseException) -> None:
        if not isinstance(error, Exception):
            return  # a cancellation is nobody's failure
        known: Label | None = None
        if retry_on is not None and _matches(retry_on, error):
            known = TRANSIENT
        elif classify is not None:
            known = classify(error)
        call.failed(error, label_at_terminal(call, error, known))

    return note


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
