"""The configuration: its sources, their order, where values came from, and how mistakes are told."""

from __future__ import annotations

import contextlib
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import UNSET

from agentrt import plugins
from agentrt.config import Config, Setting
from agentrt.config.sections import (
    KINDS,
    LEVELS,
    STAGES,
    AuditSection,
    RateLimitsSection,
    SecretsCacheSection,
)
from agentrt.config.state_sections import EncryptionSection, StateSection
from agentrt.errors import ConfigError, PluginError
from agentrt.limits import Limits
from agentrt.middleware.bulkhead import Bulkhead
from agentrt.middleware.circuit_breaker import CircuitBreaker
from agentrt.middleware.defaults import DEADLINES
from agentrt.middleware.defaults import STAGES as STAGE_CLASSES
from agentrt.middleware.fallback import Fallback
from agentrt.middleware.retry import Retry
from agentrt.middleware.throttle import Throttle
from agentrt.middleware.timeout import Timeout
from agentrt.order import ORDER
from agentrt.secrets.env import Env
from agentrt.telemetry.memory import InMemory

Load = Callable[..., Config]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """A configuration from the text of agentrt.toml, overrides, and variables as keywords."""

    def read(text: str | None = None, *overrides: str, **environ: str) -> Config:
        if text is not None:
            (tmp_path / "agentrt.toml").write_text(text)
        return Config.load(directory=tmp_path, environ=environ, overrides=overrides)

    return read


@pytest.fixture
def refused(load: Load) -> Callable[..., str]:
    def message(*given: str, **environ: str) -> str:
        with pytest.raises(ConfigError) as caught:
            load(*given, **environ)
        return str(caught.value)

    return message


def test_the_place_of_a_setting_begins_an_error_about_it(load: Load) -> None:
    config = load("[pipeline]\nuse = ['stages:timing']\n")
    error = config.where("pipeline.use").error("pipeline.use: there is no module 'stages'")
    assert str(error) == "agentrt.toml:2: pipeline.use: there is no module 'stages'"
    config = Config({"pipeline": {"use": ["stages:timing"]}})
    assert str(config.where("pipeline.use").error("no")) == "in code: no"


def test_a_table_of_pyproject_in_agentrt_toml_is_told_what_to_be(refused: Callable[..., str]) -> None:
    assert refused("[tool.agentrt.log]\nlevel = 'info'\n").endswith("in agentrt.toml write [log]")


# --- sources and their order -----------------------------------------------------------------------------


def test_nothing_configured_leaves_every_default(load: Load) -> None:
    config = load()
    assert config.run.timeout is UNSET
    assert config.run.timeout_or(600.0) == 600.0
    assert config.agent.models == []
    assert config.use == ()
    assert config.settings() == []
    assert config.origin("run.timeout") == "default"


def test_the_command_line_wins_over_the_environment_over_the_file(load: Load) -> None:
    text = "[run]\ntimeout = 1\n"
    assert load(text).run.timeout == 1.0
    assert load(text, AGENTRT_RUN__TIMEOUT="2").run.timeout == 2.0
    config = load(text, "run.timeout=3", AGENTRT_RUN__TIMEOUT="2")
    assert config.run.timeout == 3.0
    assert config.origin("run.timeout") == "--set run.timeout"
    assert load(text, "run.timeout=3", "run.timeout=4").run.timeout == 4.0


def test_tables_are_merged_value_by_value(load: Load) -> None:
    config = load(
        '[models.openai]\nbase_url = "a"\nheaders = { x = "1", y = "2" }\n',
        'models.openai.headers={z = "3"}',
        AGENTRT_MODELS__OPENAI__HEADERS__Y="4",
    )
    assert config.model("openai").options == {"base_url": "a", "headers": {"x": "1", "y": "4", "z": "3"}}


def test_every_value_knows_where_it_came_from(load: Load) -> None:
    config = load(
        '[run]\ntimeout = 5\n\n[pipeline]\nuse = ["a:b"]\n[pipeline.model]\nretry = { max_attempts = 2 }\n',
        "pipeline.tool.retry=false",
        AGENTRT_LOG__LEVEL="DEBUG",
    )
    assert config.settings() == [
        Setting("run.timeout", "5", "agentrt.toml:2"),
        Setting("pipeline.use", "['a:b']", "agentrt.toml:5"),
        Setting("pipeline.model.retry.max_attempts", "2", "agentrt.toml:7"),
        Setting("pipeline.tool.retry", "false", "--set pipeline.tool.retry"),
        Setting("log.level", "'DEBUG'", "AGENTRT_LOG__LEVEL"),
    ]
    assert config.log.level == "debug"


def test_the_table_of_a_project_file_is_used(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\n\n[tool.agentrt.run]\ntimeout = 7\n')
    config = Config.load(directory=tmp_path, environ={})
    assert config.run.timeout == 7.0
    assert config.origin("run.timeout") == "pyproject.toml:5"
    assert config.notes == ()


def test_agentrt_toml_wins_over_a_project_file_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.agentrt.run]\ntimeout = 7\n")
    (tmp_path / "agentrt.toml").write_text("[run]\ntimeout = 8\n")
    config = Config.load(directory=tmp_path, environ={})
    assert config.run.timeout == 8.0
    assert config.notes == ("agentrt.toml is used; [tool.agentrt] in pyproject.toml beside it is ignored",)


@pytest.mark.parametrize(
    "text",
    ["", '[project]\ndependencies = ["agentrt"]\n[tool.ruff]\n', "this is not toml", "tool = 3 # agentrt\n"],
)
def test_a_project_file_without_our_table_is_no_concern(tmp_path: Path, text: str) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    assert Config.load(directory=tmp_path, environ={}).settings() == []
    (tmp_path / "agentrt.toml").write_text("[run]\ntimeout = 8\n")
    assert Config.load(directory=tmp_path, environ={}).notes == ()


def test_a_broken_project_file_matters_only_without_a_file_of_our_own(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.agentrt\n")
    with pytest.raises(ConfigError, match=r"^pyproject.toml:1:14: this is not TOML: "):
        Config.load(directory=tmp_path, environ={})
    (tmp_path / "agentrt.toml").write_text("[run]\ntimeout = 8\n")
    assert Config.load(directory=tmp_path, environ={}).run.timeout == 8.0


def test_a_file_given_by_path_is_the_only_one(tmp_path: Path, load: Load) -> None:
    (tmp_path / "agentrt.toml").write_text("[run]\ntimeout = 8\n")
    other = tmp_path / "other.toml"
    other.write_text("[agent]\nmodel = 'scripted:x'\n")
    config = Config.load(other, directory=tmp_path, environ={})
    assert config.run.timeout is UNSET
    assert config.agent.models == ["scripted:x"]
    assert config.origin("agent.model") == f"{other}:2"
    project = tmp_path / "pyproject.toml"
    project.write_text("[tool.agentrt.agent]\nmodel = 'scripted:y'\n")
    assert Config.load(str(project), environ={}).agent.models == ["scripted:y"]


def test_the_process_environment_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGENTRT_RUN__TIMEOUT", "9")
    assert Config.load().run.timeout == 9.0


def test_overrides_may_be_a_mapping(tmp_path: Path) -> None:
    config = Config.load(
        directory=tmp_path, environ={}, overrides={"run.timeout": 3, "pipeline": {"retry": False}}
    )
    assert config.run.timeout == 3.0
    assert config.options_for(Retry, "model").enabled is False
    assert config.origin("run.timeout") == "overrides"


def test_tables_can_be_given_in_code() -> None:
    config = Config({"run": {"timeout": 5}, "models": {"openai": {"base_url": "x"}}})
    assert config.run.timeout == 5.0
    assert config.origin("run.timeout") == "in code"
    with pytest.raises(
        ConfigError, match=r"^in code: run.timeout must be a number or false \(off\), not 'x'$"
    ):
        Config({"run": {"timeout": "x"}})


def test_a_quoted_part_of_a_name_may_hold_a_dot(load: Load) -> None:
    config = load(None, 'models."my.host".base_url=x', "models . other . base_url = y")
    assert config.models == ("my.host", "other")


def test_a_table_in_a_variable_is_merged(load: Load) -> None:
    config = load("[run]\ntimeout = 1\n", AGENTRT_RUN='{"limits": {"steps": 3}}')
    assert config.run.timeout == 1.0
    assert config.make(Limits, "run", "limits").steps == 3


def test_a_value_replaces_a_table_and_a_table_a_value(load: Load) -> None:
    text = "[pipeline.retry]\nmax_attempts = 5\n"
    off = load(text, "pipeline.retry=false")
    assert off.options_for(Retry, "tool").enabled is False
    assert off.options_for(Retry, "tool").options == {}
    on = load("[pipeline]\nretry = false\n", "pipeline.retry.max_attempts=7")
    assert on.options_for(Retry, "tool").options == {"max_attempts": 7}
    assert on.settings() == [Setting("pipeline.retry.max_attempts", "7", "--set pipeline.retry.max_attempts")]


# --- mistakes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[run\n", "agentrt.toml:1:5: this is not TOML: Expected ']' at the end of a table declaration"),
        ("[run]\ntimeout = \n", "agentrt.toml:2:11: this is not TOML: Invalid value"),
        ("a = [1,", "agentrt.toml:1: this is not TOML: "),
        ("[runn]\n", "agentrt.toml:1: there is no section [runn]; did you mean 'run'? There are: "),
        ("[retry]\n", "agentrt.toml:1: there is no section [retry]; did you mean [pipeline.retry]?"),
        (
            "\n[tool.agentrt.run]\ntimeout = 3\n",
            "agentrt.toml:2: there is no section [tool]: [tool.agentrt] is for pyproject.toml; in agentrt.toml",
        ),
        ("[tool.ruff]\n", "agentrt.toml:1: there is no section [tool]; there are: "),
        ("\nrun = 3\n", "agentrt.toml:2: run must be a table, not 3"),
        (
            "[run]\ntimout = 3",
            "agentrt.toml:2: [run] has no 'timout'; did you mean 'timeout'? There are: limits, timeout",
        ),
        ("[run]\ntimeout = 'x'", "agentrt.toml:2: run.timeout must be a number or false (off), not 'x'"),
        (
            "[run]\ntimeout = 0",
            "agentrt.toml:2: [run] timeout must be a number of seconds more than 0, not 0.0",
        ),
        ("[run]\nlimits = 3", "agentrt.toml:2: run.limits must be a table, not 3"),
        ("[log]\nlevel = 'loud'", "agentrt.toml:2: [log] level must be one of 'debug', 'info', "),
        ("[agent]\nmodel = 'gpt'", 'agentrt.toml:2: [agent] model must be "prefix:model" or a list'),
        ("[agent]\nmodel = []", 'agentrt.toml:2: [agent] model must be "prefix:model" or a list'),
        (
            "[agent]\nmodel = 3",
            "agentrt.toml:2: agent.model must be text or a list of texts or false (off), not 3",
        ),
        ("memory = 3", "agentrt.toml:1: memory must be a table, not 3"),
        ("[models]\nopenai = 3", "agentrt.toml:2: models.openai must be a table, not 3"),
        ("[telemetry]\nmemory = 3", "agentrt.toml:2: telemetry.memory must be a table, not 3"),
        ("[secrets]\nprovider = 3", "agentrt.toml:2: secrets.provider must be the name of a provider, not 3"),
        ("[secrets]\nproviders = 3", "agentrt.toml:2: secrets.providers must be a table, not 3"),
        ("[secrets.providers]\naws = 3", "agentrt.toml:2: secrets.providers.aws must be a table, not 3"),
        (
            "[secrets]\nprefix = 'A'\n[secrets.providers.env]\n",
            "agentrt.toml:1: the options of 'env' stand in [secrets] and in [secrets.providers.env]; keep one",
        ),
        (
            "[pipeline]\nretri = false",
            "agentrt.toml:2: [pipeline] has no 'retri'; did you mean 'retry'? There are: ",
        ),
        (
            "[pipeline]\nretry = 3",
            "agentrt.toml:2: pipeline.retry must be a table of the stage's options, or false",
        ),
        ("[pipeline.model]\nretry = 'no'", "agentrt.toml:2: pipeline.model.retry must be a table of"),
        (
            "[pipeline.model]\nretri = 1",
            "agentrt.toml:2: [pipeline.model] has no 'retri'; did you mean 'retry'?",
        ),
        ("[pipeline]\nmodel = 3", "agentrt.toml:2: pipeline.model must be a table, not 3"),
        ("[pipeline]\nuse = 'a:b'", "agentrt.toml:2: pipeline.use must be a list of names such as"),
        ("[pipeline]\nuse = ['a.b']", "agentrt.toml:2: pipeline.use must be a list of names such as"),
        (
            "[pipeline.tool]\ndeadline = 0",
            "agentrt.toml:2: [pipeline.tool] deadline must be a number of seconds more than 0, not 0, or false",
        ),
    ],
)
def test_a_mistake_in_a_file_is_told_with_place_value_and_what_is_allowed(
    refused: Callable[..., str], text: str, message: str
) -> None:
    assert refused(text).startswith(message)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.timeout", "--set wants section.key=value, not 'run.timeout'"),
        ("run.timeout=x", "--set run.timeout: run.timeout must be a number or false (off), not 'x'"),
        ("run.timout=3", "--set run.timout: [run] has no 'timout'; did you mean 'timeout'?"),
        ("rnu.timeout=3", "--set rnu.timeout: there is no section 'rnu'; did you mean 'run'? There are: "),
        ("run=3", "--set run: [run] is a table of settings; name one of them, as run.KEY"),
        ("=3", "--set: '' is not a setting's name such as run.timeout"),
        ("run.=3", "--set: 'run.' is not a setting's name such as run.timeout"),
        ("run..x=3", "--set: 'run..x' is not a setting's name such as run.timeout"),
        ("pipeline.retry=3", "--set pipeline.retry: pipeline.retry must be a table of the stage's options"),
    ],
)
def test_a_mistake_on_the_command_line_is_told(
    refused: Callable[..., str], override: str, message: str
) -> None:
    assert refused(None, override).startswith(message)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (
            "AGENTRT_RUN__TIMEOUT",
            "soon",
            "AGENTRT_RUN__TIMEOUT: run.timeout must be a number or false (off), not 'soon'",
        ),
        ("AGENTRT_RUN__TIMOUT", "3", "AGENTRT_RUN__TIMOUT: [run] has no 'timout'; did you mean 'timeout'?"),
        ("AGENTRT_RNU__TIMEOUT", "3", "AGENTRT_RNU__TIMEOUT: there is no section 'rnu'; did you mean 'run'?"),
        ("AGENTRT_RUN_TIMEOUT", "3", "AGENTRT_RUN_TIMEOUT is no setting; did you mean AGENTRT_RUN__TIMEOUT?"),
        (
            "AGENTRT_MEMORY_MAX_ITEMS",
            "3",
            "AGENTRT_MEMORY_MAX_ITEMS is no setting; did you mean AGENTRT_MEMORY__MAX_ITEMS?",
        ),
        ("AGENTRT_RUN", "3", "AGENTRT_RUN: [run] is a table of settings; name one of them, as run.KEY"),
        ("AGENTRT_RUN__", "3", "AGENTRT_RUN__: a part of its name is empty"),
    ],
)
def test_a_mistake_in_the_environment_is_told(
    refused: Callable[..., str], variable: str, value: str, message: str
) -> None:
    assert refused(**{variable: value}).startswith(message)


def test_variables_that_are_nobodys_setting_are_left_alone(load: Load) -> None:
    config = load(AGENTRT_HOME="/x", AGENTRT_MEMORY_SERVICE_HOST="10.0.0.1", AGENTRT="1", OTHER__X="1")
    assert config.settings() == []
    assert config.notes == (
        "AGENTRT_MEMORY_SERVICE_HOST is ignored: two underscores stand for each dot of a setting",
    )


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^cannot read the configuration file .*missing.toml: No such file"
    ):
        Config.load(tmp_path / "missing.toml", environ={})
    with pytest.raises(ConfigError, match=r": Is a directory$"):
        Config.load(tmp_path, environ={})
    (tmp_path / "binary.toml").write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigError, match=r"binary.toml is not UTF-8 text: byte 5 is 0xff$"):
        Config.load(tmp_path / "binary.toml", environ={})
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    with pytest.raises(ConfigError, match=r"pyproject.toml has no table \[tool.agentrt\]$"):
        Config.load(tmp_path / "pyproject.toml", environ={})
    (tmp_path / "pyproject.toml").write_text("[tool]\nagentrt = 3\n")
    with pytest.raises(ConfigError, match=r"pyproject.toml: tool.agentrt must be a table, not 3$"):
        Config.load(tmp_path / "pyproject.toml", environ={})


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "agentrt.toml").write_bytes(b"\xef\xbb\xbf[run]\ntimeout = 1\n")
    assert Config.load(directory=tmp_path, environ={}).run.timeout == 1.0


# --- secrets never stand in a file -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[models.openai]\napi_key = 'sk-1'\n", "models.openai.api_key"),
        ("[models.openai.headers]\nAuthorization = 'Bearer sk-1'\n", "models.openai.headers.Authorization"),
        ("[secrets]\ntoken = 'sk-1'\n", "secrets.token"),
        ("[telemetry.x]\nheaders = { x-api-key = 'sk-1' }\n", "telemetry.x.headers.x-api-key"),
        ("[telemetry.x]\ntokens = []\npassword = ['sk-1']\n", "telemetry.x.password"),
        ("[[telemetry.x.hosts]]\ntoken = 'sk-1'\n", "telemetry.x.hosts.token"),
    ],
)
def test_a_secret_in_a_file_is_refused_without_showing_it(
    refused: Callable[..., str], text: str, place: str
) -> None:
    message = refused(text)
    assert f": {place} holds a secret; write a reference such as " in message
    assert "sk-1" not in message


def test_a_password_in_a_url_is_refused_without_showing_it(refused: Callable[..., str]) -> None:
    message = refused("[telemetry.x]\nurl = 'redis://:hunter2@host/0'\n")
    assert message == (
        "agentrt.toml:2: telemetry.x.url holds a URL with a password; set AGENTRT_TELEMETRY__X__URL instead: "
        "secrets never stand in a file"
    )


def test_a_header_may_have_a_word_before_its_reference(load: Load) -> None:
    headers = {"authorization": "Bearer secret://env/TOKEN"}
    config = load(f"[telemetry.otlp.headers]\nauthorization = '{headers['authorization']}'\n")
    (otlp,) = config.backends()
    assert otlp.options == {"headers": headers}


def test_references_and_the_environment_are_the_ways_to_give_a_secret(load: Load) -> None:
    config = load("[models.a]\napi_key = 'secret://env/KEY'\n", AGENTRT_MODELS__B__API_KEY="sk-1")
    assert config.model("a").options == {"api_key": "secret://env/KEY"}
    assert config.model("b").options == {"api_key": "sk-1"}
    assert "sk-1" not in repr(config)
    assert "sk-1" not in str(config.settings())
    assert "models.b.api_key='***'" in repr(config)
    assert "sk-1" not in repr(config.model("b"))


# --- plugins ---------------------------------------------------------------------------------------------


def test_a_model_table_makes_its_plugin(load: Load) -> None:
    config = load("[models.work]\nplugin = 'openai'\nbase_url = 'http://x'\n")
    table = config.model("work")
    assert (table.group, table.name, table.plugin) == ("agentrt.models", "work", "openai")
    assert table.options == {"base_url": "http://x"}
    assert config.model("openai").options == {}
    assert config.models == ("work",)


def test_a_plugin_that_does_not_exist_is_placed(load: Load) -> None:
    with pytest.raises(
        PluginError,
        match=r"^agentrt.toml:2: there is no secrets provider 'vualt'; did you mean 'vault'\? There are: aws",
    ):
        load("[secrets]\nprovider = 'vualt'\n").secrets().make()
    with pytest.raises(
        ConfigError, match=r"^agentrt.toml:2: models.a.plugin must be a plugin's name, not 3$"
    ):
        load("[models.a]\nplugin = 3\n").model("a")


def test_a_provider_that_only_a_reference_names_is_placed_nowhere(load: Load) -> None:
    config = load("[secrets.providers.shared]\nplugin = 'env'\n")
    with pytest.raises(
        PluginError,
        match=r"^there is no secrets provider 'sharde'; did you mean 'shared'\? There are: .*shared",
    ):
        config.secrets("sharde")
    assert config.secrets("shared").plugin == "env"
    assert config.secrets("file").make() is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[secrets]\nprovider = 'file'\nprovidr = 'env'\n",
            r"^agentrt.toml:3: \[secrets\] has no 'providr'; did you mean 'provider'\?",
        ),
        (
            "[state]\nencrypted = true\n",
            r"^agentrt.toml:2: \[state\] has no 'encrypted'; did you mean 'encrypt'\? There are: accept_clear, busy",
        ),
    ],
)
def test_a_key_that_neither_the_section_nor_its_plugin_has_is_told_what_both_have(
    load: Load, text: str, message: str
) -> None:
    config = load(text)
    table = config.state_store() if "[state]" in text else config.secrets()
    with pytest.raises(ConfigError, match=message):
        table.make()


def test_a_table_of_a_backend_that_does_not_exist_is_refused_though_it_is_not_used(
    load: Load, refused: Callable[..., str]
) -> None:
    message = refused("[rate_limits]\nbackend = 'memory'\n[rate_limits.redsi]\nurl = 'redis://h'\n")
    assert message.startswith("agentrt.toml:3: [rate_limits.redsi]: there is no backend 'redsi'")
    assert "did you mean 'redis'?" in message
    assert "memory" in message
    load("[rate_limits.redis]\nurl = 'redis://h'\n[rate_limits.memory]\nmax_keys = 5\n")
    load("[rate_limits]\nbackend = 'shared'\n[rate_limits.shared]\nplugin = 'memory'\n")


def test_what_is_no_expression_to_redact_is_told_where_it_stands(refused: Callable[..., str]) -> None:
    message = refused("[telemetry]\nsample = 1\nredact = ['ACME-[0-9]{8}', '(']\n")
    assert message.startswith(
        "agentrt.toml:3: [telemetry] redact: '(' is not a regular expression: missing )"
    )


def test_what_an_audit_log_does_when_it_fails_has_no_off(refused: Callable[..., str]) -> None:
    for value in ("false", "'no'"):
        message = refused(f"[audit]\npath = 'a'\non_failure = {value}\n").replace('"', "'")
        assert message == f"agentrt.toml:3: audit.on_failure must be one of 'refuse', 'warn', not {value}"


def test_an_audit_log_that_is_strict_and_has_no_file_is_refused(load: Load) -> None:
    with pytest.raises(
        ConfigError,
        match=r"^agentrt.toml:3: audit.strict is true, but there is no audit log: set \[audit\] path$",
    ):
        load("[audit]\narguments = 'none'\nstrict = true\n")
    assert load("[audit]\nstrict = true\npath = 'a.jsonl'\n").audit.strict


def test_a_plugin_without_a_table_is_not_placed(load: Load) -> None:
    with pytest.raises(
        PluginError, match=r"^there is no plugin 'opnai' in the group agentrt.models; did you mean"
    ):
        load().model("opnai").make()


def test_telemetry_is_in_memory_unless_backends_are_named(load: Load) -> None:
    assert [table.plugin for table in load().backends()] == ["memory"]
    config = load("[telemetry.memory]\nmax_calls = 5\n[telemetry.x]\n[telemetry.y]\n", "telemetry.y=false")
    assert [table.name for table in config.backends()] == ["memory", "x"]
    backend = config.backends()[0].make()
    assert isinstance(backend, InMemory)
    assert backend.max_calls == 5
    assert load("", "telemetry.memory=false").backends() == []
    assert [table.options for table in load("[telemetry]\nmemory = true\n").backends()] == [{}]


def test_the_options_of_a_secrets_provider_stand_in_its_table(load: Load) -> None:
    config = load("[secrets]\nprefix = 'A_'\n[secrets.providers.test]\nplugin = 'env'\nprefix = 'T_'\n")
    assert config.secrets_provider == "env"
    default, other = config.secrets().make(), config.secrets("test").make()
    assert isinstance(default, Env)
    assert (default.prefix, other.prefix) == ("A_", "T_")
    assert config.secrets("aws").options == {}
    with pytest.raises(
        ConfigError, match=r"^agentrt.toml:2: \[secrets\] has no 'prefx'; did you mean 'prefix'"
    ):
        load("[secrets]\nprefx = 'A_'\n").secrets().make()


def test_the_default_provider_may_be_one_of_the_named(load: Load) -> None:
    config = load("[secrets]\nprovider = 'test'\n[secrets.providers.test]\nplugin = 'env'\nprefix = 'T_'\n")
    assert config.secrets().make().prefix == "T_"
    assert config.secrets("env").make().prefix == ""


# --- the pipeline ----------------------------------------------------------------------------------------


def test_the_stages_that_can_be_configured_are_those_that_exist() -> None:
    assert list(STAGES) == list(STAGE_CLASSES)
    assert [name for name in ORDER if name in STAGES] == list(STAGES)
    assert set(KINDS) == {*DEADLINES, "call"}


@pytest.mark.parametrize("cls", STAGE_CLASSES.values())
def test_every_option_of_a_stage_can_be_configured_unless_it_is_code(cls: Any) -> None:
    code = {"random", "collect", "tracing", "on", "retry_on", "retry_result", "limiter"}
    if cls.name != "rate_limit":  # whose key may be text
        code.add("key")
    parameters = inspect.signature(cls).parameters
    from agentrt.decode import options_of

    assert set(options_of(cls)) == set(parameters) - code


def test_a_stage_is_made_with_what_is_configured_over_the_defaults(load: Load) -> None:
    config = load("[pipeline.retry]\nmax_attempts = 5\nbackoff = 'linear'\n")
    options = config.options_for(Retry, "tool")
    assert options.enabled is True
    assert options.options == {"max_attempts": 5, "backoff": "linear"}
    assert options.sources == {"max_attempts": "agentrt.toml:2", "backoff": "agentrt.toml:3"}
    retry = options.make({"max_attempts": 2, "initial_delay": 0.5})
    assert (retry.max_attempts, retry.backoff, retry.initial_delay) == (5, "linear", 0.5)


def test_a_stage_that_is_not_configured_is_made_of_defaults(load: Load) -> None:
    options = load().options_for(Retry, "tool")
    assert options.enabled is None
    assert options.make({"max_attempts": 2}).max_attempts == 2


def test_the_table_of_a_kind_stands_over_the_general_one_whatever_its_source(load: Load) -> None:
    config = load(
        "[pipeline.retry]\nmax_attempts = 5\nmax_delay = 9\n[pipeline.model.retry]\nmax_attempts = 2\n",
        "pipeline.retry.max_attempts=7",
    )
    model, tool = config.options_for(Retry, "model"), config.options_for(Retry, "tool")
    assert model.options == {"max_attempts": 2, "max_delay": 9.0}
    assert model.sources == {"max_attempts": "agentrt.toml:5", "max_delay": "agentrt.toml:3"}
    assert tool.options == {"max_attempts": 7, "max_delay": 9.0}


def test_false_turns_a_stage_off_for_all_or_one_kind(load: Load) -> None:
    config = load("[pipeline]\nthrottle = false\n[pipeline.tool]\nretry = false\nthrottle = true\n")
    assert config.options_for(Throttle, "model").enabled is False
    assert config.options_for(Throttle, "tool").enabled is True
    assert config.options_for(Retry, "tool").enabled is False
    assert config.options_for(Retry, "model").enabled is None


def test_a_kind_of_the_users_own_has_the_tables_of_call(load: Load) -> None:
    config = load("[pipeline.call]\ndeadline = 3\n[pipeline.call.timeout]\nattempt = 1\n")
    assert config.options_for(Timeout, "payments").options == {"attempt": 1.0}
    assert config.deadline_for("payments", None) == 3.0


def test_a_deadline_is_set_turned_off_or_left(load: Load) -> None:
    config = load("[pipeline.model]\ndeadline = 90\n[pipeline.tool]\ndeadline = false\n")
    assert config.deadline_for("model", 180.0) == 90.0
    assert config.deadline_for("tool", 60.0) is None
    assert config.deadline_for("memory", 5.0) == 5.0


def test_false_is_none_where_a_stage_takes_none(load: Load) -> None:
    config = load("[pipeline]\ntimeout = { attempt = false }\nretry = { budget = false }\n")
    assert config.options_for(Timeout, "model").make().attempt is None
    assert config.options_for(Retry, "model").make().budget is None


def test_a_retry_budget_is_a_table_of_its_own(load: Load) -> None:
    config = load("[pipeline.retry.budget]\nratio = 0.5\nminimum = 1\n", "pipeline.retry.budget.per=9")
    budget = config.options_for(Retry, "model").make().budget
    assert budget is not None
    assert (budget.ratio, budget.per, budget.minimum) == (0.5, 9.0, 1)


def test_fallback_targets_are_a_list(load: Load) -> None:
    config = load("[pipeline.model.fallback]\ntargets = ['a:x', 'b:y']\ndefault = 'sorry'\n")
    fallback = config.options_for(Fallback, "model").make()
    assert (fallback.targets, fallback.default) == (("a:x", "b:y"), "sorry")


@pytest.mark.parametrize(
    ("cls", "text", "message"),
    [
        (
            Retry,
            "[pipeline.retry]\nmax_attempts = 0\n",
            "agentrt.toml:2: [pipeline.retry] max_attempts must be a whole ",
        ),
        (
            Retry,
            "[pipeline.retry]\nmax_atempts = 1\n",
            "agentrt.toml:2: [pipeline.retry] has no 'max_atempts'; did you ",
        ),
        (
            Retry,
            "[pipeline.retry]\nbackoff = 'up'\n",
            "agentrt.toml:2: pipeline.retry.backoff must be one of 'expo",
        ),
        (
            Retry,
            "[pipeline]\nretry.budget.ratio = -1\n",
            "agentrt.toml:2: [pipeline.retry.budget] ratio must be from 0 ",
        ),
        (Retry, "[pipeline.retry]\nretry_on = 'x'\n", "agentrt.toml:2: [pipeline.retry] has no 'retry_on'; "),
        (
            Timeout,
            "[pipeline.tool.timeout]\nattempt = -1\n",
            "agentrt.toml:2: [pipeline.tool.timeout] attempt must be ",
        ),
        (
            Bulkhead,
            "[pipeline]\nbulkhead = true\n",
            "agentrt.toml:2: [pipeline.bulkhead] needs the option 'limit': a ",
        ),
        (
            CircuitBreaker,
            "[pipeline.circuit_breaker]\nwindow_calls = 5\n",
            "agentrt.toml:1: [pipeline.circuit_breaker] minimum_calls must be at most window_calls (5), not 10",
        ),
        (
            Retry,
            "[pipeline.retry]\nmax_attempts = 0\n[pipeline.tool.retry]\nmax_delay = 9\n",
            "agentrt.toml:2: [pipeline.retry] max_attempts must be a whole number",
        ),
    ],
)
def test_an_option_that_a_stage_refuses_is_told_with_its_place(
    load: Load, cls: Any, text: str, message: str
) -> None:
    config = load(text)
    with pytest.raises(ConfigError) as caught:
        config.options_for(cls, "tool").make()
    assert str(caught.value).startswith(message)


def test_a_mistake_about_a_stage_shows_before_it_is_needed(load: Load) -> None:
    for text in (
        "[pipeline.retry]\nmax_attempts = 0\n",
        "[pipeline.memory.retry]\nmax_atempts = 1\n",
        "[pipeline]\npace = true\n",
    ):
        with pytest.raises(ConfigError, match=r"^agentrt.toml:2: "):
            load(text).check_stages(STAGE_CLASSES.values())
    load("[pipeline]\npace = false\nretry = { max_attempts = 1 }\n").check_stages(STAGE_CLASSES.values())
    load("").check_stages(STAGE_CLASSES.values())


def test_limits_are_made_from_their_table(load: Load) -> None:
    config = load("[run.limits]\nsteps = false\ntokens = 1000\n", AGENTRT_RUN__LIMITS__TOOL_CALLS="3")
    assert config.make(Limits, "run", "limits", defaults={"seconds": 5.0}) == Limits(
        steps=None, tokens=1000, tool_calls=3, seconds=5.0
    )
    with pytest.raises(
        ConfigError, match=r"^agentrt.toml:2: limits.steps must be a whole number of at least 1"
    ):
        load("[run.limits]\nsteps = 0\n").make(Limits, "run", "limits")
    with pytest.raises(
        ConfigError, match=r"^agentrt.toml:2: \[run.limits\] has no 'step'; did you mean 'steps'"
    ):
        load("[run.limits]\nstep = 1\n").make(Limits, "run", "limits")


def test_the_timeout_can_be_turned_off(load: Load) -> None:
    assert load("[run]\ntimeout = false\n").run.timeout_or(600.0) is None


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_may_be_written_in_capitals(load: Load, level: str) -> None:
    assert load(AGENTRT_LOG__LEVEL=level.upper()).log.level == level


# --- whatever is written --------------------------------------------------------------------------------

words = st.sampled_from(
    [
        *("run", "agent", "models", "pipeline", "secrets", "telemetry", "memory", "log"),
        *("model", "retry", "timeout", "use", "attempt", "budget", "ratio", "limits", "steps"),
        *("provider", "providers", "plugin", "deadline", "level", "x", "-"),
    ]
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), words),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(words, inner, max_size=3)),
    max_leaves=8,
)


def use_everything(config: Config) -> None:
    config.settings()
    repr(config)
    for cls in STAGE_CLASSES.values():
        for kind in KINDS:
            config.options_for(cls, kind).make({"rate": 1.0} if cls.name == "pace" else {})
    for prefix in config.models:
        config.model(prefix)
    config.backends()
    config.secrets().make()
    config.make(Limits, "run", "limits")


@given(st.dictionaries(words, values, max_size=4))
@example({"pipeline": {"retry": {"budget": {"ratio": float("nan")}}}})
@example({"run": {"timeout": float("inf")}})
@example({"run": {"timeout": 10**400}})
def test_any_tables_are_taken_or_refused_as_a_mistake(tables: dict[str, Any]) -> None:
    with contextlib.suppress(ConfigError, PluginError):
        use_everything(Config(tables))


@given(st.lists(words, min_size=1, max_size=4), st.one_of(st.text(max_size=12), values.map(repr)))
def test_any_variable_is_taken_or_refused_as_a_mistake(names: list[str], text: str) -> None:
    variable = "AGENTRT_" + "__".join(names).upper()
    with contextlib.suppress(ConfigError, PluginError):
        use_everything(Config.load(directory="/nonexistent", environ={variable: text}))
        use_everything(
            Config.load(directory="/nonexistent", environ={}, overrides=[f"{'.'.join(names)}={text}"])
        )


# --- cost ------------------------------------------------------------------------------------------------


def test_without_a_file_nothing_is_parsed_or_scanned(tmp_path: Path) -> None:
    code = (
        "import sys; from agentrt.config import Config; Config.load(environ={'AGENTRT_RUN__TIMEOUT': '3'});"
        "print(sorted({'tomllib', 'difflib', 'importlib.metadata', 'agentrt.config.toml_lines',"
        "'agentrt.config.dotenv', 'agentrt.middleware', 'pathlib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {sys.path!r}; {code}"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert done.stdout == "[]\n"


def test_lines_are_looked_for_only_when_they_are_shown(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def key_lines(text: str) -> dict[tuple[str, ...], int]:
        asked.append(text)
        return {}

    monkeypatch.setattr("agentrt.config.toml_lines.key_lines", key_lines)
    config = load("[pipeline.retry]\nmax_attempts = 5\n")
    options = config.options_for(Retry, "model")
    options.make()
    assert asked == []
    assert options.sources == {"max_attempts": "agentrt.toml"}
    assert len(asked) == 1


PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"


@pytest.mark.parametrize(
    ("table", "classes"),
    [
        ("secrets.cache", (SecretsCacheSection,)),
        ("state", (StateSection, plugins.load("agentrt.state", "sqlite"))),
        ("encryption", (EncryptionSection,)),
        ("rate_limits", (RateLimitsSection,)),
        ("rate_limits.memory", (plugins.load("agentrt.rate_limits", "memory"),)),
        ("rate_limits.redis", (plugins.load("agentrt.rate_limits", "redis"),)),
        ("audit", (AuditSection,)),
    ],
)
def test_the_documentation_has_every_key_of_the_sections_of_security_and_its_default(
    table: str, classes: tuple[type, ...]
) -> None:
    line = next(line for line in PAGE.read_text().splitlines() if line.startswith(f"| `[{table}]` |"))
    for name, parameter in (
        (name, p) for cls in classes for name, p in inspect.signature(cls).parameters.items()
    ):
        match parameter.default:
            case bool() as default:
                assert f"`{name}` {str(default).lower()}" in line
            case int() | float() as default:
                assert f"`{name}` {default:.10g}" in line
            case str() as default:
                assert f'`{name}` `"{default}"`' in line
            case _:  # none, or one that has no form in TOML
                assert f"`{name}`" in line
