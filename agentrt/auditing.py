"""A runtime's audit log: what of runs, calls, secrets, files and the configuration goes into it.

Only with a path in [audit] is anything of the log loaded.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from agentrt.call import RUN, Call
from agentrt.errors import Refused
from agentrt.plugins import Host, close_plugin, open_plugin

if TYPE_CHECKING:
    from agentrt.config import Config
    from agentrt.context import Context
    from agentrt.middleware.audit import Audit, Begun
    from agentrt.security.audit.log import AuditLog
    from agentrt.security.audit.operation import Operation
    from agentrt.security.audit.record import Who
    from agentrt.telemetry.redaction import Redactor

__all__ = ["Auditing"]

T = TypeVar("T")

GROUP = "agentrt.audit"


class Auditing:
    """Records what a runtime does in `log`. `sinks`: the plugins that it feeds, by name."""

    def __init__(self, log: AuditLog, config: Config, *, host: Host, sinks: list[tuple[str, Any]]) -> None:
        from agentrt.middleware.audit import Audit

        self.log = log
        self.stage: Audit = Audit(begin=self.begin, path=str(log.path), strict=log.policy.strict)
        """Stands outermost in every pipeline."""
        self._host = host
        self._sinks = sinks
        self._opened: list[Any] = []
        self._strict = log.policy.strict
        self._needs_keys = True
        settings = config.settings()
        log.note(
            "config.loaded",
            "configuration",
            arguments={item.name: item.value for item in settings},
            details={"settings": " ".join(item.name for item in settings)},
        )

    @classmethod
    def from_config(cls, config: Config, *, host: Host, redactor: Redactor) -> Auditing | None:
        """The log of [audit]; None if no path is set there. Raises ConfigError, PluginError for a sink."""
        section = config.audit
        if section.path is None:
            return None
        from agentrt.security.audit.log import AuditLog

        sinks = [(table.name, table.make()) for table in config.audit_sinks()]
        log = AuditLog(
            section.path,
            strict=section.strict,
            on_failure=section.on_failure or None,
            key=section.key,
            signing_key=section.signing_key,
            checkpoint_every=section.checkpoint_every,
            checkpoint_seconds=section.checkpoint_seconds,
            rotation=section.max_bytes,
            arguments=section.arguments,
            sinks=sinks,
            redactor=redactor,
        )
        return cls(log, config, host=host, sinks=sinks)

    # --- opening and closing -------------------------------------------------------------------------------

    def for_command(self, *, needs_keys: bool = True) -> None:
        """Record in the log of the commands, which stands beside that of a service, which may be running.

        `needs_keys`: a command that finds out what is wrong with keys records without them, if need be. A later one
        that has them signs that, too.
        """
        self.log.for_command()
        self.stage.path = str(self.log.path)
        self._needs_keys = needs_keys

    async def open(self) -> None:
        """Open the log and what it feeds; what was recorded before is written now. Once; later calls do nothing."""
        if self.log.is_open:
            return
        try:
            await self.log.open(self._host.secret, prepare=self._open_sinks)
        except BaseException as error:
            if not self.log.is_open:  # it is, if only the waiting for it was cancelled
                await self._close_sinks()
            if self._needs_keys or not isinstance(error, Exception) or isinstance(error, Refused):
                raise
            await self.log.open(bare=True)

    async def _open_sinks(self) -> None:
        for name, sink in self._sinks:
            await open_plugin(GROUP, name, sink, self._host)
            self._opened.append(sink)

    async def _close_sinks(self) -> None:
        opened, self._opened = self._opened, []
        for sink in reversed(opened):
            await close_plugin(sink)

    async def aclose(self, seconds: float) -> None:
        """Write everything, and close the log and what it feeds, within `seconds`."""
        try:
            await self.log.aclose(0.9 * seconds)
        finally:
            await self._close_sinks()

    # --- calls and runs ------------------------------------------------------------------------------------

    async def begin(self, call: Call[Any]) -> Begun:
        """Record that a call begins. Raises AuditUnavailable if it must not."""
        from agentrt.security.audit.sinks import FEEDING

        if FEEDING.get():
            return _UNRECORDED
        action = f"{call.kind}.call"
        if call.kind == "secret":
            action = "secret.read"
        elif call.kind == "memory":
            action = f"memory.{call.operation.removesuffix('_memory')}"
        resource = _secret(call) if call.kind == "secret" else call.target
        return await self._intent(action, resource, call.run, arguments=_asked(call))

    async def run(self, ctx: Context, message: Any, go: Callable[[], Awaitable[T]], /) -> T:
        """Await `go()`, a whole run of `message`, between the records of its intent and its outcome."""
        operation = await self._intent("run", f"agent:{ctx.agent_name}", ctx, arguments=message)
        try:
            result = await go()
        except BaseException as error:
            operation.ended(error, trace=_trace(ctx))  # which it has only now
            raise
        operation.ended(trace=_trace(ctx))
        return result

    async def _intent(self, action: str, resource: str, run: Any, *, arguments: Any) -> Operation:
        if not self.log.is_open:
            await self.open()
        who = _who(run)
        if self._strict:
            return await self.log.durable_intent(action, resource, who, arguments=arguments)
        return self.log.intent(action, resource, who, arguments=arguments)

    # --- what happens at once --------------------------------------------------------------------------------

    def secret_revealed(self, name: str, /) -> None:
        """Somebody's code looks at the value of a secret. Raises AuditUnavailable if it must not."""
        self._at_once("secret.reveal", name)

    def file_accessed(self, operation: str, root: str, path: str, allowed: bool, reason: str, /) -> None:
        """A file is asked for. `FileAccess` tells this by itself to the run that it is used in. Raises
        AuditUnavailable if what is allowed must not be done."""
        details = {name: said for name, said in (("root", root), ("reason", reason)) if said}
        self._at_once(f"file.{operation}", path, denied=not allowed, details=details)

    def _at_once(
        self, action: str, resource: str, *, denied: bool = False, details: Mapping[str, str] | None = None
    ) -> None:
        from agentrt.security.audit.sinks import FEEDING

        if FEEDING.get():
            return
        who, details = _who(RUN.get()), details or None
        if denied:
            self.log.note(action, resource, who, denied=True, details=details)
        else:
            self.log.announce(action, resource, who, details=details)


class _Unrecorded:
    """A call that a sink of the log makes."""

    def ended(
        self,
        error: BaseException | None = None,
        *,
        resource: str | None = None,
        duration: float | None = None,
        unknown: bool = False,
        details: Mapping[str, str] | None = None,
    ) -> None: ...


_UNRECORDED = _Unrecorded()


def _who(run: Any) -> Who:
    """What a run says about itself; whatever else is a run to the pipeline need not say all of it."""
    from agentrt.security.audit.record import Who

    if run is None:
        return Who()
    session, parent = getattr(run, "session", None), getattr(run, "parent", None)
    return Who(
        actor=getattr(run, "agent_name", None),
        session=None if session is None else str(session.id),
        run=run.id,
        parent=None if parent is None else parent.id,
        trace=_trace(run),
    )


def _trace(run: Any) -> str | None:
    return None if run.live is None else f"{run.live.ids[0]:032x}"


def _asked(call: Call[Any]) -> Any:
    """What a call was asked for, as plain as its hash needs it: the same for the same question."""
    from agentrt.security.audit.record import NOTHING

    request = call.request
    if call.kind == "model":
        return {
            "messages": request.messages,
            "tools": [tool.name for tool in request.tools],
            "output": request.output_schema,
            "settings": request.settings,
        }
    if call.kind == "tool":
        return request[1]
    if isinstance(request, partial) and call.kind != "secret":
        return {"arguments": request.args, "named": request.keywords}
    return NOTHING  # a function without arguments: what it is about is in its closure


def _secret(call: Call[Any]) -> str:
    """The reference of the secret that is read, or at least its provider."""
    if isinstance(call.request, partial) and call.request.args:
        return str(call.request.args[0])
    return f"secret://{call.target.removeprefix('secret:')}/"
