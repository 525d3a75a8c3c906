"""Redaction: registered secrets in every guise, and every part of a signal."""

from __future__ import annotations

import base64
import json
import re
import threading
from typing import Any
from urllib.parse import quote, quote_plus, urlencode

import msgspec
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from agentrt.errors import ConfigError
from agentrt.telemetry import redaction, secret_values
from agentrt.telemetry.caps import cap_attributes, json_within
from agentrt.telemetry.redaction import MARK, Redactor, names_a_secret
from agentrt.telemetry.signals import Link, LogLine, Metric, Point, Span, SpanEvent

SECRET = "Zq7-correct/horse+battery=staple"
ORDINARY = (
    "The agent asked the model for a plan, then called the search tool with 2 arguments at 10:30. "
    "It found three documents about the weather in Oslo (12 degrees) and one about trains: all were short. "
)


def knowing(*values: str) -> Redactor:
    redactor = Redactor()
    for value in values:
        redactor.add(value)
    return redactor


# --- registered values ---------------------------------------------------------------------------------


def disguises(secret: str) -> dict[str, str]:
    """Texts in which the secret stands, made as programs make them, and not by what is tested."""
    data = secret.encode()
    in_json = json.dumps({"a": f"<{secret}>"})
    return {
        "plain": f"it is {secret}, yes",
        "repr": repr({"a": secret}),
        "repr with both quotes": repr(f"'\"{secret}"),
        "repr of bytes": repr(data),
        "ascii": ascii([secret]),
        "json": in_json,
        "wide json": json.dumps([secret], ensure_ascii=False),
        "msgspec": msgspec.json.encode([secret]).decode(),
        "json in json": json.dumps({"arguments": in_json}),
        "json in repr": repr(in_json),
        "url path": "https://x.test/" + quote(secret),
        "url part": "https://x.test/?a=" + quote(secret, safe="") + "&b=1",
        "form": urlencode({"value": secret, "b": "c"}),
        "lower-case escapes": "a=" + re.sub("%..", lambda match: match[0].lower(), quote_plus(secret)),
        "base64": base64.b64encode(data).decode(),
        "url-safe base64": base64.urlsafe_b64encode(data).decode(),
        **{
            f"base64 after {before}": base64.b64encode(b"user:"[:before] + data + b":after").decode()
            for before in range(6)
        },
        "url-safe base64 inside": base64.urlsafe_b64encode(b"k" + data + b"t").decode(),
        "basic header": "Basic " + base64.b64encode(b"someone:" + data).decode(),
    }


def shows(text: str, secret: str) -> bool:
    """Whether somebody who undoes any of the disguises would read the secret, or all but an end of it."""
    data = secret.encode()
    if secret in text or repr(secret)[1:-1] in text or json.dumps(secret)[1:-1] in text:
        return True
    if quote(secret, safe="") in text or quote_plus(secret) in text:
        return True
    for before in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            core = encode(b"\0" * before + data + b"\0\0")[4 if before else 0 :]
            if core[: (len(data) - (3 - before) % 3) // 3 * 4].decode() in text:
                return True
    return False


AWKWARD = "Zq7-correct\"horse\\battery's<staple>&\u00e9\n"


@pytest.mark.parametrize("secret", [SECRET, AWKWARD + "end of it"])
@pytest.mark.parametrize("disguise", disguises(SECRET))
def test_a_registered_secret_is_found_in(disguise: str, secret: str) -> None:
    redacted = knowing(secret).text(disguises(secret)[disguise])
    assert MARK in redacted
    assert not shows(redacted, secret)
    assert not any(piece in redacted for piece in ("correct", "horse", "battery", "staple"))


def test_a_value_inside_another_leaves_nothing_of_it() -> None:
    assert (
        knowing("value-inside", "long-value-inside-another").text("(long-value-inside-another)")
        == f"({MARK})"
    )


# A mark, or a piece of one, may always stand in the output: no brackets, and not the letters of the mark alone.
SECRETS = st.text(
    st.characters(exclude_characters="[]", exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp")),
    min_size=6,
    max_size=40,
).filter(lambda value: value not in MARK and value == value.strip())


@given(st.lists(SECRETS, min_size=1, max_size=5), st.text(max_size=20), st.data())
@example(["a\"b\\c'd&<é", "aaaaaaa"], "aaaa", None)
def test_no_registered_secret_is_left_in_any_disguise(
    secrets: list[str], around: str, data: st.DataObject | None
) -> None:
    redactor = knowing(*secrets)
    for secret in secrets:
        for text in disguises(secret).values():
            assert not shows(redactor.text(around + text + around), secret)
    if data is not None:
        mixed = around.join(data.draw(st.permutations(secrets)))
        assert not any(secret in redactor.text(mixed) for secret in secrets)


@given(st.text(st.sampled_from("ab"), min_size=6, max_size=9), st.text(st.sampled_from("ab"), max_size=60))
def test_overlapping_occurrences_are_all_found(secret: str, text: str) -> None:
    assert secret not in knowing(secret).text(text)


@given(st.lists(SECRETS, max_size=3), st.text())
def test_redacting_again_changes_nothing(secrets: list[str], text: str) -> None:
    redactor = knowing(*secrets)
    once = redactor.text(text + "".join(secrets) + " password=" + text)
    assume(not any(part in MARK for secret in secrets for part in (secret[:6], secret[-6:])))
    assert redactor.text(once) == once


def test_redacted_json_is_json() -> None:
    document = {
        "a": SECRET,
        "password": 12345,
        "token": "abcdefgh",
        "inner": json.dumps({"api_key": 'it\'s "x"'}),
    }
    redacted = json.loads(knowing(SECRET).text(json.dumps(document)))
    assert redacted["a"] == redacted["password"] == redacted["token"] == MARK
    assert json.loads(redacted["inner"]) == {"api_key": MARK}


def test_a_secret_of_many_lines_is_found_line_by_line() -> None:
    redactor = knowing("first line of it\nshort\n  second line of it  \n")
    assert redactor.text("> first line of it") == f"> {MARK}"
    assert redactor.text("> second line of it") == f"> {MARK}"
    assert redactor.text("short") == "short"
    assert redactor.text("first line of it\nshort\n  second line of it") == MARK


def test_a_registered_private_key_does_not_hide_the_frame_of_another() -> None:
    def pem(body: str) -> str:
        return f"-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----"

    assert knowing(pem("A" * 64)).text(pem("B" * 64)) == MARK


def test_blanks_around_a_value_do_not_count() -> None:
    assert knowing(f"{SECRET}\n").text(f"[{SECRET}]") == f"[{MARK}]"


@pytest.mark.parametrize("value", ["", "short", "  short   ", "redacted", MARK])
def test_a_value_that_would_make_text_unreadable_is_ignored(value: str) -> None:
    redactor = knowing(value)
    assert len(redactor) == 0
    assert redactor.text("a short text, [redacted]") == "a short text, [redacted]"


def test_the_newest_values_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secret_values, "MAX_VALUES", 3)
    redactor = knowing("value-1", "value-2", "value-3")
    redactor.add("value-1")  # newest again
    redactor.add("value-4")
    assert len(redactor) == 3
    assert redactor.text("value-1 value-2 value-3 value-4") == f"{MARK} value-2 {MARK} {MARK}"


def test_a_guise_that_two_values_share_outlives_one_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secret_values, "MAX_VALUES", 1)
    redactor = knowing("shared line\nfirst one", "shared line\nother one")
    assert redactor.text("shared line, first one, other one") == f"{MARK}, first one, {MARK}"


def test_many_secrets_with_the_same_beginning_are_told_apart() -> None:
    redactor = knowing(*(f"same-beginning-{number:04}" for number in range(500)))
    assert redactor.text("same-beginning-0499 same-beginning-0500") == f"{MARK} same-beginning-0500"


def test_a_text_remembered_as_clean_is_searched_again_for_a_new_secret() -> None:
    redactor = Redactor()
    attributes = {"opal-fruit": "opal-fruit"}
    assert redactor.attributes(attributes) is attributes
    redactor.add("opal-fruit")
    assert redactor.text("opal-fruit") == MARK
    assert redactor.attributes(attributes) == {MARK: MARK}


def test_what_is_remembered_is_bounded() -> None:
    redactor = Redactor()
    for number in range(20_000):
        redactor.attributes({f"key-{number}": f"text-{number}"})
    assert len(redactor._clean) <= 2 * redaction._REMEMBERED
    assert len(redactor._rules) <= redaction._REMEMBERED


def test_threads_may_register_and_redact_at_once() -> None:
    redactor = Redactor()
    leaks: list[str] = []

    def work(thread: int) -> None:
        for number in range(200):
            secret = f"secret-{thread}-{number}-of-a-thread"
            redactor.add(secret)
            text = f"{ORDINARY}{secret}"
            if secret in redactor.text(text):
                leaks.append(secret)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert leaks == []
    assert len(redactor) == 1600


# --- attributes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        *(
            "password",
            "db.password",
            "DB_PASSWORD",
            "userPassword",
            "passwd",
            "secret",
            "client-secret",
            "secrets",
        ),
        *("token", "access_token", "accessToken", "auth.token", "id_token", "token.value"),
        *("apikey", "api_key", "api-key", "apiKey", "APIKey", "x-api-key", "http.request.header.x-api-key"),
        *(
            "authorization",
            "http.request.header.authorization",
            "Proxy-Authorization",
            "cookie",
            "Set-Cookie",
        ),
        *("private_key", "privateKey", "aws_secret_access_key", "account.key", "credential", "credentials"),
        *("connection_string", "connectionString", "db.connection_string"),
    ],
)
def test_the_value_of_a_key_that_names_a_secret_is_replaced_whatever_it_is(key: str) -> None:
    redactor = Redactor()
    for value in ("x", 5, True, None, ["a"], {"b": 1}):
        assert redactor.attributes({"a": 1, key: value}) == {"a": 1, key: MARK}
        assert redactor.value([{key: value}]) == [{key: MARK}]


@pytest.mark.parametrize(
    "key",
    [
        *("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens", "gen_ai.usage.cache_read.input_tokens"),
        *(
            "gen_ai.token.type",
            "gen_ai.request.max_tokens",
            "total_tokens",
            "tokens",
            "token_count",
            "token.count",
        ),
        *("max_token", "time_to_first_token", "seconds_per_token", "token_type", "token_limit"),
        *("agentrt.secret", "agentrt.target", "agentrt.token"),
        *(
            "key",
            "monkey",
            "keyboard",
            "author",
            "tokenizer",
            "secretary",
            "password_file",
            "token_url",
            "session.id",
        ),
    ],
)
def test_other_keys_keep_their_value(key: str) -> None:
    attributes = {key: 5}
    assert Redactor().attributes(attributes) is attributes
    assert not names_a_secret(key)


def test_a_registered_secret_in_an_attribute_of_ours_is_redacted_all_the_same() -> None:
    assert knowing(SECRET).attributes({"agentrt.target": SECRET}) == {"agentrt.target": MARK}


def test_attributes_are_searched_however_deep_and_keys_too() -> None:
    found = knowing(SECRET).attributes(
        {
            "list": ["a", SECRET],
            "tuple": ("a", f"x{SECRET}"),
            "dict": {"b": [{"c": SECRET, "password": 1, SECRET: 2}]},
            SECRET: "value",
            "n": 1,
        }
    )
    assert found == {
        "list": ["a", MARK],
        "tuple": ["a", f"x{MARK}"],
        "dict": {"b": [{"c": MARK, "password": MARK, MARK: 2}]},
        MARK: "value",
        "n": 1,
    }


def test_an_object_in_an_attribute_is_searched_as_what_it_shows() -> None:
    class Client:
        def __repr__(self) -> str:
            return f"Client({SECRET!r})"

    class Login(msgspec.Struct):
        user: str
        password: str

    found = knowing(SECRET).attributes({"a": Client(), "b": Login("ada", "x"), "c": SECRET.encode()})
    assert found == {"a": f"Client('{MARK}')", "b": {"user": "ada", "password": MARK}, "c": MARK}


def test_more_keys_and_patterns_come_from_the_configuration() -> None:
    redactor = Redactor(patterns=[r"\bEMP-\d{6}\b"], keys=["iban", "tax number"])
    assert redactor.text("employee EMP-123456") == f"employee {MARK}"
    assert redactor.text('{"iban": "DE12", "taxNumber": 5}') == f'{{"iban": "{MARK}", "taxNumber": "{MARK}"}}'
    assert redactor.attributes({"customer.iban": 1, "tax_number": 2, "tax": 3}) == {
        "customer.iban": MARK,
        "tax_number": MARK,
        "tax": 3,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patterns": ["ok", "(broken"]}, r"patterns: '\(broken' is not a regular expression: missing \)"),
        ({"patterns": ["x*"]}, r"patterns: 'x\*' matches the empty text"),
        ({"patterns": "abc"}, "patterns must be a list of texts, not 'abc'"),
        ({"patterns": [1]}, r"patterns must be a list of texts, not \[1\]"),
        ({"keys": ["--"]}, "keys must be names with a letter or a digit, not '--'"),
        ({"keys": "iban"}, "keys must be a list of texts, not 'iban'"),
    ],
)
def test_a_mistake_in_the_configuration_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Redactor(**options)


# --- signals -------------------------------------------------------------------------------------------


def span(text: str) -> Span:
    return Span(
        f"chat {text}",
        "0" * 32,
        "1" * 16,
        None,
        1,
        2,
        attributes={"a": text},
        events=(
            SpanEvent("clean", 1),
            SpanEvent("exception", 2, {"exception.stacktrace": f"File x\n  {text}"}),
        ),
        links=(Link("0" * 32, "2" * 16, {"b": text}),),
        status="error",
        message=f"failed: {text}",
        scope="theirs",
    )


def test_a_secret_is_taken_from_every_part_of_a_span() -> None:
    assert knowing(SECRET).span(span(SECRET)) == span(MARK)


@pytest.mark.parametrize("part", ["name", "message", "attributes", "events", "links"])
def test_one_part_is_enough(part: str) -> None:
    clean, dirty = span("fine"), span(SECRET)
    planted = msgspec.structs.replace(clean, **{part: getattr(dirty, part)})
    assert knowing(SECRET).span(planted) == msgspec.structs.replace(
        clean, **{part: getattr(span(MARK), part)}
    )


def test_a_span_without_secrets_is_the_same_object() -> None:
    clean = span("fine")
    assert knowing(SECRET).span(clean) is clean


def line(text: str) -> LogLine:
    return LogLine(
        1, "error", f"it said {text}", "app", {"a": text}, exception=f"Traceback\nValueError: {text}"
    )


def test_a_secret_is_taken_from_every_part_of_a_log_line() -> None:
    assert knowing(SECRET).line(line(SECRET)) == line(MARK)


def test_a_log_line_without_secrets_is_the_same_object() -> None:
    clean = line("fine")
    assert knowing(SECRET).line(clean) is clean


def metric(text: str) -> Metric:
    points = (Point({"a": "b"}, 1.0, 0, 1), Point({"a": text}, 1.0, 0, 1))
    return Metric("m", "counter", "1", "", points)


def test_a_secret_is_taken_from_the_attributes_of_a_metric() -> None:
    assert knowing(SECRET).metric(metric(SECRET)) == metric(MARK)
    clean = metric("fine")
    assert knowing(SECRET).metric(clean) is clean


# --- before the cut ------------------------------------------------------------------------------------


def test_a_secret_across_the_cut_is_not_half_shown() -> None:
    redactor = knowing(SECRET)
    for before in range(900, 1010):
        text = "x" * before + SECRET + "y" * 1000
        capped = cap_attributes(redactor.attributes({"a": text}), value_bytes=1000)["a"]
        assert SECRET[:4] not in capped
        assert len(capped.encode()) <= 1000
        document = json_within(redactor.value({"messages": [text]}), 1000)
        assert SECRET[:4] not in document


def test_what_is_known_is_taken_out_and_nothing_guessed() -> None:
    redactor = Redactor(patterns=[r"EMP-\d{6}"])
    redactor.add("s3cr3t-value")
    said = "there is no directory /run/secrets: mount it; s3cr3t-value of EMP-123456, password=hunter2"
    assert redactor.known(said) == (
        "there is no directory /run/secrets: mount it; [redacted] of [redacted], password=hunter2"
    )
