"""An agent that is just a class: no base class, its own control flow, calls through the context.

agentrt run examples/plain_agent.py:Researcher "the moon"
"""

import asyncio

from agentrt import Context


async def search(query: str) -> list[str]:
    """Stands for a search engine."""
    return [f"a page about {query}", f"another page about {query}"]


class Researcher:
    async def run(self, message: str, ctx: Context) -> str:
        # Any async function can go through the pipeline: timeout, breaker, retry, record.
        pages = await ctx.call("search", "engine", lambda: search(message), idempotent=True)
        summaries = await asyncio.gather(
            *(ctx.model(f"Summary of {page}", model="scripted:echo") for page in pages)
        )
        ctx.session.state["topics"] = [*ctx.session.state.get("topics", []), message]
        return "\n".join(summary.text for summary in summaries)
