"""Memory that survives a restart: SQLite's full-text search in a file, no service.

agentrt run examples/memory.py:Notebook "remember: the cat is called Ada"
agentrt run examples/memory.py:Notebook "what is the cat called?"
"""

from agentrt import Context


class Notebook:
    async def run(self, message: str, ctx: Context) -> str:
        if message.startswith("remember: "):
            await ctx.memory.add(message.removeprefix("remember: "))
            return "noted"
        found = await ctx.memory.search(message, limit=3)
        return "\n".join(item.text for item in found) or "I know nothing about that."
