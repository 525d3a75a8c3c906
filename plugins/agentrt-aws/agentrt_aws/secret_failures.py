"""What a failure of AWS Secrets Manager means: one of the errors of `agentrt.secrets`, with what to do.

The messages have the service's own words, which name secrets and users; never a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from botocore import exceptions
from botocore.parsers import ResponseParserError

from agentrt.errors import AgentrtError, ConfigError
from agentrt.retry_after import retry_after
from agentrt.secrets import (
    SecretDenied,
    SecretInvalid,
    SecretNotFound,
    SecretThrottled,
    SecretUnavailable,
)
from agentrt_aws.failures import CONNECTION, DENIED, NO_CREDENTIALS, THROTTLED, UNKNOWN_KEY

__all__ = ["answered", "cause", "no_answer", "secret_failure"]

SAID = 300
"""Characters of the service's own words that a message keeps."""

INVALID = frozenset({"InvalidParameterException", "InvalidRequestException", "ValidationException"})


def secret_failure(error: Exception, what: str, permission: str) -> AgentrtError:
    """`what`: was wanted, a reference or the list. `permission`: what the call needs."""
    if isinstance(error, AgentrtError):
        return error
    if isinstance(error, exceptions.ClientError):
        details = error.response.get("ResponseMetadata", {})
        headers: Mapping[str, str] = details.get("HTTPHeaders", {})
        return answered(
            what,
            permission,
            code=str(error.response.get("Error", {}).get("Code", "")),
            said=str(error.response.get("Error", {}).get("Message", "")),
            status=int(details.get("HTTPStatusCode", 0)),
            wait=retry_after(headers),
        )
    said = str(error).rstrip(".") or type(error).__name__
    if isinstance(error, exceptions.NoRegionError):
        return ConfigError(
            f"{what}: no region is set: give `region` to the secrets provider aws, or set AWS_REGION or a profile's"
        )
    if isinstance(error, exceptions.ProfileNotFound):
        return ConfigError(f"{what}: {said}: correct `profile` of the secrets provider aws, or AWS_PROFILE")
    if isinstance(error, exceptions.ParamValidationError):
        return SecretInvalid(f"{what}: AWS would not take this: {said}")
    if isinstance(error, NO_CREDENTIALS):
        return SecretDenied(
            f"{what}: there are no usable credentials ({said}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "give a `profile`, or run under a role"
        )
    if isinstance(error, exceptions.SSLError):
        return SecretUnavailable(
            f"{what}: TLS with AWS failed ({said}): if the authority is your own, set AWS_CA_BUNDLE"
        )
    if isinstance(error, CONNECTION):
        return SecretUnavailable(
            f"{what}: AWS Secrets Manager cannot be reached ({said}): check the network, `region` and `endpoint`"
        )
    if cause(error) is None:
        return SecretUnavailable(
            f"{what}: what came in answer is not AWS's ({type(error).__name__}): check `endpoint` and what stands "
            "between"
        )
    return SecretUnavailable(f"{what}: {type(error).__name__}: {said}")


def cause(error: Exception) -> Exception | None:
    """`error`, or None if its words may quote an answer: that of a parser, and what boto does not raise itself."""
    told = (exceptions.ClientError, exceptions.BotoCoreError, OSError)
    return error if isinstance(error, told) and not isinstance(error, ResponseParserError) else None


def answered(
    what: str, permission: str, *, code: str, said: str, status: int = 400, wait: float | None = None
) -> AgentrtError:
    """The error that AWS answered, for a call or for one secret of several. `wait`: seconds it asked for, if any."""
    said = said.strip()[:SAID]
    head = f"{what}: AWS answered {code or f'HTTP {status}'}" + (f": {said.rstrip('.')}" if said else "")
    if code == "ResourceNotFoundException":
        return SecretNotFound(f"{head}. Check the name, the version, the region and the account")
    if code == "InvalidRequestException" and "delet" in said.lower():
        return SecretNotFound(
            f"{head}. It is marked for deletion: `aws secretsmanager restore-secret` brings it back"
        )
    if code == "DecryptionFailure":
        return SecretDenied(
            f"{head}. The KMS key of the secret must be enabled, and kms:Decrypt on it allowed to the user or role"
        )
    if code in INVALID:
        return SecretInvalid(f"{head}. Correct the name or the version in the reference")
    if code in THROTTLED or status == 429:
        return SecretThrottled(head, retry_after=wait)
    if code in UNKNOWN_KEY:
        return SecretDenied(
            f"{head}. AWS does not accept the credentials; renew AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and "
            "AWS_SESSION_TOKEN, or the `profile`, and check the machine's clock"
        )
    if code in DENIED or status in (401, 403):
        return SecretDenied(
            f"{head}. Allow {permission} on it to the user or role, and kms:Decrypt if the secret has a key of its own"
        )
    if 300 <= status < 400:
        return SecretUnavailable(
            f"{head}. Redirects are not followed: check `endpoint` and what stands between"
        )
    return SecretUnavailable(head, retry_after=wait)


def no_answer(what: str, answer: Mapping[str, Any]) -> SecretUnavailable:
    """The answer to a question for a value has none; `answer` is told by its fields' names alone."""
    fields = ", ".join(sorted(answer)) or "nothing"
    return SecretUnavailable(f"{what}: the answer of AWS has no value, but {fields}: check `endpoint`")
