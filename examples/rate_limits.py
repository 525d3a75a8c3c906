"""Rate limits: of a tool in each run, by hand, and for the requests that a server gets.

python examples/rate_limits.py
"""

import asyncio
import math

from agentrt import RateLimited, Runtime, tool
from agentrt.middleware import RateLimit
from agentrt.security.rate_limits import RateLimiter


@tool
async def search(query: str) -> str:
    """Search."""
    return f"pages about {query}"


async def curious(message, ctx):
    """An agent that searches more often than it may."""
    for word in message.split():
        try:
            yield await ctx.tool(search, query=word) + "; "
        except RateLimited as refusal:
            yield f"then it was told to wait {refusal.retry_after:.0f} s"


class LimitedApp:
    """ASGI middleware: at most `limit` requests of an address in any `window` seconds; the others get a 429.

    Behind a proxy the address is the proxy's: take the key from what yours adds, and only if it is yours.
    """

    def __init__(self, app, limiter: RateLimiter, *, limit: int, window: float):
        self.app = app
        self.limiter = limiter
        self.limit = limit
        self.window = window

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            address = scope["client"][0] if scope.get("client") else "unknown"
            decision = await self.limiter.check_rate_limit(f"requests of {address}", self.limit, self.window)
            if not decision:
                wait = str(math.ceil(decision.retry_after)).encode()
                await send(
                    {"type": "http.response.start", "status": 429, "headers": [(b"retry-after", wait)]}
                )
                await send({"type": "http.response.body", "body": b"too many requests\n"})
                return
        await self.app(scope, receive, send)


async def hello(scope, receive, send):
    """The application behind it."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello\n"})


async def request(app) -> str:
    """What a server does for a request, and what the client sees of the answer."""
    sent = []

    async def send(message):
        sent.append(message)

    await app({"type": "http", "client": ("192.0.2.7", 4711)}, None, send)
    return f"{sent[0]['status']} {sent[1]['body'].decode().strip()}"


async def main() -> None:
    async with Runtime() as runtime:
        runtime.use(RateLimit(limit=2, window=60), tool="search")  # two in any minute of a run
        print((await runtime.run(curious, "moon sun stars")).output)

        limiter = (
            runtime.rate_limits
        )  # counts for the stages too; on Redis or Valkey if [rate_limits] says so
        if await limiter.check_rate_limit("newsletter", 1, 3600):
            print("newsletter: sent")
        if not (decision := await limiter.check_rate_limit("newsletter", 1, 3600)):
            print(f"newsletter: not again for {decision.retry_after / 60:.0f} minutes")
        print("waited", round((await limiter.acquire("ticks", 1, 0.1, max_wait=1)).waited, 1))
        print("waited", round((await limiter.acquire("ticks", 1, 0.1, max_wait=1)).waited, 1))

        app = LimitedApp(hello, limiter, limit=2, window=60)
        print([await request(app) for _ in range(3)])


if __name__ == "__main__":
    asyncio.run(main())
