"""The smallest agent: a class with `async def run(self, message)`. Any object with that method will do.

agentrt run examples/echo.py:Echo "Hello"
"""


class Echo:
    async def run(self, message: str) -> str:
        return message
