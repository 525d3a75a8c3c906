"""What a failure of GCP Secret Manager means: one of the errors of `agentrt.secrets`, with what to do.

The messages have the service's own words, which name secrets and permissions; never a value.
"""

from __future__ import annotations

from google.api_core import exceptions
from google.auth import exceptions as auth

from agentrt.errors import AgentrtError
from agentrt.secrets import (
    SecretDenied,
    SecretInvalid,
    SecretNotFound,
    SecretThrottled,
    SecretUnavailable,
)

__all__ = ["failure", "is_refused_login"]

SAID = 300
"""Characters of the service's own words that a message keeps."""

NO_CREDENTIALS = (
    "set GOOGLE_APPLICATION_CREDENTIALS or `credentials_file`, run `gcloud auth application-default login`, or run "
    "under a service account"
)
PLUGIN_FAILED = "Getting metadata from plugin failed"
"""So gRPC begins when the credentials gave no token."""

REFUSED = ("invalid_grant", "invalid_client", "unauthorized", "reauth")
"""Of these, one is in the words of a token service that refuses."""


def is_refused_login(error: Exception) -> bool:
    """Whether other credentials might be taken."""
    if isinstance(error, exceptions.Unauthenticated):
        return True
    said = str(error.message) if isinstance(error, exceptions.GoogleAPICallError) else ""
    return said.startswith(PLUGIN_FAILED) and any(word in said.lower() for word in REFUSED)


def failure(error: Exception, what: str, *, permission: str, role: str) -> AgentrtError:
    """`what`: was wanted, a reference or the list. `permission` and `role`: what the call needs."""
    if isinstance(error, exceptions.GoogleAPICallError):
        return _answered(error, what, f"{permission} ({role})")
    said = _said(str(error)) or type(error).__name__
    if isinstance(error, auth.DefaultCredentialsError):
        return SecretDenied(f"{what}: there are no usable credentials ({said}): {NO_CREDENTIALS}")
    if isinstance(error, auth.TransportError):
        return SecretUnavailable(f"{what}: Google's token service cannot be reached ({said})")
    if isinstance(error, auth.GoogleAuthError):
        return SecretDenied(f"{what}: the credentials give no token ({said}): {NO_CREDENTIALS}")
    return SecretUnavailable(f"{what}: {type(error).__name__}: {said}")


def _answered(error: exceptions.GoogleAPICallError, what: str, needs: str) -> AgentrtError:
    said = _said(str(error.message))
    if said.startswith(PLUGIN_FAILED):
        return _no_token(said, what)
    head = f"{what}: {type(error).__name__} from GCP Secret Manager" + (f": {said}" if said else "")
    if isinstance(error, exceptions.NotFound):
        return SecretNotFound(f"{head}. Check the name, the version and `project`")
    if isinstance(error, exceptions.FailedPrecondition):
        if "DESTROYED" in said.upper():
            return SecretNotFound(f"{head}. Add a new version, or name another one")
        return SecretInvalid(f"{head}. Enable the version, or name another one")
    if isinstance(error, exceptions.Unauthenticated):
        return SecretDenied(f"{head}. GCP does not accept the credentials; {NO_CREDENTIALS}")
    if isinstance(error, exceptions.Forbidden):
        return SecretDenied(f"{head}. Allow {needs} on it to the account")
    if isinstance(error, exceptions.ResourceExhausted):
        return SecretThrottled(head, retry_after=_retry_after(error))
    if isinstance(error, exceptions.InvalidArgument):
        return SecretInvalid(f"{head}. Correct the name or the version in the reference")
    if isinstance(error, exceptions.DeadlineExceeded):
        return SecretUnavailable(f"{head}. Check the network and `endpoint`, or raise `timeout`")
    if isinstance(error, exceptions.MethodNotImplemented):
        return SecretUnavailable(f"{head}. What answers at `endpoint` is not Secret Manager")
    return SecretUnavailable(
        f"{head}. If it stays so, check the network, `endpoint` and `ca_file`",
        retry_after=_retry_after(error),
    )


def _no_token(said: str, what: str) -> AgentrtError:
    """The service was not asked: the credentials failed first."""
    why = said.removeprefix(PLUGIN_FAILED).removeprefix(" with error").lstrip(": ")
    if any(word in why.lower() for word in REFUSED):
        return SecretDenied(f"{what}: the credentials give no token ({why}): {NO_CREDENTIALS}")
    return SecretUnavailable(f"{what}: there is no token, so Secret Manager was not asked ({why})")


def _retry_after(error: exceptions.GoogleAPICallError) -> float | None:
    """Seconds, of the `google.rpc.RetryInfo` in the details."""
    for detail in error.details or ():
        delay = getattr(detail, "retry_delay", None)
        if delay is not None:
            seconds = float(delay.seconds) + float(delay.nanos) / 1e9
            return seconds if seconds > 0.0 else None
    return None


def _said(text: str) -> str:
    return " ".join(text.split())[:SAID].rstrip(".")
