"""The benchmarks work, and refuse to give figures for what does not do its work. Nothing here looks at a speed."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from agentrt import Limits, Pipeline, Runtime
from agentrt.testing.virtual_time import VirtualTimeLoop

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_on_the_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As when a script in there is started."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").parent == BENCHMARKS:
            del sys.modules[name]


def virtually(benchmark: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Inside a run, on a loop that does not wait: what is proved here needs seconds of timeouts."""

    async def agent(message: str) -> Any:
        return await benchmark()

    async def within_a_run() -> Any:
        async with Runtime() as runtime:
            return (await runtime.run(agent, "go", limits=Limits(seconds=3600.0))).output

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(within_a_run())


def script(name: str, *options: str, **variables: str) -> dict[str, Any]:
    """The figures of a benchmark. Where other tests keep the machine busy, one more try may be needed."""
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--json", "--quick", "--ours", *options]
    for _ in range(5):
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, env={**os.environ, **variables}, check=False
        )
        if done.returncode != load("_measure").TEMPORARY:
            break
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads(done.stdout)
    assert results["benchmark"] == name
    assert results["quick"] is True
    return results


def load(name: str) -> ModuleType:
    """A benchmark by its path, for tests have folders of the same names; what benchmarks share by the name they use."""
    if name.startswith("_"):
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- each works ----------------------------------------------------------------------------------------


def test_overhead_gives_its_figures() -> None:
    overhead = load("overhead")
    results = virtually(partial(overhead.measure, quick=True, ours=True))
    wanted = {
        "pipeline_x",
        "pipeline_telemetry_x",
        "pipeline_1000_targets_x",
        "pipeline_suspends_x",
        "pipeline_stream_x_per_item",
        "up_to_timeout_x",
        "up_to_telemetry_x",
    }
    assert wanted <= results.keys()
    assert results["timeout_ns"] > 0
    assert any("pipeline_x" in line for line in overhead.readable(results))


def test_overhead_has_a_figure_for_every_peer_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    overhead, peers = load("overhead"), load("_peers")

    def absent(callee: Any) -> Any:
        raise ImportError("no module named hyx")

    def glue(callee: Any) -> Any:
        return partial(load("_resilience").pipeline(callee).call, callee.serve)

    monkeypatch.setattr(peers, "PEERS", {"glue": "cannot fly", "hyx": "is not here"})
    monkeypatch.setattr(peers, "_FACTORIES", {"glue": glue, "hyx": absent})
    results = virtually(partial(overhead.measure, quick=True, ours=False))
    assert {"glue_x", "glue_1000_targets_x", "glue_suspends_x"} <= results.keys()
    assert "hyx_x" not in results
    assert "no module named hyx" in results["absent"]["hyx"]
    assert results["cannot"] == {"glue": "cannot fly"}
    text = "\n".join(overhead.readable(results))
    assert "glue: cannot fly" in text
    assert "hyx is left out" in text


def test_inflight_gives_its_figures() -> None:
    results = script("inflight")
    assert {"cpu_x", "bytes_per_call"} <= results.keys()
    assert results["bytes_per_call"] > 0
    assert results["tasks"] == 200


def test_agent_run_gives_its_figures() -> None:
    results = script("agent_run", AGENTRT_BENCH_PYTHONS="{}")
    assert results["run_us"] > results["plain_us"] > 0
    assert set(results["absent"]) == {
        "agent_framework",
        "pydantic_ai",
        "langchain",
        "openai_agents",
        "strands",
    }


def test_agent_run_compares_with_a_peer_in_its_own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    agent_run = load("agent_run")
    figures = {"agentrt": 50.0, "plain": 8.0, "timeout": 4.0, "langchain": 2000.0}

    def measured(peer: str, python: str, *, quick: bool) -> dict[str, float]:
        assert python == f"python of {peer}"
        return figures if peer == "langchain" else {}

    monkeypatch.setattr(agent_run, "measure_peer", measured)
    pythons = {"langchain": "python of langchain", "strands": "python of strands"}
    results = agent_run.compare(pythons, quick=True)
    assert results["run_x_langchain"] == 0.025
    assert results["langchain_us"] == 2000.0
    assert results["absent"]["strands"] == "not installed"
    assert any(line.startswith("langchain") for line in agent_run.readable(results))


def test_agent_run_says_so_if_a_framework_is_not_installed_in_the_peers_environment() -> None:
    command = [sys.executable, str(BENCHMARKS / "agent_run.py"), "--peer", "strands", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "{}\n")
    assert "strands is not installed" in done.stderr


def test_startup_gives_its_figures() -> None:
    results = script("startup")
    assert results["agentrt_run_ms"] > results["interpreter_ms"] > 0
    assert {"import_x", "use_x", "cli_x", "cli_wall_x"} <= results.keys()


def test_telemetry_gives_its_figures() -> None:
    results = script("telemetry")
    states = ("", "_off", "_sampled_out", "_memory", "_otlp")
    assert {f"{figure}_x{state}" for figure in ("path", "all_threads") for state in states} <= results.keys()
    assert results["path_x_off"] > 0
    assert (results["lost_silently"], results["lost_silently_otlp"]) == (0, 0)
    assert {"lost_at_full_speed", "lost_at_4000_a_second"} <= results.keys()
    assert results["shutdown_seconds"] > 0
    text = "\n".join(load("telemetry").readable(results))
    assert "sampled_out" in text
    assert "all_threads_x" in text


def test_security_gives_its_figures() -> None:
    results = script("security")
    wanted = {
        "cached_secret_over_ttl_dict",
        "encrypt_64_over_fernet",
        "decrypt_4096_over_aesgcm",
        "jail_open_x",
        "rate_check_over_limits",
        "audit_append_x",
        "audit_verify_x",
    }
    assert wanted <= results.keys()
    assert all(results[name] > 0 for name in wanted)
    assert any("jail_open_x" in line for line in load("security").readable(results))


def test_telemetry_compares_with_a_peer_in_its_own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    telemetry = load("telemetry")
    asked: list[tuple[str, str, str]] = []

    def ask(name: str, task: str, python: str, *, quick: bool) -> dict[str, float]:
        asked.append((name, task, python))
        return {f"{task}_{name}": 1.0} if name == "traceloop" else {}

    monkeypatch.setattr(telemetry, "ask_peer", ask)
    results = telemetry.compare({}, {"traceloop": "python of traceloop"}, quick=True)
    assert [entry for entry in asked if entry[0] == "traceloop"] == [
        ("traceloop", task, "python of traceloop") for task in ("measure", "lose", "end")
    ]
    assert results["lose_traceloop"] == 1.0
    assert "wheels" in results["cannot"]["traceloop"]
    assert results["absent"] == dict.fromkeys(("otel_sdk", "otel_sdk_otlp", "logfire"), "not installed")


def test_a_peer_of_telemetry_does_the_work_that_is_measured() -> None:
    command = [sys.executable, str(BENCHMARKS / "telemetry.py"), "--peer", "otel_sdk", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout).keys() == {"path_x_otel_sdk", "all_threads_x_otel_sdk"}


# --- no figures for what does not do its work ----------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda ours: ours.without("retry"), "made 1 attempts instead of 3"),
        (lambda ours: ours.without("timeout"), "gave an attempt 1.00 s of 0.5 s"),
        (lambda ours: ours.without("fallback"), r"called a service that hangs and got AttemptTimeout"),
        (lambda ours: ours.without("circuit_breaker"), "did not open its circuit"),
        (
            lambda ours: Pipeline(inner_first=ours.stages, idempotent=True),
            "ended after 3.0. s, not at its deadline",
        ),
    ],
)
def test_a_pipeline_that_lacks_something_is_refused(
    change: Callable[[Pipeline], Pipeline], complaint: str
) -> None:
    measure, resilience = load("_measure"), load("_resilience")

    async def prove() -> None:
        callee = resilience.Callee()
        call = partial(change(resilience.pipeline(callee)).call, callee.serve)
        with pytest.raises(measure.Invalid, match=complaint):
            await resilience.prove("it", callee, call)
        assert not callee.outage

    virtually(prove)


def test_a_peer_is_not_held_to_what_it_does_not_claim() -> None:
    resilience = load("_resilience")

    async def prove() -> None:
        callee = resilience.Callee()
        ours = Pipeline(inner_first=resilience.stages(callee), idempotent=True)
        await resilience.prove("it", callee, partial(ours.call, callee.serve), cannot=("deadline",))

    virtually(prove)


def test_calls_that_are_not_in_flight_together_are_refused() -> None:
    inflight, measure = load("inflight"), load("_measure")

    async def count() -> None:
        callee, one_at_a_time = inflight.new_callee(), asyncio.Lock()

        async def call() -> str:
            async with one_at_a_time:
                return str(await callee.serve())

        with pytest.raises(measure.Invalid, match="it: only 1 of 10 calls were in flight at once"):
            await inflight.count("it", callee, inflight.in_flight(call), 10)

    virtually(count)


def test_calls_that_arrive_twice_are_refused() -> None:
    inflight, measure = load("inflight"), load("_measure")

    async def count() -> None:
        callee = inflight.new_callee()

        async def call() -> str:
            await callee.serve()
            return str(await callee.serve())

        with pytest.raises(measure.Invalid, match="it: the service saw 60 calls of 30"):
            await inflight.count("it", callee, inflight.in_flight(call), 10)

    virtually(count)


def test_a_run_that_takes_a_short_cut_is_refused() -> None:
    agent_run, frameworks, measure = load("agent_run"), load("_frameworks"), load("_measure")

    async def prove() -> None:
        world = frameworks.World()

        async def knows_the_answer() -> str:
            return str(frameworks.ANSWER)

        with pytest.raises(measure.Invalid, match="after 0 model calls and 0 tool calls"):
            await agent_run.prove("it", world, knows_the_answer)

    virtually(prove)


def test_a_run_that_does_not_validate_a_tools_arguments_is_refused() -> None:
    agent_run, frameworks, measure = load("agent_run"), load("_frameworks"), load("_measure")

    async def prove() -> None:
        world = frameworks.World()
        with pytest.raises(measure.Invalid, match="it does not validate the arguments of tools"):
            await agent_run.prove("it", world, frameworks.plain(world))
        assert world.arguments == frameworks.ARGUMENTS

    virtually(prove)


def test_telemetry_that_does_not_arrive_is_refused() -> None:
    ours, telemetry, measure = load("_telemetry_ours"), load("_telemetry"), load("_measure")

    async def prove() -> None:
        async with ours.Ours("sampled_out") as subject:
            subject.has_spans = True
            await subject.make_calls(10)
            with pytest.raises(measure.Invalid, match="0 spans of 11 arrived, 0 calls are reported as lost"):
                await telemetry.prove(subject, calls=10)

    asyncio.run(prove())


def test_telemetry_whose_metrics_miss_calls_is_refused() -> None:
    ours, telemetry, measure = load("_telemetry_ours"), load("_telemetry"), load("_measure")

    async def prove() -> None:
        async with ours.Ours("null") as subject:
            await subject.make_calls(10)
            await subject.flush()
            subject._null.spans += 1
            with pytest.raises(measure.Invalid, match=r"the metrics of 11 calls say .*: 10"):
                await telemetry.prove(subject, calls=11)

    asyncio.run(prove())


def test_telemetry_in_which_users_spans_have_another_parent_is_refused() -> None:
    ours, telemetry, measure = load("_telemetry_ours"), load("_telemetry"), load("_measure")

    async def prove() -> None:
        async with ours.Ours("null") as subject:
            make_calls = subject.make_calls
            await make_calls(10)

            async def outside(count: int) -> None:
                outage = list(subject.callee.outage)
                subject.callee.begin()
                await make_calls(count)
                for _ in range(count):
                    await outage[0]()

            subject.make_calls = outside
            with pytest.raises(measure.Invalid, match="a user's spans inside of calls have"):
                await telemetry.prove(subject, calls=10)

    asyncio.run(prove())


def test_telemetry_that_loses_calls_silently_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    telemetry, ours, measure = load("telemetry"), load("_telemetry_ours"), load("_measure")
    monkeypatch.setattr(ours.NullBackend, "export", lambda self, batch: None)

    async def lose() -> None:
        with pytest.raises(measure.Invalid, match="null: 11 of 11 spans are neither delivered nor reported"):
            await telemetry.lose_ours("null", calls=10)

    asyncio.run(lose())


def test_calls_that_telemetry_drops_are_counted() -> None:
    ours, telemetry = load("_telemetry_ours"), load("_telemetry")

    async def lose() -> None:
        async with ours.Ours("null") as subject:
            subject.runtime.telemetry._processor._pending.limit = 100
            fate = await telemetry.lose(subject, calls=1000)
        assert fate.silently == 0
        assert fate.reported == fate.lost > 0

    asyncio.run(lose())


def test_secrets_that_are_fetched_each_time_are_refused() -> None:
    security, measure = load("_security"), load("_measure")
    subject = security.Secrets()

    async def fetch_twice() -> None:
        for _ in range(2):
            subject.manager.invalidate(subject.REFERENCE)
            await subject.manager.get(subject.REFERENCE)
        await subject.prove()

    with pytest.raises(measure.Invalid, match="fetched 2 times"):
        virtually(fetch_twice)


@pytest.mark.parametrize(
    ("flaw", "message"),
    [
        ("loses", "does not give back"),
        ("forgives", "takes what was changed"),
        ("strays", "belongs elsewhere"),
    ],
)
def test_a_cipher_that_does_not_protect_is_refused(
    monkeypatch: pytest.MonkeyPatch, flaw: str, message: str
) -> None:
    security, measure = load("_security"), load("_measure")
    encrypt, decrypt = security.CIPHERS["encryption"]()

    def flawed(token: str, context: bytes) -> bytes:
        if flaw == "loses":
            return b""
        own = token == subject.tokens["encryption"]
        if flaw == "forgives" or own:
            plaintext: bytes = subject.data
            return plaintext
        return bytes(decrypt(token, context))

    monkeypatch.setitem(security.CIPHERS, "encryption", lambda: (encrypt, flawed))
    subject = security.Ciphers(["encryption"], 64)
    with pytest.raises(measure.Invalid, match=message):
        subject.prove()


def test_a_jail_with_a_door_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    security, measure = load("_security"), load("_measure")
    jail = security.Jail(tmp_path)
    root = tmp_path / "root"
    monkeypatch.setattr(security.FileAccess, "open_read", lambda self, path: (root / path).open("rb"))
    try:
        with pytest.raises(measure.Invalid, match=r"jail_open opened \.\./outside\.txt"):
            jail.prove()
    finally:
        jail.close()


def test_an_audit_log_that_misses_records_is_refused(tmp_path: Path) -> None:
    security, measure = load("_security"), load("_measure")

    async def miss() -> None:
        subject = security.Audit(tmp_path)
        await subject.open()
        await subject.append(10)
        subject.operations += 1
        await subject.close()
        subject.prove()

    with pytest.raises(measure.Invalid, match="records are there, of"):
        asyncio.run(miss())


def test_a_program_that_says_something_else_is_refused(tmp_path: Path) -> None:
    startup, measure = load("startup"), load("_measure")
    with pytest.raises(measure.Invalid, match="gave 0 and 'bye"):
        startup.check([sys.executable, "-c", "print('bye')"], tmp_path, "hello")


def test_a_unit_that_is_no_slower_than_nothing_is_refused() -> None:
    measure = load("_measure")
    assert measure.in_units({"bare": 1.0, "timeout": 3.0, "ours": 2.0}, bare="bare", unit="timeout") == {
        "ours": 0.5
    }
    with pytest.raises(measure.TooNoisy, match="too noisy"):
        measure.in_units({"bare": 1.0, "timeout": 1.0}, bare="bare", unit="timeout")


def test_a_failed_proof_ends_a_benchmark_without_figures(capsys: pytest.CaptureFixture[str]) -> None:
    measure = load("_measure")

    async def fails() -> None:
        raise measure.Invalid("it did not open")

    with pytest.raises(SystemExit) as ended:
        measure.run(fails())
    assert ended.value.code == 1
    assert capsys.readouterr() == ("", "bench: no figures: it did not open\n")


def test_a_noisy_machine_ends_a_benchmark_with_a_status_of_its_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    measure = load("_measure")

    async def fails() -> None:
        raise measure.TooNoisy("too noisy to measure on")

    with pytest.raises(SystemExit) as ended:
        measure.run(fails())
    assert ended.value.code == measure.TEMPORARY == os.EX_TEMPFAIL
    assert capsys.readouterr() == ("", "bench: no figures: too noisy to measure on\n")
