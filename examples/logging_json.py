"""Logs: of the run, of any library, and of loguru, as lines of JSON with the run that they belong to.

agentrt run --set log.format=json --set log.level=info examples/logging_json.py:Shop "3 apples"
agentrt run --set 'log.outputs=["stderr", "./shop.jsonl"]' examples/logging_json.py:Shop "3 apples"
"""

import logging

from loguru import logger

import agentrt


class Shop:
    async def run(self, message: str, ctx: agentrt.Context) -> str:
        number, _, what = message.partition(" ")
        ctx.log("info", "order received", number=int(number), what=what)
        logging.getLogger("stock").info("%s %s left", 12, what)
        logger.bind(warehouse="north").info("parcel packed")
        return f"{number} {what} are on their way"
