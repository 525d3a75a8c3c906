"""Forked processes export what is theirs; what was the parent's is not sent twice; nothing deadlocks."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import msgspec
import pytest

PRELUDE = """
import asyncio, json, multiprocessing, os, signal, sys, threading, time
from agentrt import Runtime

class Writes:
    interval = 0.02

    def __init__(self):
        self.opened_in = None

    def open(self, host):
        self.opened_in = os.getpid()

    def export(self, batch):
        assert self.opened_in == os.getpid()
        told = {
            "process": role,
            "instance": batch.resource.attributes.get("service.instance.id"),
            "spans": [[span.name, span.trace_id, span.span_id, span.parent_id] for span in batch.spans],
            "metrics": {metric.name: metric.points[0].value for metric in batch.metrics if metric.name == "orders"},
        }
        with open(sys.argv[1], "ab") as file:
            file.write(json.dumps(told).encode() + b"\\n")

role = "parent"

def forked(work, *, ends=os._exit):
    global role
    pid = os.fork()
    if pid == 0:
        role = "child"
        signal.alarm(40)
        work()
        ends(0)
    return pid

def ended(pid):
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the child ended with {status}"

def span(name):
    with rt.telemetry.start_span(name):
        pass

def order():
    rt.telemetry.record_metric("orders", 1, kind="counter")

rt = Runtime(backends=[("writes", Writes())])
"""


class Told:
    """What the processes wrote."""

    def __init__(self, path: Path) -> None:
        self.batches = [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]

    def spans(self, process: str) -> list[str]:
        return [span[0] for batch in self.batches if batch["process"] == process for span in batch["spans"]]

    def instances(self, process: str) -> set[str]:
        return {batch["instance"] for batch in self.batches if batch["process"] == process}

    def one(self, name: str) -> list[Any]:
        (found,) = [span for batch in self.batches for span in batch["spans"] if span[0] == name]
        return found  # type: ignore[no-any-return]

    def orders(self, process: str) -> Any:
        values = [
            batch["metrics"]["orders"]
            for batch in self.batches
            if batch["process"] == process and "orders" in batch["metrics"]
        ]
        return values[-1] if values else None


def play(tmp_path: Path, program: str, *, variant: str = "") -> Told:
    path = tmp_path / "told"
    path.touch()
    code = PRELUDE + variant + textwrap.dedent(program)
    # Without a tracer: coverage's has locks and threads of its own, and is no part of what is forked here.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    ended = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, str(path)],
        env=variables,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return Told(path)


def test_a_child_exports_what_is_its_own_and_the_parent_what_is_the_parents(tmp_path: Path) -> None:
    told = play(
        tmp_path,
        """
        rt.telemetry.open()
        for number in range(10):
            span(f"before {number}")
            order()

        def work():
            assert rt.telemetry.metrics() == ()
            span("in the child")
            order()
            assert asyncio.run(rt.telemetry.flush(30))
            assert rt.telemetry.report()[0].delivered["spans"] == 1

        ended(forked(work))
        span("after")
        order()
        asyncio.run(rt.telemetry.aclose(30))
        assert rt.telemetry.report()[0].delivered["spans"] == 11
        """,
    )
    assert told.spans("parent") == [f"before {number}" for number in range(10)] + ["after"]
    assert told.spans("child") == ["in the child"]
    assert (told.orders("parent"), told.orders("child")) == (11, 1)


def test_a_child_of_multiprocessing_delivers_at_its_end(tmp_path: Path) -> None:
    told = play(
        tmp_path,
        """
        rt.telemetry.open()
        span("before")

        def work(name):
            global role
            role = "child"
            signal.alarm(40)
            span(name)
            order()

        context = multiprocessing.get_context("fork")
        children = [context.Process(target=work, args=(f"child {number}",)) for number in range(3)]
        for child in children:
            child.start()
        for child in children:
            child.join()
            assert child.exitcode == 0
        with context.Pool(2) as pool:
            pool.map(work, ["pooled 1", "pooled 2"])
            pool.close()
            pool.join()
        asyncio.run(rt.telemetry.aclose(30))
        """,
    )
    assert told.spans("parent") == ["before"]
    names = ["child 0", "child 1", "child 2", "pooled 1", "pooled 2"]
    assert sorted(told.spans("child")) == names


FORKS_TWICE = """
rt.telemetry.open()
span("before")

def work():
    span("in the child")
    asyncio.run(rt.telemetry.flush(30))

for _ in range(2):
    ended(forked(work))
span("after")
asyncio.run(rt.telemetry.aclose(30))
"""


def test_each_process_is_an_instance_of_its_own(tmp_path: Path) -> None:
    told = play(tmp_path, FORKS_TWICE)
    assert (told.spans("parent"), told.spans("child")) == (["before", "after"], 2 * ["in the child"])
    parents, children = told.instances("parent"), told.instances("child")
    assert (len(parents), len(children)) == (1, 2)
    assert not parents & children


def test_an_instance_that_was_given_a_name_keeps_it_in_its_children(tmp_path: Path) -> None:
    named = """
from agentrt import Config
resource = {"service.instance.id": "blue"}
rt = Runtime(Config({"telemetry": {"resource": resource}}), backends=[("writes", Writes())])
"""
    told = play(tmp_path, FORKS_TWICE, variant=named)
    assert told.instances("parent") == told.instances("child") == {"blue"}


def test_a_child_that_ends_as_processes_do_delivers_at_its_end(tmp_path: Path) -> None:
    told = play(
        tmp_path,
        """
        rt.telemetry.open()
        span("before")
        ended(forked(lambda: span("in the child"), ends=sys.exit))
        asyncio.run(rt.telemetry.aclose(30))
        """,
    )
    assert told.spans("parent") == ["before"]
    assert told.spans("child") == ["in the child"]


def test_a_child_of_a_child_is_a_process_like_another(tmp_path: Path) -> None:
    told = play(
        tmp_path,
        """
        rt.telemetry.open()
        span("before")

        def work():
            span("in the child")
            ended(forked(lambda: (span("in the grandchild"), asyncio.run(rt.telemetry.flush(30)))))
            asyncio.run(rt.telemetry.flush(30))

        ended(forked(work))
        asyncio.run(rt.telemetry.aclose(30))
        """,
    )
    assert (told.spans("parent"), sorted(told.spans("child"))) == (
        ["before"],
        ["in the child", "in the grandchild"],
    )


def test_a_child_of_a_run_stands_in_its_trace(tmp_path: Path) -> None:
    told = play(
        tmp_path,
        """
        async def agent(message, ctx):
            def work():
                with ctx.start_span("in the child"):
                    pass
                assert rt.telemetry._processor.flush(30.0)

            await ctx.call("call", "before", lambda: asyncio.sleep(0))
            await asyncio.to_thread(ended, forked(work))
            return message

        async def main():
            async with rt:
                await rt.run(agent, "hi")

        asyncio.run(main())
        """,
    )
    assert sorted(told.spans("parent")) == ["before", "invoke_agent agent"]
    root, child = told.one("invoke_agent agent"), told.one("in the child")
    assert (child[1], child[3]) == (root[1], root[2])


def test_what_was_closed_or_never_opened_stays_so_in_a_child(tmp_path: Path) -> None:
    told = play(
        tmp_path,
        """
        unused = Runtime(backends=[("writes", Writes())])
        rt.telemetry.open()
        span("before")
        asyncio.run(rt.telemetry.aclose(30))

        def work():
            names = [thread.name for thread in threading.enumerate()]
            assert names == ["MainThread"], names
            span("late")
            order()
            assert rt.telemetry.report()[-1].lost == {("spans", "shutdown"): 1, ("metrics", "shutdown"): 1}
            asyncio.run(rt.telemetry.aclose(30))

        ended(forked(work))
        """,
    )
    assert (told.spans("parent"), told.spans("child")) == (["before"], [])


@pytest.mark.parametrize("exports", [True, False])
def test_a_fork_while_threads_hold_every_lock_there_is_deadlocks_nobody(
    tmp_path: Path, exports: bool
) -> None:
    told = play(
        tmp_path,
        """
        sys.setswitchinterval(1e-5)
        rt.telemetry.open()
        stop = threading.Event()
        asyncio.run(asyncio.sleep(0))

        def busy(number):
            while not stop.is_set():
                with rt.telemetry.start_span("busy") as current:
                    if current.is_recording():
                        current.get_span_context()
                rt.telemetry.record_metric("busy", 1.0, {"number": number})
                rt.telemetry.metrics()
                rt.telemetry.report()
                rt.telemetry.redactor.add(f"a-secret-{time.monotonic()}")
                time.sleep(0.0005)

        workers = [threading.Thread(target=busy, args=(number,), daemon=True) for number in range(4)]
        for worker in workers:
            worker.start()

        def work():
            rt.telemetry.redactor.add("one-more-secret-of-the-child")
            span("in a child")
            order()
            assert rt.telemetry._processor.flush(30.0)
            assert {metric.name for metric in rt.telemetry.metrics()} >= {"orders"}

        for number in range(30):
            ended(forked(work))
        stop.set()
        for worker in workers:
            worker.join()
        asyncio.run(rt.telemetry.aclose(30))
        assert all(report.lost == {} for report in rt.telemetry.report())
        """,
        variant="" if exports else "\nrt = Runtime()\n",
    )
    if exports:
        assert told.spans("child") == 30 * ["in a child"]
        assert "in a child" not in told.spans("parent")
        assert told.orders("child") == 1
