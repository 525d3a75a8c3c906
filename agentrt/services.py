"""What a run needs of its runtime: the contract between `Context` and `Runtime`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from agentrt.auditing import Auditing
    from agentrt.context import Context
    from agentrt.models.protocol import ModelResponse, Part
    from agentrt.pipeline import Pipeline
    from agentrt.secrets.manager import SecretsManager
    from agentrt.security.rate_limits import RateLimiter
    from agentrt.telemetry.facade import RuntimeTelemetry
    from agentrt.tools import Tool

__all__ = ["Services"]


class Services(Protocol):
    """What the runtime does for a run."""

    def pipeline(
        self, agent: Any, kind: str, *, tool: Tool[..., Any] | None = None, targets: tuple[str, ...] = ()
    ) -> Pipeline: ...

    async def converse(self, ctx: Context, agent: Any, message: str | list[Part]) -> Any: ...

    async def run_child(self, parent: Context, agent: Any, message: str | list[Part]) -> Any: ...

    async def memory(self) -> Any: ...

    @property
    def secrets(self) -> SecretsManager: ...

    rate_limits: RateLimiter

    def output_parser(self, output: Any) -> tuple[dict[str, Any], str, Callable[[ModelResponse], Any]]: ...

    def default_targets(self, agent: Any) -> tuple[str, ...]: ...

    def tool(self, agent: Any, tool: Any) -> Tool[..., Any]: ...

    def tools_of(self, agent: Any) -> dict[str, Tool[..., Any]]: ...

    telemetry: RuntimeTelemetry

    audit: Auditing | None
