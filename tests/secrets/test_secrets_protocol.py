"""References, errors and the type that does not show its value."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import logging
import pickle
import pprint
import string
import traceback
from collections.abc import Callable
from typing import Any

import loguru
import msgspec
import pydantic
import pydantic_core
import pytest
import rich
import rich.console
import rich.pretty
import rich.traceback
from hypothesis import given
from hypothesis import strategies as st

from agentrt.config.sections import SecretsCacheSection
from agentrt.errors import AgentrtError, ConfigError, classify
from agentrt.secrets import (
    Secret,
    SecretDenied,
    SecretError,
    SecretInvalid,
    SecretNotFound,
    SecretRef,
    SecretThrottled,
    SecretUnavailable,
    SecretValue,
)
from agentrt.secrets.cache import keep

VALUE = "sk-very-secret"


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("secret://NAME", SecretRef("NAME")),
        ("secret://env/NAME", SecretRef("NAME", "env")),
        ("secret://aws/prod/db", SecretRef("prod/db", "aws")),
        ("secret:///prod/db", SecretRef("prod/db")),
        ("secret://db#password", SecretRef("db", key=("password",))),
        ("secret://aws/db#users.admin", SecretRef("db", "aws", ("users", "admin"))),
        ("secret://aws/db?version=3", SecretRef("db", "aws", version="3")),
        ("secret://aws/db#a?version=3", SecretRef("db", "aws", ("a",), "3")),
        ("secret://aws/db?version=3#a", SecretRef("db", "aws", ("a",), "3")),
        ("secret://a%2Fb/c%23d%3Fe", SecretRef("c#d?e", "a/b")),
        ("secret://db#a%2Eb.c", SecretRef("db", key=("a.b", "c"))),
        ("secret://arn:aws:x/y", SecretRef("y", "arn:aws:x")),
    ],
)
def test_a_reference_has_provider_name_key_and_version(text: str, ref: SecretRef) -> None:
    assert SecretRef.parse(text) == ref
    assert SecretRef.parse(str(ref)) == ref


names = st.text(min_size=1).filter(lambda text: text.isprintable())


@given(names, st.none() | names, st.lists(names, max_size=3), st.none() | names)
def test_any_reference_survives_being_written(
    name: str, provider: str | None, key: list[str], version: str | None
) -> None:
    ref = SecretRef(name, provider, tuple(key), version)
    assert SecretRef.parse(str(ref)) == ref


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("secret://", "has no name"),
        ("secret://env/", "has no name"),
        ("secret://#a", "has no name"),
        ("secret://a#", "has an empty key after the #"),
        ("secret://a#b..c", "has an empty key after the #"),
        ("secret://a?version=", "has an empty version"),
        ("secret://a?v=1", "has something else after '?' than one key or version=..."),
        ("secret://a#b#c", "has something else after '#' than one key or version=..."),
        ("secret://a?version=1?version=2", "has something else after '?'"),
        ("secret://a#b?version=1#c", "has more than one key or version"),
    ],
)
def test_a_malformed_reference_is_a_mistake_in_the_configuration(text: str, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SecretRef.parse(text)
    assert str(caught.value).startswith(f"'{text}' {why}")


def test_a_secret_in_place_of_a_reference_is_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        SecretRef.parse(VALUE)
    assert "very" not in str(caught.value)
    assert "does not begin with secret://" in str(caught.value)


def test_each_error_means_to_the_pipeline_what_it_is() -> None:
    labels = {
        type(error): classify(error).name
        for error in (
            SecretNotFound("x"),
            SecretInvalid("x"),
            SecretDenied("x"),
            SecretThrottled("x", retry_after=3.0),
            SecretUnavailable("x"),
        )
    }
    assert labels == {
        SecretNotFound: "request_fault",
        SecretInvalid: "request_fault",
        SecretDenied: "target_fault",
        SecretThrottled: "throttled",
        SecretUnavailable: "transient",
    }
    for error in labels:
        assert issubclass(error, SecretError)
        assert issubclass(error, AgentrtError)
    assert SecretThrottled("x", retry_after=3.0).retry_after == 3.0


@pytest.mark.parametrize(
    "show",
    [
        repr,
        str,
        "{}".format,
        "{:>40}".format,
        "%s".__mod__,
        "%r".__mod__,
        lambda secret: repr([secret]),
        lambda secret: json.dumps(secret, default=str),
        lambda secret: msgspec.json.encode({"key": secret}).decode(),
        lambda secret: msgspec.msgpack.encode(secret).decode(errors="replace"),
        lambda secret: str(msgspec.to_builtins(secret)),
        lambda secret: str(dataclasses.asdict(secret)),
        lambda secret: str(dataclasses.astuple(secret)),
        lambda secret: pickle.dumps(secret).decode(errors="replace"),
        lambda secret: pickle.dumps(secret, protocol=0).decode(),
        lambda secret: str(secret.__getstate__()),
        lambda secret: pprint.pformat({"key": secret}, width=10),
        lambda secret: string.Template("$key").substitute(key=secret),
        lambda secret: pydantic.TypeAdapter(Secret).dump_json(secret).decode(),
        lambda secret: str(pydantic.TypeAdapter(Secret).dump_python(secret)),
        lambda secret: str(pydantic_core.to_jsonable_python(Holder(secret))),
        lambda secret: repr(Holder(secret)) + str(dataclasses.asdict(Holder(secret))),
        lambda secret: json.dumps(secret, default=msgspec.to_builtins),
        lambda secret: str(rich.pretty.pretty_repr({"key": secret})),
        lambda secret: rich_inspection(secret),
    ],
)
def test_a_secret_does_not_show_itself(show: Callable[[Any], str]) -> None:
    shown = show(Secret(VALUE, name="secret://env/KEY"))
    assert VALUE not in shown
    assert "very" not in shown


@dataclasses.dataclass
class Holder:
    secret: Secret


def rich_inspection(secret: Secret) -> str:
    console = rich.console.Console(file=io.StringIO(), width=200)
    rich.inspect(secret, console=console, methods=True)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_a_log_record_does_not_show_it(caplog: pytest.LogCaptureFixture) -> None:
    secret = Secret(VALUE, name="secret://env/KEY")
    logger = logging.getLogger("tests.secrets")
    logger.warning("the key is %s, %r, %20s", secret, secret, secret, extra={"key": secret})
    logger.warning("%(key)s", {"key": secret})
    logger.error(secret)
    written = io.StringIO()
    sink = loguru.logger.add(written, serialize=True, format="{message} {extra}")
    loguru.logger.bind(key=secret).warning("the key is {}", secret)
    loguru.logger.remove(sink)
    assert VALUE not in caplog.text + written.getvalue()
    assert caplog.text.count("**********") >= 5
    assert "**********" in written.getvalue()


def test_tracebacks_with_local_variables_do_not_show_it() -> None:
    def fails(secret: Secret) -> None:
        found = SecretValue("sk-" + "very-secret", lease="l")
        again = {"in": [secret], "value": found, "kept": keep(found, 0.0, SecretsCacheSection())}
        raise ValueError(f"{again} {secret}")

    written = io.StringIO()
    sink = loguru.logger.add(written, diagnose=True, backtrace=True)
    console = rich.console.Console(file=io.StringIO(), width=200)
    told, hidden = "", Secret(VALUE, name="secret://env/KEY")
    try:
        fails(hidden)
    except ValueError as error:
        console.print(
            rich.traceback.Traceback.from_exception(
                type(error), error, error.__traceback__, show_locals=True, locals_hide_dunder=False
            )
        )
        told = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
        loguru.logger.opt(exception=True).error("failed")
    loguru.logger.remove(sink)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "secret = Secret('**********')" in shown
    for text in (shown, told, written.getvalue()):
        assert "**********" in text
        assert VALUE not in text


def test_who_reveals_is_told_of_and_copies_are_too() -> None:
    reveals: list[str] = []
    secret = Secret(VALUE, name="secret://env/KEY", on_reveal=reveals.append)
    assert repr(secret) + str(secret) + f"{secret:>20}"
    assert secret == Secret(VALUE)
    assert secret
    assert reveals == []
    assert copy.deepcopy([secret])[0].reveal() == VALUE
    assert reveals == ["secret://env/KEY"]


def test_only_reveal_gives_the_value() -> None:
    secret = Secret(VALUE, name="secret://env/KEY")
    assert secret.reveal() == VALUE
    assert secret.name == "secret://env/KEY"
    assert str(secret) == "**********"
    assert msgspec.json.encode(secret) == b'{"secret":"**********"}'


def test_text_cannot_be_made_of_it_by_accident() -> None:
    secret = Secret(VALUE)
    with pytest.raises(TypeError):
        "Bearer " + secret  # type: ignore[operator]
    with pytest.raises(TypeError):
        "".join(secret)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        json.dumps(secret)


def test_a_pickle_leaves_the_value_behind() -> None:
    thawed = pickle.loads(pickle.dumps(Secret(VALUE, name="n")))
    assert str(thawed) == "**********"
    with pytest.raises(ValueError, match="this copy of the secret 'n' was pickled"):
        thawed.reveal()


def test_copies_in_this_process_keep_it() -> None:
    secret = Secret(VALUE)
    assert copy.copy(secret) is secret
    assert copy.deepcopy([secret])[0].reveal() == VALUE


def test_secrets_compare_by_value() -> None:
    assert Secret("a") == Secret("a", name="other")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2
    assert not Secret("")


def test_a_secret_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Secret("a").secret = "b"  # type: ignore[misc]


def test_what_a_provider_returned_does_not_show_itself() -> None:
    for found in (SecretValue(VALUE, version="3", ttl=60.0), keep(VALUE, 0.0, SecretsCacheSection())):
        assert VALUE not in repr(found) + rich.pretty.pretty_repr(found)
