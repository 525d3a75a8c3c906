"""`agentrt run` as a process with telemetry: SIGTERM, a collector that never answers, what OTEL_* variables turn on."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest
from servers.faulty import BlackHole, Refusing
from servers.http_server import HttpServer
from servers.otlp import Collector, attributes
from servers.zipkin import Zipkin

from agentrt.config import Config
from agentrt.errors import ConfigError, PluginError
from agentrt.runtime import Runtime
from tests.cli.commands import agentrt, environment

AGENTS = """
import asyncio
import logging
import os
import sys

from agentrt import Agent


class Bot(Agent):
    model = "scripted:echo"


class Slow:
    async def run(self, message, ctx):
        with ctx.start_span("preparing"):
            await ctx.model("ready?", model="scripted:echo")
        logging.getLogger("stock").warning("counted the apples")
        ctx.record_metric("apples", 3, kind="counter")
        print("began", file=sys.stderr, flush=True)
        if message == "wait":
            while not os.path.exists("go"):
                await asyncio.sleep(0.01)
        else:
            await asyncio.sleep(float(message))
        return "finished"
"""

CONNECTIONS = """
import sys

seen = []
sys.addaudithook(lambda event, args: seen.append(args[1]) if event == "socket.connect" else None)
from agentrt.cli.main import main

try:
    main(["run", "agents:Bot", "hi"])
finally:
    import threading

    print([thread.name for thread in threading.enumerate() if "telemetry" in thread.name], seen)
"""


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "agents.py").write_text(AGENTS)
    return tmp_path


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes to be ended, whatever happens."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def slow_run(project: Path, message: str, started: list[subprocess.Popen[str]]) -> subprocess.Popen[str]:
    """`agentrt run agents:Slow`, at the point where it sleeps: for so many seconds, or until there is a file `go`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "agentrt", "run", "agents:Slow", message],
        cwd=project,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    started.append(process)
    read_to(process.stderr, "began")
    return process


def read_to(stream: IO[str] | None, text: str) -> None:
    assert stream is not None
    for line in stream:
        if text in line:
            return
    raise AssertionError(f"no {text!r} before the end")


def configure(project: Path, endpoint: str, *, timeout: float = 10.0) -> None:
    text = f'[telemetry]\nservice = "fruit"\n[telemetry.otlp]\nendpoint = "{endpoint}"\ntimeout = {timeout}\n'
    (project / "agentrt.toml").write_text(text)


# --- mistakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        (
            "telemetry.flie.path=t.jsonl",
            "there is no telemetry backend 'flie'; did you mean 'file'? There are: ",
        ),
        ("telemetry.newrelic=true", ". A service that takes OTLP is reached by [telemetry.otlp]"),
        ("telemetry.sampel=0.1", "[telemetry] has no 'sampel'; did you mean 'sample'?"),
        ("telemetry.otlp=http://x", "telemetry.otlp must be a table, not 'http://x'"),
        ("telemetry.otlp.endpiont=http://x", "[telemetry.otlp] has no 'endpiont'; did you mean 'endpoint'?"),
        ("telemetry.otlp.endpoint=localhost:4318", "write 'http://localhost:4318'"),
        ("telemetry.file=true", "[telemetry.file] needs the option 'path'"),
        ("telemetry.sample=2", "[telemetry] sample must be a number from 0 to 1, not 2"),
    ],
)
def test_a_mistake_gets_one_message_before_the_run(project: Path, setting: str, says: str) -> None:
    ended = agentrt("run", "--set", setting, "agents:Bot", "hi", cwd=project)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"error: --set {setting.partition('=')[0]}: ")
    assert ended.err.count("\n") == 1
    assert says in ended.err


def test_a_plugin_that_is_not_installed_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentrt.telemetry.backends.plugins.names", lambda group: {"file", "otlp"})
    with pytest.raises(ConfigError, match="'zipkin' comes with agentrt-zipkin: pip install agentrt-zipkin"):
        Runtime(Config({"telemetry": {"zipkin": {}}}))
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    with pytest.raises(PluginError, match=r"OTEL_TRACES_EXPORTER=zipkin: .* pip install agentrt-zipkin"):
        Runtime(Config())


def test_an_exporter_that_the_environment_misspells_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "otpl")
    with pytest.raises(PluginError, match=r"OTEL_LOGS_EXPORTER=otpl: .* did you mean 'otlp'"):
        Runtime(Config())


def test_the_environment_may_name_backends_of_plugins(zipkin: Zipkin, project: Path) -> None:
    variables = {"OTEL_TRACES_EXPORTER": "zipkin", "OTEL_EXPORTER_ZIPKIN_ENDPOINT": zipkin.endpoint}
    assert agentrt("run", "agents:Bot", "hi", cwd=project, env=variables).code == 0
    assert {span["name"] for span in zipkin.spans} == {"invoke_agent Bot", "chat echo"}


def test_a_secret_that_is_missing_is_named(project: Path, refusing: Refusing) -> None:
    headers = 'telemetry.otlp.headers={authorization="Bearer secret://collector-token"}'
    endpoint = f"telemetry.otlp.endpoint={refusing.url}"
    ended = agentrt("run", "--set", headers, "--set", endpoint, "agents:Bot", "hi", cwd=project)
    assert (ended.code, ended.out) == (0, "hi\n")
    assert "secret://env/collector-token: the environment variable collector-token is not set" in ended.err


@pytest.mark.parametrize(
    ("status", "says"),
    [(401, "check headers"), (403, "check headers"), (404, "check endpoint"), (400, "HTTP 400: no")],
)
def test_a_server_that_refuses_is_told_with_what_to_look_at(
    project: Path, answering: Callable[..., HttpServer], status: int, says: str
) -> None:
    server = answering(status, b"no")
    ended = agentrt("run", "--set", f"telemetry.otlp.endpoint={server.url}", "agents:Bot", "hi", cwd=project)
    assert (ended.code, ended.out) == (0, "hi\n")
    assert "the telemetry backend otlp refuses some of what it gets (" in ended.err
    assert says in ended.err


# --- SIGTERM ---------------------------------------------------------------------------------------------


def test_sigterm_delivers_what_happened_until_then(
    project: Path, collector: Collector, started: list[subprocess.Popen[str]]
) -> None:
    configure(project, collector.url)
    process = slow_run(project, "600", started)
    process.send_signal(signal.SIGTERM)
    read_to(process.stderr, "a second one cancels it")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=40)
    assert process.returncode == 143
    spans = {span.name: span for span in collector.spans}
    assert set(spans) == {"chat echo", "preparing", "invoke_agent Slow"}
    run = spans["invoke_agent Slow"]
    assert spans["preparing"].parent_span_id == run.span_id
    assert spans["chat echo"].parent_span_id == spans["preparing"].span_id
    assert run.status.code == run.status.STATUS_CODE_ERROR
    assert "CancelledError" in attributes(run.attributes)["error.type"]
    lines = {line.body.string_value: line for line in collector.logs}
    assert lines["counted the apples"].trace_id == run.trace_id
    (apples,) = [metric for metric in collector.metrics if metric.name == "apples"][-1].sum.data_points
    assert apples.as_double == 3.0
    assert {attributes(each.attributes)["service.name"] for each in collector.resources} == {"fruit"}


def test_a_run_that_sigterm_lets_finish_is_delivered_whole(
    project: Path, collector: Collector, started: list[subprocess.Popen[str]]
) -> None:
    configure(project, collector.url)
    process = slow_run(project, "wait", started)
    process.send_signal(signal.SIGTERM)
    read_to(process.stderr, "a second one cancels it")
    (project / "go").touch()
    out, _ = process.communicate(timeout=40)
    assert (process.returncode, out) == (143, "finished\n")
    (run,) = [span for span in collector.spans if span.name == "invoke_agent Slow"]
    assert run.status.code == run.status.STATUS_CODE_UNSET


def test_a_collector_that_never_answers_does_not_hold_up_the_end(
    project: Path, black_hole: BlackHole, started: list[subprocess.Popen[str]]
) -> None:
    configure(project, black_hole.url, timeout=600.0)
    process = slow_run(project, "0.1", started)
    began = time.monotonic()
    out, err = process.communicate(timeout=50)
    assert (process.returncode, out) == (0, "finished\n")
    assert time.monotonic() - began < 40.0  # of 600
    assert black_hole.received > 0
    assert "telemetry lost: otlp:" in err
    assert "3 spans lost (shutdown)" in err


# --- OTEL_* variables ------------------------------------------------------------------------------------


def test_an_endpoint_alone_turns_otlp_on(project: Path, collector: Collector) -> None:
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_SERVICE_NAME": "fruit"}
    ended = agentrt("run", "agents:Bot", "hi", cwd=project, env=variables)
    assert (ended.code, ended.out, ended.err) == (0, "hi\n", "")
    assert {span.name for span in collector.spans} == {"invoke_agent Bot", "chat echo"}
    assert "gen_ai.client.operation.duration" in {metric.name for metric in collector.metrics}
    assert "run started" in {line.body.string_value for line in collector.logs}
    assert {attributes(each.attributes)["service.name"] for each in collector.resources} == {"fruit"}


def test_exporters_are_chosen_by_signal(project: Path, collector: Collector) -> None:
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
    }
    assert agentrt("run", "agents:Bot", "hi", cwd=project, env=variables).code == 0
    assert {request.path for request in collector.requests} == {"/v1/traces"}


@pytest.mark.parametrize("by", ["variable", "configuration"])
def test_a_disabled_sdk_is_no_telemetry_however_it_was_asked_for(
    project: Path, collector: Collector, by: str
) -> None:
    variables = {"OTEL_SDK_DISABLED": "true"}
    if by == "variable":
        variables["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.url
    else:
        configure(project, collector.url)
    ended = agentrt("run", "agents:Bot", "hi", cwd=project, env=variables)
    assert (ended.code, ended.out, ended.err) == (0, "hi\n", "")
    assert collector.requests == []


def connections(project: Path, **variables: str) -> str:
    """The telemetry threads left at the end, and where a run connected to."""
    done = subprocess.run(
        [sys.executable, "-c", CONNECTIONS],
        cwd=project,
        env=environment(PYTHONPATH=str(project), **variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_without_an_endpoint_nothing_connects_anywhere(project: Path, collector: Collector) -> None:
    assert connections(project) == "[] []"
    # The same look does see a connection.
    seen = connections(project, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    assert f"('127.0.0.1', {collector.port})" in seen
