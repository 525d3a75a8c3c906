"""The pipeline without a runtime: timeout, circuit breaker, retry and fallback around any async function.

python examples/pipeline_alone.py
"""

import asyncio

from agentrt import Pipeline
from agentrt.middleware import Fallback, Retry

outage = iter([ConnectionError("no route to bank"), ConnectionError("no route to bank")])


async def charge(amount: int) -> str:
    """The bank, which is down for the first two attempts."""
    for error in outage:
        raise error
    return f"charged {amount}"


async def charge_later(amount: int) -> str:
    """The fallback target: it is called with the same arguments."""
    return f"will charge {amount} tomorrow"


async def main() -> None:
    payments = (
        Pipeline.default(target="bank", idempotent=True, deadline=150)
        .replace(Retry(max_attempts=3, initial_delay=0.01))
        .replace(Fallback(charge_later))
    )
    print(await payments.call(charge, 42))
    for stage in payments.describe():
        print(f"  {stage.name}")


if __name__ == "__main__":
    asyncio.run(main())
