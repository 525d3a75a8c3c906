"""Secrets: references instead of values, providers that resolve them, and a type that does not give them away.

`SecretsManager` is in `agentrt.secrets.manager`; how long it keeps a value, in `cache`; the providers that come with
agentrt, in `env`, `dotenv` and `file`.
"""

from agentrt.secrets.protocol import (
    Secret,
    SecretDenied,
    SecretError,
    SecretInvalid,
    SecretNotFound,
    SecretRef,
    SecretsProvider,
    SecretThrottled,
    SecretUnavailable,
    SecretValue,
)

__all__ = [
    "Secret",
    "SecretDenied",
    "SecretError",
    "SecretInvalid",
    "SecretNotFound",
    "SecretRef",
    "SecretThrottled",
    "SecretUnavailable",
    "SecretValue",
    "SecretsProvider",
]
