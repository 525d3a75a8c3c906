"""What a failure of boto's means: one of the errors of `agentrt.errors`, with what to do."""

from __future__ import annotations

from typing import Any

from botocore import exceptions
from botocore.parsers import ResponseParserError

from agentrt.errors import CallError, PermanentError, ThrottledError, TransientError
from agentrt.retry_after import retry_after
from agentrt.telemetry.http import TooLarge

__all__ = ["THROTTLED", "code_of", "failure"]

THROTTLED = frozenset(
    {
        "BandwidthLimitExceeded",
        "PriorRequestNotComplete",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
UNKNOWN_KEY = frozenset(
    {
        "AuthFailure",
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "InvalidToken",
        "MissingAuthenticationToken",
        "RequestExpired",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
DENIED = frozenset({"AccessDenied", "AccessDeniedException", "NotAuthorized", "UnauthorizedOperation"})
LARGE = frozenset({"RequestEntityTooLarge", "RequestEntityTooLargeException"})

NO_CREDENTIALS = (
    exceptions.NoCredentialsError,
    exceptions.PartialCredentialsError,
    exceptions.CredentialRetrievalError,
    exceptions.NoAuthTokenError,
    exceptions.TokenRetrievalError,
    exceptions.SSOError,
)
CONNECTION = (
    exceptions.HTTPClientError,
    exceptions.ConnectionError,
    exceptions.ResponseStreamingError,
    OSError,
)


def code_of(error: BaseException | None) -> str:
    """The code of an answer that is an error; "" if it is none."""
    return (
        str(error.response.get("Error", {}).get("Code", ""))
        if isinstance(error, exceptions.ClientError)
        else ""
    )


def failure(error: Exception, table: str, permission: str) -> CallError:
    """`table`: of the configuration, "[telemetry.xray]". `permission`: what the call needs."""
    if isinstance(error, CallError):
        return error
    if isinstance(error, exceptions.ClientError):
        return _answered(error, table, permission)
    said = str(error).rstrip(".") or type(error).__name__
    if isinstance(error, exceptions.NoRegionError):
        return _not_set_up(table, "no region is set: give `region`, or set AWS_DEFAULT_REGION or a profile's")
    if isinstance(error, NO_CREDENTIALS):
        return _not_set_up(
            table, f"no usable credentials ({said}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, give a "
            "`profile`, or run under a role"
        )  # fmt: skip
    if isinstance(error, exceptions.ProfileNotFound):
        return _not_set_up(table, f"{said}: correct `profile` or AWS_PROFILE")
    if isinstance(error, exceptions.SSLError):
        return _not_set_up(table, f"TLS failed ({said}): if the authority is your own, set AWS_CA_BUNDLE")
    if isinstance(error, CONNECTION):
        return TransientError(f"{table} {permission}: {said}. Check the network, `region` and `endpoint`")
    head = f"{table} {permission}: {type(error).__name__}: {said}"
    # A proxy's page, or half an answer.
    return TransientError(head) if isinstance(error, ResponseParserError) else PermanentError(head)


def _answered(error: Any, table: str, permission: str) -> CallError:
    code, details = code_of(error), error.response.get("ResponseMetadata", {})
    status = details.get("HTTPStatusCode", 0)
    headers = details.get("HTTPHeaders", {})
    said = str(error.response.get("Error", {}).get("Message", "")).strip()[:300]
    head = f"{table} {permission}: {code or f'HTTP {status}'}" + (f": {said}" if said else "")
    if code in THROTTLED or status == 429:
        return ThrottledError(head, retry_after=retry_after(headers))
    if code in UNKNOWN_KEY:
        return PermanentError(
            f"{head}. AWS does not accept the credentials; renew AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and "
            "AWS_SESSION_TOKEN, or the `profile`, and check the machine's clock",
            fault="target",
        )
    if code in DENIED or status in (401, 403):
        return PermanentError(f"{head}. Allow {permission} to the user or role", fault="target")
    if code in LARGE or status == 413:
        return TooLarge(head)
    if status >= 500:
        return TransientError(head, retry_after=retry_after(headers))
    return PermanentError(head)


def _not_set_up(table: str, why: str) -> PermanentError:
    return PermanentError(f"{table}: {why}", fault="target")
