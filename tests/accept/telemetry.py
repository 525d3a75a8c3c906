"""The acceptance of telemetry: each backend against its server, each fault, and what a user of `agentrt run` sees.

    ./dev accept telemetry                 # every line
    ./dev accept telemetry --list          # their names
    ./dev accept telemetry --only X-Ray    # the lines whose name contains "X-Ray"

Prints PASS or FAIL for each line and exits 1 if one failed. It works in a fresh clone: nothing of this working tree is
used but its last commit. A line that names tests fails if one of the names has no test, or one that was skipped.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import _telemetry_figures
from _acceptance import Acceptance, Place, expect, one_error

AGENTS = '''
import asyncio

from agentrt import Agent, TransientError, tool

tries = 0


@tool(idempotent=True)
async def flaky(city: str) -> str:
    """Look a city up."""
    global tries
    tries += 1
    if tries < 3:
        raise TransientError("overloaded")
    return f"{city} is fine"


class Child(Agent):
    model = "scripted:echo"


class Planner:
    async def run(self, message, ctx):
        with ctx.start_span("planning", {"step": 1}):
            found = await ctx.tool(flaky, city="Lisbon")
            ctx.log("warning", "looked up", city="Lisbon")
            ctx.record_metric("trips.planned", 1, {"city": "Lisbon"}, kind="counter", unit="{trip}")
        return (await ctx.run(Child, found)).text


class Broken:
    async def run(self, message, ctx):
        await ctx.model(message, model="scripted:echo")
        raise ValueError("broken on purpose")


class Leaky(Agent):
    """Has a secret in all that it says."""

    async def run(self, message, ctx):
        secret = await ctx.secret("TOKEN_OF_OURS")
        await ctx.model(f"my token is {secret}", model="scripted:echo")
        ctx.log("warning", f"the token is {secret}")
        raise ValueError(f"refused: {secret}")
'''

acceptance = Acceptance("telemetry", __doc__)
line, proved = acceptance.line, acceptance.proved


def telemetry(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/telemetry/{name}" for name in names)


def plugins(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/plugins/{name}" for name in names)


def end_to_end(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/telemetry/test_end_to_end.py::{name}" for name in names)


TREE = "test_the_server_has_the_tree_of_the_run"


# --- as a user sees it -----------------------------------------------------------------------------------


def run(place: Place, agent: str, *settings: str, **env: str) -> tuple[str, list[dict[str, Any]]]:
    """Run an agent of `AGENTS` with the file backend; stderr and the lines of the file."""
    (place.clone / "seen.py").write_text(AGENTS)
    stored = place.clone / "seen.jsonl"
    stored.unlink(missing_ok=True)
    chosen = [
        word for setting in ("telemetry.file.path=seen.jsonl", *settings) for word in ("--set", setting)
    ]
    fast = ["--set", "pipeline.retry.initial_delay=0.02"]
    done = place.agentrt("run", *chosen, *fast, f"seen.py:{agent}", "hello", **env)
    works = agent in ("Planner", "Child")
    expect(done.returncode == (0 if works else 1), done)
    expect(not works or "Traceback" not in done.stderr, done.stderr)
    lines = [json.loads(text) for text in stored.read_text().splitlines()] if stored.exists() else []
    return done.stderr, lines


def spans_of(lines: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in lines if each["type"] == "span"}


@line("the facade: a run's log line, metric and span of its own are delivered, with its trace")
def facade(place: Place) -> str:
    _, lines = run(place, "Planner", "telemetry.service=trips")
    expect(lines[0]["attributes"]["service.name"] == "trips", lines[0])
    spans = spans_of(lines)
    own = spans["planning"]
    expect(own["parent_id"] == spans["invoke_agent Planner"]["span_id"], spans)
    expect(own["attributes"] == {"step": 1}, own)
    expect(spans["execute_tool flaky"]["parent_id"] == own["span_id"], spans)
    (said,) = [each for each in lines if each.get("message") == "looked up"]
    expect((said["trace_id"], said["span_id"]) == (own["trace_id"], own["span_id"]), said)
    (metric,) = [each for each in lines if each.get("name") == "trips.planned"]
    expect((metric["unit"], metric["points"][0]["value"]) == ("{trip}", 1.0), metric)
    return f"{len(spans)} spans, one trace"


@line("retries and attempts are on the trace, and --trace draws them")
def waterfall(place: Place) -> str:
    _, lines = run(place, "Planner")
    call = spans_of(lines)["execute_tool flaky"]
    expect(call["attributes"]["agentrt.attempts"] == 3, call)
    expect([each["name"] for each in call["events"]].count("retry") == 2, call)
    done = place.agentrt(
        "run", "--trace", "--set", "pipeline.retry.initial_delay=0.02", "seen.py:Planner", "x"
    )
    for pattern in (
        r"^Planner . ok . ",
        r"execute_tool flaky .* 3 attempts$",
        r"attempt 1 .*TransientError: overloaded$",
        r"retry ",
        r"invoke_agent Child ",
        r"chat echo .* tokens",
    ):
        expect(re.search(pattern, done.stderr, re.MULTILINE) is not None, f"{pattern}: {done.stderr}")
    return next(text for text in done.stderr.splitlines() if text.startswith("Planner"))


@line("--trace-html writes one page, trace FILE shows the stored run, --html its page")
def pages(place: Place) -> str:
    run(place, "Planner")
    done = place.agentrt("run", "--trace-html", "run.html", "seen.py:Planner", "x")
    expect(done.returncode == 0, done.stderr)
    page = (place.clone / "run.html").read_text()
    expect("execute_tool flaky" in page, page[:1000])
    expect(not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", page), "the page loads something")
    shown = place.agentrt("trace", "seen.jsonl", "--html", "stored.html")
    expect(shown.returncode == 0, shown.stderr)
    expect("execute_tool flaky" in (place.clone / "stored.html").read_text(), "the stored page")
    shown = place.agentrt("trace", "seen.jsonl")
    expect("execute_tool flaky" in shown.stdout, shown)
    return f"{len(page) / 1000:.0f} KB"


@line("content is off by default, and there if it is asked for")
def content(place: Place) -> str:
    _, lines = run(place, "Planner")
    expect("Lisbon is fine" not in json.dumps(spans_of(lines)), lines)
    _, lines = run(place, "Planner", "telemetry.capture_content=true")
    spans = spans_of(lines)
    expect("Lisbon is fine" in spans["chat echo"]["attributes"]["gen_ai.input.messages"], spans)
    said = json.loads(spans["execute_tool flaky"]["attributes"]["gen_ai.tool.call.arguments"])
    expect(said == {"city": "Lisbon"}, said)
    return "gen_ai.input.messages, gen_ai.output.messages, gen_ai.tool.call.arguments, .result"


@line("a fetched secret is in no line, with content captured, nor on the terminal's log")
def secret(place: Place) -> str:
    value = 'Zx81-"pass/word"'
    stderr, lines = run(place, "Leaky", "telemetry.capture_content=true", TOKEN_OF_OURS=value)
    text = json.dumps(lines)
    expect("[redacted]" in text and "pass/word" not in text and "Zx81" not in text, text)
    # The error itself, which the command ends with, is shown to its user as it is.
    expect("agentrt.run: the token is [redacted]" in stderr, stderr)
    return f"{text.count('[redacted]')} places"


@line("head sampling leaves traces out; keep_failures keeps the failures")
def sampling(place: Place) -> str:
    _, lines = run(place, "Planner", "telemetry.sample=0")
    expect(spans_of(lines) == {}, lines)
    expect(any(each["type"] == "metric" for each in lines), "metrics are not sampled")
    _, lines = run(place, "Broken", "telemetry.sample=0")
    expect(spans_of(lines) == {}, lines)
    _, lines = run(place, "Broken", "telemetry.sample=0", "telemetry.keep_failures=true")
    (failed,) = [each for name, each in spans_of(lines).items() if name == "invoke_agent Broken"]
    expect((failed["status"], failed["message"]) == ("error", "broken on purpose"), failed)
    return failed["attributes"]["error.type"]


@line("an unknown backend is answered with what there is and what to install")
def unknown(place: Place) -> str:
    (place.clone / "seen.py").write_text(AGENTS)
    arguments = ("run", "seen.py:Child", "hi", "--set")
    one_error(place.agentrt(*arguments, "telemetry.flie.path=x"), code=2, says="did you mean 'file'")
    one_error(place.agentrt(*arguments, "telemetry.nothing=true"), code=2, says=r"zipkin \(agentrt-zipkin\)")
    done = place.agentrt(*arguments, "telemetry.zipkin=true")
    one_error(done, code=2, says="pip install agentrt-zipkin")
    return done.stderr.strip()


# --- what to build ---------------------------------------------------------------------------------------

proved(
    "the facade on the runtime: log, record_metric, start_span, reports",
    *telemetry("test_facade.py"),
)
proved(
    "logs: loguru and logging as one; level, format, outputs and service name by configuration",
    *telemetry("test_logs.py", "test_log_files.py"),
    "tests/cli/test_logs.py",
)
proved(
    "a user's OpenTelemetry spans nest inside ours and ours inside theirs",
    *telemetry("test_parents.py::test_parents_are_kept_everywhere"),
    *telemetry("test_nesting.py::test_ours_stand_in_theirs_and_theirs_in_ours"),
)
proved(
    "spans across create_task, to_thread, executors, queues and early-closed generators keep their parents",
    *telemetry("test_nesting.py", "test_parents.py::test_parents_are_kept_everywhere"),
)
proved(
    "conventions: GenAI spans, metrics, attributes and bounds, the specification's metrics beside them",
    *telemetry("test_spans_of_calls.py", "test_call_spans.py"),
    *end_to_end(
        "test_an_otlp_server_has_the_metrics", "test_a_span_has_the_attributes_and_events_of_its_call"
    ),
)
proved(
    "attempts, retries, waits, breaker changes, refusals, fallbacks and defaults are on the trace",
    *(
        f"tests/telemetry/test_spans_of_calls.py::{name}"
        for name in (
            "test_retries_are_events_and_each_attempt_is_a_child",
            "test_a_fallback_is_an_event_and_the_call_is_degraded",
            "test_a_default_that_is_served_is_an_event",
            "test_a_circuit_that_opens_and_one_that_is_open_are_events",
            "test_a_refusal_by_a_limit_is_told_with_its_stage",
            "test_a_wait_for_a_place_is_an_event_with_its_seconds",
        )
    ),
)
proved(
    "bounded queues whose drops are counted, reported at shutdown and exported as metrics",
    *telemetry("test_processor.py", "test_exporting.py", "test_meter.py"),
    *telemetry("test_facade.py::test_what_was_lost_is_logged_once_at_the_end"),
)
proved(
    "sampling: what is not sampled records nothing, a caller's decision holds, failures are kept",
    *(
        f"tests/telemetry/test_nesting.py::{name}"
        for name in (
            "test_in_a_run_that_is_not_sampled_nothing_is_recorded_by_anybody",
            "test_the_decision_of_a_trace_that_we_are_called_in_holds",
            "test_about_the_wanted_part_of_the_runs_is_traced_and_wholly",
            "test_a_failure_is_kept_though_its_run_was_not_sampled",
        )
    ),
)
proved(
    "several backends at once, each on its server, nothing lost",
    *end_to_end("test_nothing_was_lost", "test_every_server_has_the_same_trace"),
    *plugins("test_runs_with_plugins.py"),
)
proved(
    "OTEL_* variables: an endpoint alone turns OTLP on, OTEL_SDK_DISABLED turns all off, no endpoint: no connection",
    *(
        f"tests/telemetry/test_process.py::{name}"
        for name in (
            "test_an_endpoint_alone_turns_otlp_on",
            "test_exporters_are_chosen_by_signal",
            "test_a_disabled_sdk_is_no_telemetry_however_it_was_asked_for",
            "test_without_an_endpoint_nothing_connects_anywhere",
            "test_the_environment_may_name_backends_of_plugins",
        )
    ),
    *telemetry("test_otel_environment.py"),
)
proved(
    "OTEL_CONFIG_FILE takes over",
    *(
        f"tests/telemetry/test_otel_environment.py::{name}"
        for name in (
            "test_the_sdk_is_set_up_from_a_file",
            "test_a_file_that_the_sdk_does_not_understand_is_named",
            "test_a_missing_file_is_named",
            "test_a_missing_package_is_named",
        )
    ),
)
proved(
    "shutdown within a total budget whatever hangs",
    *telemetry("test_process.py::test_a_collector_that_never_answers_does_not_hold_up_the_end"),
    *telemetry(
        "test_processor.py::test_something_of_the_users_that_hangs_costs_half_of_the_time_and_is_counted"
    ),
    *telemetry("test_processor.py::test_closing_gives_all_backends_the_same_time_at_once"),
    *telemetry("test_exporting.py::test_a_close_that_hangs_costs_the_time_and_nothing_else"),
    *telemetry("test_exporting.py::test_a_task_that_does_not_end_holds_nothing_up"),
)
proved(
    "SIGTERM: what happened until then is delivered, exit code 143",
    *telemetry("test_process.py::test_sigterm_delivers_what_happened_until_then"),
    *telemetry("test_process.py::test_a_run_that_sigterm_lets_finish_is_delivered_whole"),
)
proved(
    "forked workers deliver what is theirs, nothing twice",
    *telemetry("test_parents.py::test_forked_workers_deliver_what_is_theirs_and_nothing_twice"),
    *telemetry("test_forks.py"),
    *telemetry("test_otlp.py::test_a_forked_process_makes_connections_of_its_own"),
    *telemetry("test_file_backend.py::test_a_forked_child_takes_a_lock_of_its_own"),
    *telemetry("test_logs.py::test_a_forked_child_writes_its_own_lines_and_none_of_its_parent_s"),
    *plugins("test_plugin_prometheus.py::test_a_forked_process_leaves_its_parents_endpoint_alone"),
)
proved(
    "one redaction for logs, attributes and events of all spans, exceptions and tracebacks",
    *telemetry("test_redaction.py", "test_secret_shapes.py"),
)
proved("size caps that keep JSON valid", *telemetry("test_caps.py"))
proved("the waterfall", *telemetry("test_waterfall.py"), "tests/cli/test_trace.py")
proved(
    "the page in headless Chromium, light and dark, searchable",
    *telemetry("test_timeline.py"),
    servers=True,
)
proved(
    "the conformance suite finds what is wrong with a backend, and all of ours pass it",
    *telemetry("test_conformance.py"),
    *plugins("test_conformance_plugins.py"),
)
proved(
    "docs/writing-a-telemetry-backend.md: its plugin of at most 30 lines is installed, works and conforms",
    *telemetry("test_writing_a_backend.py"),
)
proved("docs/telemetry.md says what there is", *telemetry("test_telemetry_page.py"))

# --- real servers: a line for each backend ---------------------------------------------------------------

proved(
    "console: a tree of the run", *telemetry("test_console.py"), *end_to_end("test_the_console_shows_the_run")
)
proved(
    "in-memory",
    *telemetry("test_telemetry_backends.py"),
    *telemetry("test_spans_of_calls.py::test_metrics_are_the_same_without_a_backend_that_exports"),
)
proved(
    "file: JSON lines with rotation",
    *telemetry("test_file_backend.py"),
    *end_to_end(f"{TREE}[file]", "test_the_file_has_all_three_signals"),
)
proved(
    "OTLP over HTTP: oteltap, rotel, our collector",
    *telemetry("test_otlp.py::test_everything_arrives_by_http"),
    *telemetry("test_otlp.py::test_everything_arrives_through_a_real_collector[http/protobuf-gzip]"),
    *end_to_end(f"{TREE}[otlp]", "test_an_otlp_server_has_the_metrics[collector]"),
    *end_to_end("test_an_otlp_server_has_the_log_lines_with_ids[collector]"),
)
proved(
    "OTLP over gRPC: rotel",
    *telemetry("test_otlp.py::test_everything_arrives_through_a_real_collector[grpc-none]"),
    *end_to_end(f"{TREE}[rotel]", "test_an_otlp_server_has_the_metrics[onward]"),
    *end_to_end("test_an_otlp_server_has_the_log_lines_with_ids[onward]"),
)
proved(
    "any installed OpenTelemetry exporter by name",
    *telemetry("test_otel_exporter.py", "test_otel_sdk.py"),
    *end_to_end(f"{TREE}[otlp_proto_http]", "test_an_otlp_server_has_the_metrics[stock]"),
)
proved(
    "Jaeger as a preset over OTLP",
    *telemetry("test_otlp.py::test_jaeger_gets_traces_and_nothing_else"),
    *end_to_end(f"{TREE}[jaeger]"),
)
proved(
    "Prometheus scrapes the endpoint and answers in PromQL",
    *plugins("test_plugin_prometheus.py::test_prometheus_scrapes_and_answers_in_promql"),
    *end_to_end("test_prometheus_answers_about_a_run", "test_the_scrape_has_the_metrics"),
    servers=True,
)
proved(
    "pushgateway keeps what a short run pushed",
    *plugins("test_plugin_prometheus.py::test_a_short_run_is_seen_through_the_pushgateway"),
    *plugins("test_plugin_prometheus.py::test_a_removed_group_is_gone_from_the_pushgateway"),
    *end_to_end("test_what_a_short_run_pushed_is_scraped_after_its_end"),
    servers=True,
)
proved(
    "CloudWatch Logs (moto)",
    *plugins("test_plugin_aws_logs.py"),
    *end_to_end("test_cloudwatch_has_the_log_lines_with_ids"),
)
proved(
    "CloudWatch metrics (moto)",
    *plugins("test_plugin_aws_metrics.py"),
    *end_to_end("test_cloudwatch_has_the_metrics"),
)
proved(
    "X-Ray segments read back (moto)",
    *plugins("test_plugin_aws_xray.py::test_a_run_is_a_segment_with_subsegments"),
    *end_to_end(f"{TREE}[xray]", "test_xray_can_be_searched_for_what_a_call_was"),
)
proved(
    "X-Ray over OTLP with SigV4",
    *plugins("test_plugin_aws_xray.py::test_otlp_is_signed_for_the_region"),
    *plugins("test_plugin_aws_xray.py::test_otlp_carries_the_whole_span"),
    *end_to_end(f"{TREE}[xray_otlp]"),
)
proved(
    "Datadog through the Agent's OTLP (ddapm-test-agent)",
    *plugins("test_plugin_datadog.py::test_the_agent_gets_spans_with_parents_attributes_and_unified_tags"),
    *plugins("test_plugin_datadog.py::test_the_agent_gets_metrics_as_deltas"),
    *plugins("test_plugin_datadog.py::test_the_agent_gets_log_lines_with_trace_ids"),
    *end_to_end(f"{TREE}[datadog]", "test_datadog_has_the_metrics_by_both_ways"),
)
proved(
    "Datadog by the intake with an API key",
    *plugins("test_plugin_datadog.py::test_log_lines_arrive_with_ids_and_tags"),
    *plugins("test_plugin_datadog.py::test_counters_and_gauges_arrive_as_series"),
    *plugins("test_plugin_datadog.py::test_histograms_arrive_as_distributions"),
    *end_to_end("test_datadog_has_the_log_lines_with_ids", "test_datadog_has_the_metrics_by_both_ways"),
)
proved(
    "Zipkin v2",
    *plugins("test_plugin_zipkin.py"),
    *end_to_end(f"{TREE}[zipkin]", "test_zipkin_can_be_searched_for_what_a_call_was"),
)
proved(
    "arize-phoenix shows the run as the trace of an agent",
    *end_to_end("test_phoenix_shows_the_run_as_the_trace_of_an_agent"),
    slow=True,
)
proved("the servers of the tests do what they are for", "tests/servers/test_servers.py", servers=True)

# --- faults and bad input --------------------------------------------------------------------------------

proved(
    "a collector that is down",
    *telemetry("test_otlp.py::test_a_collector_that_is_down_is_named"),
    *telemetry("test_otlp.py::test_nobody_listening_by_grpc_is_told"),
    *plugins("test_runs_with_plugins.py::test_backends_that_fail_cost_the_run_nothing_and_are_told_once"),
)
proved(
    "a collector that hangs",
    *telemetry("test_otlp.py::test_a_black_hole_costs_the_timeout_and_no_more"),
    *telemetry(
        "test_exporting.py::test_what_hangs_is_abandoned_and_counted_once_even_if_it_comes_through_later"
    ),
    *telemetry("test_process.py::test_a_collector_that_never_answers_does_not_hold_up_the_end"),
)
proved(
    "a collector that answers 429, 500 or garbage",
    *telemetry("test_otlp.py::test_a_busy_collector_says_when_to_come_back[429]"),
    *telemetry("test_otlp.py::test_a_failing_collector_is_worth_another_try[500]"),
    *telemetry("test_otlp.py::test_garbage_is_worth_another_try"),
    *telemetry("test_exporting.py::test_a_throttled_export_waits_as_it_was_asked_within_reason"),
)
proved(
    "a collector that dies in mid-run and comes back",
    *telemetry("test_otlp.py::test_a_collector_that_dies_and_comes_back_gets_the_rest"),
    *telemetry("test_otlp.py::test_a_restarted_server_is_found_again_by_grpc"),
)
proved(
    "a full queue",
    *telemetry("test_exporting.py::test_what_does_not_fit_is_lost_and_told_as_a_number"),
    *telemetry("test_processor.py::test_every_drop_is_counted_whichever_thread_it_happens_in"),
    *telemetry("test_processor.py::test_drops_are_a_metric"),
)
proved(
    "an exporter that raises", *telemetry("test_exporting.py::test_whatever_an_export_raises_costs_one_batch")
)
proved(
    "a full disk, a missing permission, what is no file",
    *telemetry(
        "test_file_backend.py::test_on_a_full_disk_nothing_is_written_and_it_goes_on_when_there_is_room"
    ),
    *telemetry("test_file_backend.py::test_a_full_disk_says_what_to_do"),
    *telemetry("test_file_backend.py::test_a_missing_permission_is_told"),
    *telemetry("test_file_backend.py::test_what_is_no_file_is_refused"),
)
proved(
    "wrong credentials",
    *telemetry("test_process.py::test_a_server_that_refuses_is_told_with_what_to_look_at"),
    *telemetry("test_process.py::test_a_secret_that_is_missing_is_named"),
    *plugins("test_plugin_aws_logs.py::test_missing_credentials_are_told"),
    *plugins("test_plugin_datadog.py::test_what_the_intake_answers_becomes_an_error_without_the_key"),
)
proved(
    "a metric with a bad name, a negative duration, 10,000 tag values",
    *telemetry("test_facade.py::test_what_is_wrong_with_a_metric_is_told_once_and_fails_nothing"),
    *telemetry("test_facade.py::test_ten_thousand_tag_values_become_two_thousand_points"),
    *plugins("test_plugin_prometheus.py::test_ten_thousand_values_of_a_tag_are_ten_thousand_series"),
    *plugins("test_plugin_aws_metrics.py::test_ten_thousand_tag_values_are_no_dimensions_unless_wanted"),
)
proved(
    "attributes that cannot be serialised",
    *telemetry("test_facade.py::test_attributes_may_be_anything_and_are_kept_as_they_were"),
    *telemetry("test_caps.py::test_attribute_value_is_always_legal"),
    *telemetry("test_otlp.py::test_strange_values_do_not_cost_the_batch"),
    *telemetry("test_file_backend.py::test_values_that_json_does_not_take_are_written_as_text"),
)
proved(
    "each mistake in the configuration gets one message before the run",
    *telemetry("test_process.py::test_a_mistake_gets_one_message_before_the_run"),
    *telemetry("test_process.py::test_a_plugin_that_is_not_installed_is_named"),
    *telemetry("test_process.py::test_an_exporter_that_the_environment_misspells_is_told"),
    *telemetry("test_otlp.py::test_wrong_options_are_refused"),
    *plugins("test_backends_page.py::test_a_wrong_option_is_refused_where_it_stands"),
)

# --- done when -------------------------------------------------------------------------------------------

proved(
    "a secret planted in a prompt, tools, exceptions, a third-party span, logs and tags reaches no backend",
    *telemetry("test_no_secret_leaves.py"),
)

_telemetry_figures.register(acceptance)

if __name__ == "__main__":
    sys.exit(acceptance.main())
