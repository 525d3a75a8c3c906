"""What a provider's refusal means: HTTP status, headers and error body become one of the errors of `agentrt.errors`.

Both wires, and the many servers that imitate them, come through here, for an HTTP status as well as for an error that
arrives inside a stream or in the body of a 200.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from agentrt.errors import CallError, PermanentError, ThrottledError, TransientError
from agentrt.retry_after import retry_after

__all__ = ["Details", "Provider", "failure", "in_band", "misfit", "read_details", "retry_after"]

MESSAGE_LIMIT = 400
"""Characters of the provider's own words that a message keeps."""
SNIPPET_LIMIT = 120
"""Characters of a body that could not be read: enough to tell what it is."""
SHORTEST_SECRET = 8
"""A key of fewer characters is a placeholder ("none"), and blotting it out would only garble the message."""


class Provider(Struct, frozen=True):
    """How messages speak of a provider: `name` ("openai"), `host` ("api.openai.com:443"), and where the user
    sets its key (`key_setting`) and its address (`url_setting`)."""

    name: str
    host: str
    key_setting: str
    url_setting: str

    def __str__(self) -> str:
        return f"{self.name} at {self.host}"


class Details(Struct, frozen=True):
    """An error body, whatever its shape: `message`, and `kind`, every type and code in it, in lower case.

    `status`: the HTTP status that the body itself names, or None.
    """

    message: str = ""
    kind: frozenset[str] = frozenset()
    status: int | None = None

    def has(self, *names: str) -> bool:
        return not self.kind.isdisjoint(names)

    def says(self, *phrases: str) -> bool:
        message = self.message.lower()
        return any(phrase in message for phrase in phrases)


# What a type or code stands for where no HTTP status tells.
_STATUS = {
    "invalid_request_error": 400,
    "bad_request": 400,
    "authentication_error": 401,
    "invalid_api_key": 401,
    "billing_error": 402,
    "permission_error": 403,
    "permission_denied": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "too_many_requests": 429,
    "resource_exhausted": 429,
    "api_error": 500,
    "server_error": 500,
    "internal_error": 500,
    "not_supported_error": 501,
    "service_unavailable": 503,
    "unavailable_error": 503,
    "timeout_error": 504,
    "gateway_timeout_error": 504,
    "overloaded_error": 529,
}
_QUOTA = (
    "insufficient_quota",
    "billing_error",
    "billing_not_active",
    "billing_hard_limit_reached",
    "access_terminated",
    "enforced_spend_limit_reached",
    "contract_spend_limit_reached",
    "linked_organization_spend_limit_reached",
)
_STATUS.update(dict.fromkeys(_QUOTA, 429))
_RATE = ("rate_limit_error", "rate_limit_exceeded", "resource_exhausted", "requests", "tokens")
_QUOTA_WORDS = (
    "insufficient_quota",
    "credit balance",
    "insufficient balance",
    "insufficient credit",
    "exceeded your current quota",
    "quota exhausted",
    "spend limit",
)
_TOO_LONG = ("context_length_exceeded", "exceed_context_size_error", "context_window_exceeded")
_TOO_LONG_WORDS = (
    "maximum context length",
    "context length exceeded",
    "exceeds the context",
    "exceed context limit",
    "exceeds the available context",
    "context window",
    "prompt is too long",
    "input is too long",
    "input token count",
    "reduce the length of the messages",
)
_FILTERED = (
    "content_filter",
    "content_policy_violation",
    "responsibleaipolicyviolation",
    "moderation_blocked",
)
_BAD_KEY = ("invalid_api_key", "api_key_invalid", "authentication_error")
_NO_MODEL = ("model_not_found", "deploymentnotfound", "model_not_available")
_HTTP_REFUSED = frozenset({400, 404, 405, 410, 413, 414, 415, 422, 431})


def failure(
    provider: Provider, *, status: int, headers: Mapping[str, str], body: bytes, secret: str | None = None
) -> CallError:
    """The error for an HTTP response that is not a success. `secret` is blotted out if the body repeats it."""
    details = read_details(body)
    said = _shown(details.message, secret)
    request_id = headers.get("request-id") or headers.get("x-request-id")
    head = f"{provider}: HTTP {status}" + (f": {said}" if said else "")
    if request_id:
        head += f" (request {request_id[:100]})"
    if 300 <= status < 400:
        location = _shown(headers.get("location", "elsewhere"), secret)
        return PermanentError(
            f"{head}; it redirects to {location}, which is not followed: correct {provider.url_setting}",
            fault="target",
        )
    error = _judge(provider, head, details, status, headers=headers, refused=status in _HTTP_REFUSED)
    wish = headers.get("x-should-retry", "").strip().lower()
    if wish == "false" and isinstance(error, TransientError | ThrottledError):
        return PermanentError(
            f"{error}; the provider says not to retry", fault="target", executed=error.executed
        )
    if wish == "true" and _is_plain_refusal(error):
        return TransientError(str(error), retry_after=retry_after(headers), executed=error.executed)
    return error


def in_band(provider: Provider, raw: bytes, *, secret: str | None = None) -> CallError:
    """The error for one that came inside a stream, or in the body of a success."""
    details = read_details(raw)
    # Type and code may differ in precision ("invalid_request_error", "invalid_api_key"): the higher says more.
    named = [_STATUS[name] for name in details.kind if name in _STATUS]
    status = details.status or max(named, default=500)
    said = _shown(details.message, secret) or ", ".join(sorted(details.kind)) or "no reason was given"
    head = f"{provider}: an error instead of the answer: {said}"
    return _judge(provider, head, details, status, headers={}, refused=False)


def misfit(
    provider: Provider, kind: str, body: bytes, *, wanted: str, secret: str | None = None
) -> CallError:
    """The error for a success whose body, of content type `kind`, is not what was `wanted`."""
    details = read_details(body)
    if b'"error"' in body[:1000] or not details.kind.isdisjoint(_STATUS):
        return in_band(provider, body, secret=secret)
    said = _shown(details.message or body[:1000].decode(errors="replace"), secret, SNIPPET_LIMIT)
    return TransientError(
        f"{provider}: the answer is {kind or 'of no stated type'}, not {wanted}: {said or 'it is empty'}; "
        f"if this goes on, check {provider.url_setting}"
    )


def _judge(
    provider: Provider,
    head: str,
    details: Details,
    status: int,
    *,
    headers: Mapping[str, str],
    refused: bool,
) -> CallError:
    """`refused`: the provider turned the request down before it did anything."""
    if status in (400, 402, 403, 429) and _is_quota(details, status):
        return PermanentError(
            f"{head}; the account's quota is used up: check its plan and billing", fault="target"
        )
    if status == 429:
        return ThrottledError(head, retry_after=retry_after(headers))
    if (status >= 500 and status != 501) or status in (408, 425):
        return TransientError(head, retry_after=retry_after(headers))
    if status in (401, 403) or details.has(*_BAD_KEY) or details.says("api key not valid"):
        return PermanentError(f"{head}; check {provider.key_setting}", fault="target")
    if status in (402, 501):
        return PermanentError(head, fault="target")
    if status == 404 or details.has(*_NO_MODEL):
        return PermanentError(f"{head}; check the model's name and {provider.url_setting}", fault="target")
    executed = False if refused else None
    if status == 413 or details.has(*_TOO_LONG) or details.says(*_TOO_LONG_WORDS):
        return PermanentError(
            f"{head}; the conversation is too long for this model", context_too_long=True, executed=executed
        )
    if details.has(*_FILTERED):
        return PermanentError(f"{head}; the provider's content filter refused the request", executed=executed)
    return PermanentError(head, executed=executed)


def _is_quota(details: Details, status: int) -> bool:
    """A used-up quota comes as a 429 too, and advice about billing comes with plain rate limits."""
    if details.has(*_QUOTA):
        return True
    if details.has(*_RATE):
        return False
    return details.says(*_QUOTA_WORDS) or (status == 429 and details.says("billing"))


def _is_plain_refusal(error: CallError) -> bool:
    return isinstance(error, PermanentError) and error.fault == "request" and not error.context_too_long


# --- reading -------------------------------------------------------------------------------------------


def read_details(body: bytes) -> Details:
    """Take an error body apart: `{"error": {...}}`, `{"error": "..."}`, `{"message": ...}`, `{"detail": ...}`, a page
    of HTML, or any text."""
    try:
        value: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Details(message=_text_of(body))
    if isinstance(value, list) and value:  # Google's servers wrap it once more
        value = value[0]
    kind: set[str] = set()
    status: int | None = None
    message = ""
    for _ in range(3):
        if not isinstance(value, dict):
            break
        for key in ("type", "code", "status", "error_code"):
            status = _note(value.get(key), kind, status)
        nested = value.get("details")
        if isinstance(nested, dict):
            status = _note(nested.get("error_code"), kind, status)
        message = _first_text(value, ("message", "detail", "msg")) or message
        value = value.get("error", value.get("innererror"))
    if isinstance(value, str):
        message = value
    return Details(message=message, kind=frozenset(kind), status=status)


def _note(code: object, kind: set[str], status: int | None) -> int | None:
    if isinstance(code, str):
        kind.add(code.lower())
        if not code.isdecimal():
            return status
        code = int(code)
    if isinstance(code, int) and 400 <= code <= 599:
        return code
    return status


def _first_text(value: dict[str, Any], keys: tuple[str, ...]) -> str:
    for key in keys:
        found = value.get(key)
        if isinstance(found, str) and found:
            return found
        if found and not isinstance(found, str):  # FastAPI lists what is wrong with a request
            return msgspec.json.encode(found).decode()
    return ""


def _text_of(body: bytes) -> str:
    text = body[:100_000].decode(errors="replace")
    title = re.search(r"<title[^>]*>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
    if title is not None:
        return f"a page titled {' '.join(title.group(1).split())!r}"
    return text


def _shown(text: str, secret: str | None, limit: int = MESSAGE_LIMIT) -> str:
    """Text of the provider's for a message: on one line, short, printable, without the key."""
    if secret and len(secret) >= SHORTEST_SECRET:
        text = text.replace(secret, "[key]")
    text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return text if len(text) <= limit else text[:limit] + "..."
