"""What a provider's refusal means."""

from __future__ import annotations

import time
from email.utils import formatdate

import msgspec
import pytest

from agentrt.errors import CallError, PermanentError, ThrottledError, TransientError
from agentrt.models.failures import Provider, failure, in_band, misfit, read_details, retry_after

PROVIDER = Provider("openai", "api.example.com:443", "EXAMPLE_KEY", "EXAMPLE_URL")


def judged(status: int, body: object = None, headers: dict[str, str] | None = None) -> CallError:
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body or {})
    return failure(PROVIDER, status=status, headers=headers or {}, body=raw)


def openai_body(message: str = "no", type: str = "", code: str | None = None) -> dict[str, object]:
    return {"error": {"message": message, "type": type, "code": code, "param": None}}


def anthropic_body(type: str, message: str = "no") -> dict[str, object]:
    return {"type": "error", "error": {"type": type, "message": message}}


# --- by status -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 425, 500, 502, 503, 504, 520, 529])
def test_these_statuses_are_transient(status: int) -> None:
    error = judged(status, openai_body())
    assert type(error) is TransientError
    assert error.executed is None


@pytest.mark.parametrize("status", [400, 405, 409, 413, 415, 422, 451])
def test_these_are_the_requests_fault(status: int) -> None:
    error = judged(status, openai_body())
    assert isinstance(error, PermanentError)
    assert error.fault == "request"
    assert error.context_too_long is (status == 413)


@pytest.mark.parametrize("status", [401, 402, 403, 404, 501])
def test_these_are_the_targets_fault_and_nothing_was_done(status: int) -> None:
    error = judged(status, openai_body())
    assert isinstance(error, PermanentError)
    assert (error.fault, error.executed) == ("target", False)


def test_a_refused_request_was_not_executed_but_a_conflict_may_have_been() -> None:
    assert judged(422).executed is False
    assert judged(409).executed is None


def test_429_is_throttled() -> None:
    error = judged(429, openai_body("slow down", "requests", "rate_limit_exceeded"), {"retry-after": "7"})
    assert isinstance(error, ThrottledError)
    assert (error.retry_after, error.executed) == (7.0, False)


def test_503_keeps_retry_after() -> None:
    error = judged(503, {}, {"retry-after": "3"})
    assert isinstance(error, TransientError)
    assert error.retry_after == 3.0


def test_a_redirect_is_not_followed_and_says_where_it_leads() -> None:
    error = judged(307, b"", {"location": "https://elsewhere.example/v1"})
    assert isinstance(error, PermanentError)
    assert error.fault == "target"
    assert "https://elsewhere.example/v1" in str(error)
    assert "EXAMPLE_URL" in str(error)


# --- by what the body says -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (429, openai_body("You exceeded your current quota", "insufficient_quota", "insufficient_quota")),
        (429, openai_body("Please check your plan and billing details")),
        (429, {"error": "your credit balance is too low"}),
        (429, openai_body(type="billing_not_active")),
        (400, anthropic_body("invalid_request_error", "Your credit balance is too low to access the API")),
        (402, anthropic_body("billing_error")),
        (402, {"error": {"message": "Insufficient Balance", "type": "unknown_error"}}),
        (
            429,
            {
                "type": "error",
                "error": {
                    "type": "rate_limit_error",
                    "message": "spent",
                    "details": {"error_code": "enforced_spend_limit_reached"},
                },
            },
        ),
    ],
)
def test_a_used_up_quota_is_the_targets_fault(status: int, body: object) -> None:
    error = judged(status, body, {"retry-after": "5"})
    assert isinstance(error, PermanentError)
    assert error.fault == "target"
    assert error.executed is False
    assert "quota" in str(error)


@pytest.mark.parametrize(
    "body",
    [
        openai_body("Add a payment method at https://x/account/billing", "tokens", "rate_limit_exceeded"),
        anthropic_body("rate_limit_error", "contact billing to raise your rate limit"),
        # Google says this of a limit per minute.
        [
            {
                "error": {
                    "code": 429,
                    "message": "You exceeded your current quota",
                    "status": "RESOURCE_EXHAUSTED",
                }
            }
        ],
    ],
)
def test_a_rate_limit_that_mentions_billing_is_still_throttled(body: object) -> None:
    assert isinstance(judged(429, body), ThrottledError)


def test_a_bad_request_that_mentions_billing_is_the_requests_fault() -> None:
    error = judged(400, openai_body("Invalid schema for function 'billing'", "invalid_request_error"))
    assert isinstance(error, PermanentError)
    assert error.fault == "request"


@pytest.mark.parametrize(
    "body",
    [
        openai_body("too long", "invalid_request_error", "context_length_exceeded"),
        openai_body("This model's maximum context length is 8192 tokens. However, you requested 9000"),
        anthropic_body("invalid_request_error", "prompt is too long: 205000 tokens > 200000 maximum"),
        {"error": {"code": 400, "message": "exceeds", "type": "exceed_context_size_error"}},
    ],
)
def test_a_conversation_that_is_too_long_is_marked(body: object) -> None:
    error = judged(400, body)
    assert isinstance(error, PermanentError)
    assert (error.fault, error.context_too_long, error.executed) == ("request", True, False)


@pytest.mark.parametrize(
    "body",
    [
        openai_body(code="content_filter"),
        {"error": {"code": "x", "innererror": {"code": "ResponsibleAIPolicyViolation"}, "message": "m"}},
    ],
)
def test_the_content_filter_is_the_requests_fault(body: object) -> None:
    error = judged(400, body)
    assert isinstance(error, PermanentError)
    assert error.fault == "request"
    assert "content filter" in str(error)


def test_an_unknown_model_or_a_bad_key_is_the_targets_fault_whatever_the_status() -> None:
    for body in (
        openai_body(code="model_not_found"),
        openai_body(code="invalid_api_key"),
        [{"error": {"code": 400, "message": "API key not valid.", "status": "INVALID_ARGUMENT"}}],
    ):
        error = judged(400, body)
        assert isinstance(error, PermanentError)
        assert error.fault == "target"


# --- x-should-retry ------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500])
def test_a_provider_that_says_not_to_retry_is_left_for_the_next_target(status: int) -> None:
    error = judged(status, {}, {"x-should-retry": "false", "retry-after": "1"})
    assert isinstance(error, PermanentError)
    assert error.fault == "target"


def test_a_provider_that_says_to_retry_makes_a_refusal_transient() -> None:
    error = judged(409, {}, {"x-should-retry": "true", "retry-after": "2"})
    assert isinstance(error, TransientError)
    assert error.retry_after == 2.0


def test_a_wish_to_retry_does_not_override_a_bad_key_or_a_used_up_quota() -> None:
    for status, body in ((401, {}), (429, openai_body(code="insufficient_quota"))):
        assert isinstance(judged(status, body, {"x-should-retry": "true"}), PermanentError)


# --- retry-after ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["0", "-5", "soon", "", "nan", "inf", "1e999", "Mon, 99 Foo 2026"])
def test_a_useless_retry_after_is_none(value: str) -> None:
    assert retry_after({"retry-after": value}) is None


def test_milliseconds_win_unless_they_are_useless() -> None:
    assert retry_after({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert retry_after({"retry-after-ms": "0", "retry-after": "9"}) == 9.0
    assert retry_after({}) is None


def test_fractions_of_a_second_are_kept() -> None:
    assert retry_after({"retry-after": "0.25"}) == 0.25


def test_a_date_is_measured_by_the_providers_own_clock() -> None:
    headers = {"retry-after": "Fri, 01 Jan 2100 00:00:30 GMT", "date": "Fri, 01 Jan 2100 00:00:00 GMT"}
    assert retry_after(headers) == 30.0


def test_a_date_without_the_providers_clock_is_measured_by_ours() -> None:
    found = retry_after({"retry-after": formatdate(time.time() + 60, usegmt=True)})
    assert found is not None
    assert 50 < found <= 60


def test_a_date_that_has_passed_is_none() -> None:
    headers = {"retry-after": "Fri, 01 Jan 2100 00:00:00 GMT", "date": "Fri, 01 Jan 2100 00:00:00 GMT"}
    assert retry_after(headers) is None


# --- in the stream -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (anthropic_body("overloaded_error", "Overloaded"), TransientError),
        (anthropic_body("api_error"), TransientError),
        (anthropic_body("rate_limit_error"), ThrottledError),
        (anthropic_body("invalid_request_error"), PermanentError),
        (anthropic_body("something_new"), TransientError),
        (openai_body(type="server_error"), TransientError),
        (openai_body(code="rate_limit_exceeded"), ThrottledError),
        (openai_body(type="invalid_request_error", code="invalid_api_key"), PermanentError),
        ({"error": {"code": 502, "message": "bad gateway"}}, TransientError),
        ({"error": {"code": 429, "message": "slow"}}, ThrottledError),
        ({"error": {"code": "400", "message": "bad"}}, PermanentError),
        ({"error": "it fell over"}, TransientError),
    ],
)
def test_an_error_in_the_stream_is_judged_by_its_type_or_code(body: object, kind: type) -> None:
    assert type(in_band(PROVIDER, msgspec.json.encode(body))) is kind


def test_a_body_of_the_wrong_kind_is_transient_and_shows_what_it_is() -> None:
    error = misfit(PROVIDER, "text/html", b"<html><title>Sign in</title>", wanted="a completion")
    assert isinstance(error, TransientError)
    assert "text/html" in str(error)
    assert "Sign in" in str(error)
    assert "EXAMPLE_URL" in str(error)


def test_an_error_in_place_of_a_stream_is_judged_as_such() -> None:
    body = msgspec.json.encode(openai_body(code="invalid_api_key"))
    assert isinstance(misfit(PROVIDER, "application/json", body, wanted="events"), PermanentError)


# --- messages ------------------------------------------------------------------------------------------


def test_the_message_says_who_where_what_and_what_to_do() -> None:
    error = judged(401, openai_body("Incorrect API key provided"), {"x-request-id": "req_7"})
    assert str(error) == (
        "openai at api.example.com:443: HTTP 401: Incorrect API key provided (request req_7); check EXAMPLE_KEY"
    )


def test_the_key_is_blotted_out_and_long_texts_are_cut() -> None:
    body = msgspec.json.encode(openai_body("sk-12345678 is bad\n\x1b[31m" + "x" * 2000))
    error = failure(PROVIDER, status=401, headers={}, body=body, secret="sk-12345678")
    assert "sk-12345678" not in str(error)
    assert "[key] is bad" in str(error)
    assert "\x1b" not in str(error)
    assert len(str(error)) < 600


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"message":"a"}}', "a"),
        (b'{"error":"b"}', "b"),
        (b'{"message":"c"}', "c"),
        (b'{"detail":"d"}', "d"),
        (b'{"detail":[{"msg":"e"}]}', '[{"msg":"e"}]'),
        (b'[{"error":{"message":"f"}}]', "f"),
        (b"<html><head><title>502 Bad\n Gateway</title>", "a page titled '502 Bad Gateway'"),
        (b"plain text", "plain text"),
        (b"", ""),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"null", ""),
        (b"[]", ""),
    ],
)
def test_error_bodies_of_many_shapes_are_read(body: bytes, message: str) -> None:
    assert read_details(body).message == message
