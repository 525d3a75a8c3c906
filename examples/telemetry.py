"""Spans, metrics and log lines of an agent's own, and a backend that gets them.

python examples/telemetry.py
"""

import asyncio

import agentrt
from agentrt.telemetry import Batch


class Librarian:
    async def run(self, message: str, ctx: agentrt.Context) -> str:
        with ctx.start_span("look up", {"title": message}) as span:
            answer = await ctx.model(f"Who wrote {message}?", model="scripted:echo")
            span.set_attribute("characters", len(answer.text))
        ctx.record_metric("books.requested", 1, {"shelf": "fiction"}, kind="counter", unit="{book}")
        ctx.log("info", "looked up", title=message, password="hunter22")
        return answer.text


class Printer:
    """Any object with `export` is a backend. It has a thread of its own and may take its time."""

    def export(self, batch: Batch) -> None:
        for span in sorted(batch.spans, key=lambda span: span.start_ns):
            parent = {each.span_id: each.name for each in batch.spans}.get(span.parent_id or "")
            print("span", span.name, "in", parent or "nothing")
        for metric in batch.metrics:
            if metric.name.startswith(("books", "agent.execution.duration")):
                for point in metric.points:
                    count = getattr(point.value, "count", point.value)
                    print("metric", metric.name, point.attributes, f"{count:g}", metric.unit)
        for line in batch.logs:
            print("log", line.level, line.message, line.attributes)


async def main() -> None:
    async with agentrt.Runtime(backends=[("printer", Printer())]) as runtime:
        result = await runtime.run(Librarian, "Dubliners")
        print(result.text)
        await runtime.telemetry.flush()
    print(*runtime.telemetry.report(), sep="\n")


if __name__ == "__main__":
    asyncio.run(main())
