"""Boundaries, rate limits and the audit log as a type checker sees them: checked by mypy and pyright, never run."""

from pathlib import Path
from typing import assert_type

from agentrt import Context, Runtime
from agentrt.middleware import RateLimit
from agentrt.security.audit import AuditLog, Operation, acting
from agentrt.security.audit.verify import Report, verify
from agentrt.security.rate_limits import Decision, RateLimiter
from agentrt.security.sanitize import sanitize_input
from agentrt.security.shell import argv, shell_quote
from agentrt.security.sql import sql_guard, sql_identifier

assert_type(sanitize_input("O'Brien", "sql"), str)
assert_type(sanitize_input(b"a/b", "path", max_length=100), str)
assert_type(argv("git", "log", values=["a", "b"]), list[str])
assert_type(shell_quote("a && b"), str)
assert_type(sql_identifier(("shop", "orders"), "mysql"), str)
assert_type(sql_guard("SELECT 1", dialect="sqlite", tables={"orders"}, max_rows=100), str)

sanitize_input("text", "html")  # type: ignore[arg-type]
sql_guard("SELECT 1")  # type: ignore[call-arg]

RateLimit(limit=10, window=60, key=lambda call: call.target, scope="target")
RateLimit(limit=10, window=60, scope="global")  # type: ignore[arg-type]


async def limits(message: str, ctx: Context) -> str:
    assert_type(ctx.rate_limits, RateLimiter)
    assert_type(await ctx.rate_limits.check_rate_limit("user:42", 100, 60.0), Decision)
    assert_type(await ctx.rate_limits.acquire("user:42", 100, 60.0, max_wait=5.0, cost=2), Decision)
    assert_type((await ctx.secrets.get("secret://vault/app#key")).reveal(), str)
    return message


async def audited(runtime: Runtime) -> None:
    async with AuditLog(Path("audit.jsonl"), strict=True) as log:
        assert_type(log.intent("invoice.send", "customer:42", arguments={"a": 1}), Operation)
    with acting(on_behalf_of="user:42"):
        await runtime.run(limits, "hi")
    assert_type(verify("audit.jsonl", anchor=Path("anchor.jsonl")), Report)
