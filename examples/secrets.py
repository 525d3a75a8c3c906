"""Secrets by reference: code and configuration name them, a provider has them.

    GREETING_TOKEN=abc agentrt run examples/secrets.py:Guarded "hello"

`secret://env/NAME` asks the environment, `secret://file/NAME` a directory such as /run/secrets; others are plugins. The
value is fetched through the pipeline, like any other call, kept for a while and followed when it is rotated. A
`Secret` does not show it in a repr, a log or a traceback.
"""

from agentrt import Context
from agentrt.secrets import Secret


class Guarded:
    async def run(self, message: str, ctx: Context) -> str:
        token = Secret(await ctx.secret("secret://env/GREETING_TOKEN"))
        return f"{message}, with {token} of {len(token.reveal())} characters"
