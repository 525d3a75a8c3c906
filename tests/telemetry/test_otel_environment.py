"""The OTEL_* variables: what they mean to us, and that a wrong one is told and does no harm."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from agentrt.errors import ConfigError, PluginError
from agentrt.telemetry.otel_environment import Batching, OtelEnvironment, hand_over

read = OtelEnvironment.read


def test_without_variables_nothing_is_asked_for() -> None:
    assert read({}) == OtelEnvironment()
    assert read(
        {"OTEL_SERVICE_NAME": " ", "OTEL_TRACES_EXPORTER": "", "OTEL_BSP_SCHEDULE_DELAY": ""}
    ) == read({})
    assert read({}).sample is None


def test_the_process_environment_is_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    assert read().service == "shop"


@pytest.mark.parametrize(("value", "disabled"), [("true", True), ("TRUE", True), ("false", False)])
def test_everything_can_be_disabled(value: str, disabled: bool) -> None:
    found = read({"OTEL_SDK_DISABLED": value})
    assert (found.disabled, found.warnings) == (disabled, ())


def test_the_service_and_its_attributes_are_read() -> None:
    attributes = "service.name=a,deployment.environment.name=prod%2Ceu, team = x=y "
    found = read({"OTEL_RESOURCE_ATTRIBUTES": attributes})
    assert found.service == "a"
    assert found.resource == {"deployment.environment.name": "prod,eu", "team": "x=y"}
    assert read({"OTEL_RESOURCE_ATTRIBUTES": attributes, "OTEL_SERVICE_NAME": "b"}).service == "b"


def test_an_endpoint_asks_for_otlp() -> None:
    assert read({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}).exporters == {
        "otlp": ("spans", "metrics", "logs")
    }
    assert read({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c:4318/x"}).exporters == {
        "otlp": ("metrics",)
    }


def test_exporters_are_named_by_signal() -> None:
    found = read(
        {
            "OTEL_TRACES_EXPORTER": "otlp, console,otlp",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318",
        }
    )
    assert found.exporters == {"otlp": ("spans", "logs"), "console": ("spans",)}
    assert found.off == ("metrics",)
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("sampler", "argument", "sample", "parent_based"),
    [
        ("always_on", "0.5", 1.0, False),
        ("always_off", None, 0.0, False),
        ("traceidratio", "0.25", 0.25, False),
        ("traceidratio", None, 1.0, False),
        ("parentbased_always_on", None, 1.0, True),
        ("parentbased_always_off", None, 0.0, True),
        ("ParentBased_TraceIdRatio", "0", 0.0, True),
    ],
)
def test_each_sampler_is_a_part_of_all_traces(
    sampler: str, argument: str | None, sample: float, parent_based: bool
) -> None:
    environ = {"OTEL_TRACES_SAMPLER": sampler}
    if argument is not None:
        environ["OTEL_TRACES_SAMPLER_ARG"] = argument
    found = read(environ)
    assert (found.sample, found.parent_based, found.warnings) == (sample, parent_based, ())


def test_batching_is_in_seconds() -> None:
    found = read(
        {
            "OTEL_BSP_SCHEDULE_DELAY": "2500",
            "OTEL_BSP_EXPORT_TIMEOUT": "30000",
            "OTEL_BSP_MAX_QUEUE_SIZE": "100",
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "50",
            "OTEL_BLRP_SCHEDULE_DELAY": "1000",
            "OTEL_METRIC_EXPORT_INTERVAL": "60000",
            "OTEL_METRIC_EXPORT_TIMEOUT": "500",
        }
    )
    assert found.spans == Batching(2.5, 30.0, 100, 50)
    assert found.logs == Batching(1.0)
    assert found.metrics == Batching(60.0, 0.5)


def test_the_length_of_values_is_limited_for_spans_first() -> None:
    both = {"OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "100", "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": "0"}
    assert read(both).value_length == 0
    assert read({"OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "100"}).value_length == 100


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("OTEL_SDK_DISABLED", "1", "must be 'true' or 'false'; false is used"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=1,b", "'b' must look like name=value; none of it is used"),
        ("OTEL_RESOURCE_ATTRIBUTES", "=1", "must look like name=value"),
        ("OTEL_TRACES_EXPORTER", "none,console", "'none' beside others counts for nothing, console is used"),
        ("OTEL_TRACES_SAMPLER", "xray", "must be one of always_on, always_off"),
        ("OTEL_BSP_SCHEDULE_DELAY", "5s", "whole number of milliseconds greater than 0; the default is used"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-1", "whole number of at least 1; the default is used"),
        ("OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", "many", "whole number of at least 1"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "0", "greater than 0"),
        ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "1.5", "whole number of at least 0"),
    ],
)
def test_a_wrong_value_is_told_with_its_variable(variable: str, value: str, message: str) -> None:
    found = read({variable: value})
    (warning,) = found.warnings
    assert warning.startswith(f"{variable}={value!r}: ")
    assert message in warning
    assert not found.disabled
    assert found.resource == {}
    assert (found.spans, found.metrics, found.logs, found.value_length) == (
        Batching(),
        Batching(),
        Batching(),
        None,
    )


@pytest.mark.parametrize("argument", ["1.5", "-0.1", "half", "nan"])
def test_a_wrong_ratio_is_told_and_everything_is_kept(argument: str) -> None:
    found = read({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": argument})
    assert found.sample == 1.0
    (warning,) = found.warnings
    assert warning == (
        f"OTEL_TRACES_SAMPLER_ARG={argument!r}: it must be a number from 0 to 1; the default is used"
    )


def test_a_batch_is_no_larger_than_its_queue() -> None:
    found = read({"OTEL_BSP_MAX_QUEUE_SIZE": "10", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "20"})
    assert found.spans.batch_size == 10
    assert "the queue holds only 10" in found.warnings[0]


def test_reading_loads_nothing_of_opentelemetry() -> None:
    program = (
        "import sys; from agentrt.telemetry.otel_environment import OtelEnvironment; OtelEnvironment.read();"
        "from agentrt.telemetry.otlp import Otlp; Otlp();"
        "print([name for name in sys.modules if name.split('.')[0] in ('opentelemetry', 'grpc', 'httpx2')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- OTEL_CONFIG_FILE ------------------------------------------------------------------------------------


@pytest.fixture
def configuration(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The two functions of opentelemetry-configuration that are used, which is not among our dependencies."""
    seen = SimpleNamespace(configured=[], error=None)

    def load_config_file(path: str) -> str:
        if seen.error is not None:
            raise seen.error
        return f"model of {path}"

    module = ModuleType("opentelemetry.configuration")
    module.__dict__.update(load_config_file=load_config_file, configure_sdk=seen.configured.append)
    monkeypatch.setitem(sys.modules, "opentelemetry.configuration", module)
    return seen


def test_the_sdk_is_set_up_from_a_file(tmp_path: Path, configuration: SimpleNamespace) -> None:
    file = tmp_path / "otel.yaml"
    file.write_text("file_format: '1.0'\n")
    assert read({"OTEL_CONFIG_FILE": str(file)}).config_file == str(file)
    hand_over(file)
    assert configuration.configured == [f"model of {file}"]


def test_a_file_that_the_sdk_does_not_understand_is_named(
    tmp_path: Path, configuration: SimpleNamespace
) -> None:
    file = tmp_path / "otel.yaml"
    file.write_text("nonsense")
    configuration.error = ValueError("not a mapping")
    with pytest.raises(ConfigError, match=r"otel\.yaml cannot be used: not a mapping"):
        hand_over(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"OTEL_CONFIG_FILE: there is no file '.*none\.yaml'"):
        hand_over(tmp_path / "none.yaml")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.configuration", None)
    file = tmp_path / "otel.yaml"
    file.write_text("file_format: '1.0'\n")
    with pytest.raises(PluginError, match="pip install opentelemetry-configuration"):
        hand_over(file)
