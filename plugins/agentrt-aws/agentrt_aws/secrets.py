"""Secrets from AWS Secrets Manager: `secret://aws/prod/db#password`."""

from __future__ import annotations

import asyncio
import importlib
import logging
import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from agentrt import options
from agentrt.errors import ConfigError
from agentrt.secrets import SecretInvalid, SecretNotFound, SecretRef, SecretValue
from agentrt_aws.client import AwsClient, Place

if TYPE_CHECKING:
    from agentrt.plugins import Host

__all__ = ["AwsSecrets"]

BATCH = 20
"""Secrets that BatchGetSecretValue takes at a time."""

VERSION_ID = re.compile(r"[A-Za-z0-9-]{32,64}")
"""What may be the id of a version: AWS makes UUIDs, and takes 32 to 64 characters. Staging labels are shorter."""

BODY_LOGGERS = ("botocore.parsers", "aiobotocore.parsers")
"""They write whole answers at the level DEBUG."""


class AwsSecrets:
    """Reads from Secrets Manager. Credentials are found as boto finds them; boto's own retries are off.

    `region`: such as "eu-central-1" (default: AWS_REGION, or the profile's). `profile`: of the AWS configuration.
    `endpoint`: another address, such as that of a VPC endpoint. `prefix`: stands before every name that is no ARN.
    `timeout` (5.0 s): for connecting, and for an answer.

    A version of 32 to 64 letters, digits and dashes is a version's id, any other one a staging label: AWSPREVIOUS,
    AWSPENDING or your own.
    """

    def __init__(
        self,
        *,
        region: str | None = None,
        profile: str | None = None,
        endpoint: str | None = None,
        prefix: str = "",
        timeout: float = 5.0,
    ) -> None:
        place = Place("aws", region=region, profile=profile, endpoint=endpoint, timeout=timeout)
        if prefix:
            options.text("prefix", prefix)
        if prefix.startswith("arn:"):
            raise ConfigError(f"prefix must begin names, not ARNs, unlike {prefix!r}")
        self.region = place.region
        self.profile = place.profile
        self.endpoint = place.endpoint
        self.prefix = prefix
        self.timeout = place.timeout
        self._client = AwsClient("secretsmanager", place)

    async def open(self, host: Host) -> None:
        """Loads the SDK, in a thread: it is large. Nothing is asked yet."""
        del host
        await asyncio.to_thread(_load)

    async def get(self, ref: SecretRef, /) -> SecretValue:
        answer = await self._ask(
            "get_secret_value", {"SecretId": self._id(ref.name), **_version(ref)}, str(ref)
        )
        return _value(answer, ref)

    async def get_many(self, refs: Sequence[SecretRef], /) -> dict[SecretRef, SecretValue]:
        """Those without a version by twenties (secretsmanager:BatchGetSecretValue), the others one by one.

        What does not exist is left out; what else is wrong with one of them is raised.
        """
        found: dict[SecretRef, SecretValue] = {}
        current: dict[str, list[SecretRef]] = {}
        for ref in refs:
            if ref.version is None:
                current.setdefault(self._id(ref.name), []).append(ref)
                continue
            try:
                found[ref] = await self.get(ref)
            except SecretNotFound:
                continue
        for ids in _portions(tuple(current)):
            for name, value in (await self._batch(ids, current)).items():
                found.update(dict.fromkeys(current[name], value))
        return found

    async def list(self, prefix: str = "", /) -> Sequence[str]:
        wanted = self.prefix + prefix
        request: dict[str, Any] = {"MaxResults": 100}
        if wanted and wanted[0] != "!":  # which would negate the filter
            request["Filters"] = [{"Key": "name", "Values": [wanted]}]
        names: list[str] = []
        while True:
            answer = await self._ask("list_secrets", request, "the list of the secrets in aws")
            names += [entry["Name"] for entry in answer.get("SecretList", ())]
            if not answer.get("NextToken"):
                break
            request["NextToken"] = answer["NextToken"]
        return sorted(name.removeprefix(self.prefix) for name in names if name.startswith(wanted))

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _batch(
        self, ids: Sequence[str], refs: Mapping[str, Sequence[SecretRef]]
    ) -> dict[str, SecretValue]:
        """By what they were asked for, which is a name or an ARN."""
        from agentrt_aws.secret_failures import answered

        what = ", ".join(str(refs[name][0]) for name in ids)
        request: dict[str, Any] = {"SecretIdList": list(ids)}
        found: dict[str, SecretValue] = {}
        while True:
            answer = await self._ask("batch_get_secret_value", request, what)
            for problem in answer.get("Errors", ()):
                name = str(problem.get("SecretId", ""))
                failure = answered(
                    str(refs[name][0]) if name in refs else what,
                    "secretsmanager:GetSecretValue",
                    code=str(problem.get("ErrorCode", "")),
                    said=str(problem.get("Message", "")),
                )
                if not isinstance(failure, SecretNotFound):
                    raise failure
            for entry in answer.get("SecretValues", ()):
                for name in {entry.get("Name"), entry.get("ARN")}.intersection(ids):
                    found[name] = _value(entry, refs[name][0])
            if not answer.get("NextToken"):
                return found
            request["NextToken"] = answer["NextToken"]

    async def _ask(self, operation: str, parameters: Mapping[str, Any], what: str) -> dict[str, Any]:
        from agentrt_aws.failures import UNKNOWN_KEY, code_of
        from agentrt_aws.secret_failures import cause, secret_failure

        generation = self._client.generation
        try:
            with _unlogged():
                try:
                    return await self._client.ask(operation, parameters)
                except Exception as error:
                    # The file that boto read them from may have others by now.
                    if code_of(error) not in UNKNOWN_KEY or not await self._client.renew(generation):
                        raise
                return await self._client.ask(operation, parameters)
        except Exception as error:
            raise secret_failure(error, what, self._client.permission(operation)) from cause(error)

    def _id(self, name: str) -> str:
        return name if name.startswith("arn:") else self.prefix + name


def _portions(ids: Sequence[str]) -> Generator[Sequence[str]]:
    for start in range(0, len(ids), BATCH):
        yield ids[start : start + BATCH]


def _version(ref: SecretRef) -> dict[str, str]:
    if ref.version is None:
        return {}
    return {"VersionId" if VERSION_ID.fullmatch(ref.version) else "VersionStage": ref.version}


def _value(answer: Mapping[str, Any], ref: SecretRef) -> SecretValue:
    from agentrt_aws.secret_failures import no_answer

    text = answer.get("SecretString")
    if text is None:
        data = answer.get("SecretBinary")
        if not isinstance(data, bytes):
            raise no_answer(str(ref), answer)
        text = _text(data)
    if text is None:
        raise SecretInvalid(
            f"{ref}: the secret is binary and no UTF-8 text: store it encoded, as base64 for example"
        )
    return SecretValue(text, answer.get("VersionId"))


def _text(data: bytes) -> str | None:
    # Its error would hold the value, and hang on ours if that were raised in here.
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


# --- what boto writes -----------------------------------------------------------------------------------

_QUIET: ContextVar[bool] = ContextVar("agentrt_aws_quiet", default=False)


def _passes(record: logging.LogRecord) -> bool:
    """Holds back what a logger of `BODY_LOGGERS` says while a secret is being read, and nothing else of it."""
    return not _QUIET.get()


@contextmanager
def _unlogged() -> Generator[None]:
    for name in BODY_LOGGERS:
        logging.getLogger(name).addFilter(_passes)  # once: the same filter is not added again
    token = _QUIET.set(True)
    try:
        yield
    finally:
        _QUIET.reset(token)


def _load() -> None:
    for module in ("aioboto3", "agentrt_aws.secret_failures"):
        importlib.import_module(module)
