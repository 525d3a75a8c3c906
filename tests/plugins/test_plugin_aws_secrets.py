"""agentrt-aws, Secrets Manager: what is stored there is what an agent reads, and each failure says what to do."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from agentrt_aws.secrets import AwsSecrets
from servers.faulty import Refusing
from servers.http_server import Answer, HttpServer, Request
from servers.programs import Moto

from agentrt import plugins
from agentrt.errors import ConfigError
from agentrt.secrets import (
    SecretDenied,
    SecretInvalid,
    SecretNotFound,
    SecretRef,
    SecretThrottled,
    SecretUnavailable,
    SecretValue,
)
from agentrt.secrets.manager import SecretsManager
from agentrt.testing.secrets_suite import SecretsProviderTests
from plugins.aws import Front, aws_error, lead, without_credentials
from plugins.secret_readers import (
    VALUE,
    agents_read,
    on_two_loops,
    read_once,
    refusal,
    survives_a_cancelled_reader,
)
from plugins.secret_readers import ref as secret_ref

ref = partial(secret_ref, "aws")


@pytest.fixture
def front(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> Iterator[Front]:
    """moto's Secrets Manager, with what leads boto to it."""
    with Front(moto.url) as server:
        lead(monkeypatch, server)
        yield server


def manage(moto: Moto, operation: str, **request: Any) -> dict[str, Any]:
    """What an administrator does. Blocks, and needs a thread without an event loop."""
    answer: dict[str, Any] = asyncio.run(
        moto.call("secretsmanager", f"secretsmanager.{operation}", {"ClientRequestToken": token(), **request})
    )
    return answer


async def managed(moto: Moto, operation: str, **request: Any) -> dict[str, Any]:
    return await asyncio.to_thread(manage, moto, operation, **request)


def token() -> str:
    return str(uuid.uuid4())


async def read(text: str, **options: Any) -> SecretValue:
    return await read_once(AwsSecrets(**options), ref(text))


async def refused(text: str, kind: type[Exception], **options: Any) -> str:
    return await refusal(AwsSecrets(**options), ref(text), kind)


@contextmanager
def answering_with(front: Front, answer: Answer) -> Generator[None]:
    """Whatever comes meanwhile is answered so."""
    front.answer(answer)
    yield
    front.answer()


class TestConformance(SecretsProviderTests):
    credentials = ("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",)

    @pytest.fixture(autouse=True)
    def started(self, front: Front, moto: Moto) -> None:
        self.front, self.moto = front, moto

    def make(self) -> AwsSecrets:
        return AwsSecrets(prefix="agents/")

    def store(self, name: str, value: str) -> SecretRef:
        stored = {"SecretString": value, "ClientRequestToken": token()}
        try:
            manage(self.moto, "CreateSecret", Name=f"agents/{name}", **stored)
        except Exception:
            manage(self.moto, "PutSecretValue", SecretId=f"agents/{name}", **stored)
        return SecretRef(name)

    def denied(self) -> Any:
        return answering_with(self.front, aws_error("AccessDeniedException"))

    def throttling(self) -> Any:
        return answering_with(self.front, aws_error("ThrottlingException", "Rate exceeded"))

    def failing(self) -> Any:
        return answering_with(self.front, Answer(503))

    def hanging(self) -> Any:
        return answering_with(self.front, Answer(delay=60.0))


# ------------------------------------------------------------------------------------------------- reading
@pytest.mark.asyncio
async def test_a_version_is_an_id_or_a_staging_label(front: Front, moto: Moto) -> None:
    first = await managed(moto, "CreateSecret", Name="prod/db", SecretString="one")
    second = await managed(moto, "PutSecretValue", SecretId="prod/db", SecretString="two")
    pending = {"SecretString": "three", "VersionStages": ["AWSPENDING"]}
    third = await managed(moto, "PutSecretValue", SecretId="prod/db", **pending)
    assert await read("prod/db") == SecretValue("two", second["VersionId"])
    assert await read("prod/db?version=AWSCURRENT") == SecretValue("two", second["VersionId"])
    assert await read("prod/db?version=AWSPREVIOUS") == SecretValue("one", first["VersionId"])
    assert await read("prod/db?version=AWSPENDING") == SecretValue("three", third["VersionId"])
    assert await read(f"prod/db?version={first['VersionId']}") == SecretValue("one", first["VersionId"])
    asked = [json.loads(request.body) for request in front.requests]
    assert asked[1] == {"SecretId": "prod/db", "VersionStage": "AWSCURRENT"}
    assert asked[4] == {"SecretId": "prod/db", "VersionId": first["VersionId"]}


@pytest.mark.asyncio
async def test_an_arn_is_a_name_without_the_prefix(front: Front, moto: Moto) -> None:
    made = await managed(moto, "CreateSecret", Name="agents/db", SecretString="x")
    assert (await read("db", prefix="agents/")).value == "x"
    assert (await read(made["ARN"], prefix="agents/")).value == "x"


@pytest.mark.asyncio
async def test_binary_that_is_text_is_text_and_other_is_refused_without_it(front: Front, moto: Moto) -> None:
    for name, data in (("text", "schlüssel".encode()), ("binary", b"\xff\xfe" + VALUE.encode())):
        await managed(moto, "CreateSecret", Name=name, SecretBinary=base64.b64encode(data).decode())
    assert (await read("text")).value == "schlüssel"
    with pytest.raises(
        SecretInvalid, match=r"^secret://aws/binary: the secret is binary .* base64"
    ) as caught:
        await read("binary")
    error: BaseException | None = caught.value
    while error is not None:
        assert VALUE.encode() not in repr(vars(error)).encode()
        assert not isinstance(error, UnicodeDecodeError)
        error = error.__cause__ or error.__context__


@pytest.mark.asyncio
async def test_many_are_read_by_twenties(front: Front, moto: Moto) -> None:
    names = [f"many/{number}" for number in range(45)]
    for name in names:
        await managed(moto, "CreateSecret", Name=name, SecretString=f"value of {name}")
    arn = (await managed(moto, "DescribeSecret", SecretId="many/0"))["ARN"]
    await managed(moto, "DeleteSecret", SecretId="many/44")
    refs = [ref(name) for name in names] + [ref("missing"), ref(arn), ref("many/1#key")]
    refs += [ref("many/1?version=AWSCURRENT"), ref("missing?version=AWSCURRENT")]
    secrets = AwsSecrets()
    found = await secrets.get_many(refs)
    await secrets.aclose()
    assert {each: found[each].value for each in found} == {
        **{ref(name): f"value of {name}" for name in names[:44]},
        ref(arn): "value of many/0",
        ref("many/1#key"): "value of many/1",
        ref("many/1?version=AWSCURRENT"): "value of many/1",
    }
    assert all(value.version for value in found.values())
    assert front.operations() == ["GetSecretValue"] * 2 + ["BatchGetSecretValue"] * 3
    assert [len(json.loads(request.body)["SecretIdList"]) for request in front.requests[2:]] == [20, 20, 7]


@pytest.mark.asyncio
async def test_one_of_many_that_is_denied_is_named(
    monkeypatch: pytest.MonkeyPatch, answering: Callable[..., HttpServer]
) -> None:
    entries = [{"Name": "a", "SecretString": VALUE, "VersionId": "v"}]
    problems = [
        {"SecretId": "gone", "ErrorCode": "ResourceNotFoundException", "Message": "can't find it"},
        {"SecretId": "b", "ErrorCode": "AccessDeniedException", "Message": "User x is not authorized"},
    ]
    body = json.dumps({"SecretValues": entries, "Errors": problems}).encode()
    lead(monkeypatch, answering(200, body))
    secrets = AwsSecrets()
    with pytest.raises(SecretDenied, match=r"^secret://aws/b: .*Allow secretsmanager:GetSecretValue") as told:
        await secrets.get_many([ref("a"), ref("b"), ref("gone")])
    await secrets.aclose()
    assert VALUE not in str(told.value)


class OneByOne(Front):
    """Does not allow BatchGetSecretValue."""

    def respond(self, request: Request) -> Answer:
        if request.headers["x-amz-target"].endswith("BatchGetSecretValue"):
            return aws_error("AccessDeniedException", "not authorized to perform BatchGetSecretValue")
        return super().respond(request)


@pytest.mark.asyncio
async def test_where_many_at_once_are_not_allowed_the_manager_reads_them_one_by_one(
    moto: Moto, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        await managed(moto, "CreateSecret", Name=name, SecretString=f"value of {name}")

    async def invoke(kind: str, target: str, fn: Any, /, *, idempotent: bool = False) -> Any:
        del kind, target, idempotent
        return await fn()

    with OneByOne(moto.url) as server:
        lead(monkeypatch, server)
        manager = SecretsManager({"aws": AwsSecrets()}, invoke)
        found = await manager.get_many(["secret://aws/a", "secret://aws/b"])
        await manager.aclose()
        assert [secret.reveal() for secret in found.values()] == ["value of a", "value of b"]
        assert server.operations() == ["BatchGetSecretValue", "GetSecretValue", "GetSecretValue"]


@pytest.mark.asyncio
async def test_an_answer_for_many_may_come_in_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = [
        {"SecretValues": [{"Name": "a", "SecretString": "1"}], "NextToken": "more"},
        {"SecretValues": [], "NextToken": "yet more"},
        {"SecretValues": [{"Name": "b", "SecretString": "2"}]},
    ]
    with HttpServer(*(Answer(200, json.dumps(page).encode()) for page in pages)) as server:
        lead(monkeypatch, server)
        secrets = AwsSecrets()
        found = await secrets.get_many([ref("a"), ref("b")])
        await secrets.aclose()
        assert [found[each].value for each in (ref("a"), ref("b"))] == ["1", "2"]
        asked = [json.loads(request.body).get("NextToken") for request in server.requests]
        assert asked == [None, "more", "yet more"]


@pytest.mark.asyncio
async def test_the_list_has_the_names_behind_the_prefix_of_all_pages(front: Front, moto: Moto) -> None:
    for number in range(130):
        await managed(moto, "CreateSecret", Name=f"agents/n{number:03}", SecretString=VALUE)
    await managed(moto, "CreateSecret", Name="other", SecretString=VALUE)
    secrets = AwsSecrets(prefix="agents/")
    assert await secrets.list() == [f"n{number:03}" for number in range(130)]
    assert await secrets.list("n01") == [f"n01{number}" for number in range(10)]
    assert await secrets.list("!n") == []
    await secrets.aclose()
    assert front.operations()[:2] == ["ListSecrets"] * 2


# ------------------------------------------------------------------------------------------------- failures
@pytest.mark.asyncio
async def test_what_is_not_there_or_going_is_not_found(front: Front, moto: Moto) -> None:
    await managed(moto, "CreateSecret", Name="going", SecretString=VALUE)
    await managed(moto, "DeleteSecret", SecretId="going")
    said = await refused("going", SecretNotFound)
    assert said.startswith("secret://aws/going: ")
    assert "marked for deletion: `aws secretsmanager restore-secret`" in said
    said = await refused("missing", SecretNotFound)
    assert said.startswith("secret://aws/missing: AWS answered ResourceNotFoundException")
    assert said.endswith("Check the name, the version, the region and the account")
    await managed(moto, "CreateSecret", Name="new", SecretString=VALUE)
    await refused("new?version=AWSPREVIOUS", SecretNotFound)
    await refused(f"new?version={token()}", SecretNotFound)


@pytest.mark.parametrize(
    ("code", "status", "kind", "says"),
    [
        ("ResourceNotFoundException", 400, SecretNotFound, "Check the name"),
        ("InvalidParameterException", 400, SecretInvalid, "Correct the name or the version"),
        ("InvalidRequestException", 400, SecretInvalid, "Correct the name or the version"),
        ("ValidationException", 400, SecretInvalid, "Correct the name or the version"),
        ("AccessDeniedException", 400, SecretDenied, "Allow secretsmanager:GetSecretValue on it"),
        ("DecryptionFailure", 400, SecretDenied, "kms:Decrypt"),
        ("UnrecognizedClientException", 400, SecretDenied, "renew AWS_ACCESS_KEY_ID"),
        ("ExpiredTokenException", 400, SecretDenied, "AWS_SESSION_TOKEN"),
        ("InvalidSignatureException", 400, SecretDenied, "the machine's clock"),
        ("", 403, SecretDenied, "HTTP 403|Allow secretsmanager"),
        ("ThrottlingException", 400, SecretThrottled, "because"),
        ("TooManyRequestsException", 429, SecretThrottled, "because"),
        ("InternalServiceError", 500, SecretUnavailable, "because"),
        ("ServiceUnavailable", 503, SecretUnavailable, "because"),
    ],
)
@pytest.mark.asyncio
async def test_an_error_of_the_service_becomes_the_right_one_and_is_not_tried_again(
    code: str, status: int, kind: type[Exception], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HttpServer(aws_error(code, status=status)) as server:
        lead(monkeypatch, server)
        said = await refused("prod/db", kind)
        # Refused credentials are read anew once: boto may have found them in a file that has others by now.
        assert len(server.requests) == (2 if "renew AWS_ACCESS_KEY_ID" in said else 1)
    assert said.startswith("secret://aws/prod/db: AWS answered ")
    assert any(words in said for words in says.split("|"))


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.asyncio
async def test_a_redirect_is_not_followed(
    status: int, monkeypatch: pytest.MonkeyPatch, answering: Callable[..., HttpServer]
) -> None:
    other = answering(200, json.dumps({"SecretString": "of-somebody-else"}).encode())
    lead(monkeypatch, answering(status, b"", {"Location": f"{other.url}/"}))
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a-token-of-a-session")
    said = await refused("prod/db", SecretUnavailable)
    assert said.endswith("Redirects are not followed: check `endpoint` and what stands between")
    assert other.requests == []


@pytest.mark.asyncio
async def test_throttling_and_failing_say_when_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    headers = {"Retry-After": "7"}
    answers = aws_error("ThrottlingException", **headers), aws_error("", status=503, **headers)
    with HttpServer(*answers) as server:
        lead(monkeypatch, server)
        for kind in (SecretThrottled, SecretUnavailable):
            with pytest.raises(kind) as caught:
                await read("prod/db")
            assert vars(caught.value)["retry_after"] == 7.0


@pytest.mark.parametrize(
    "body",
    [b"<html>", b'{"SecretString": "' + VALUE.encode(), b'{"Other": "' + VALUE.encode() + b'"}', b"[1]"],
    ids=["page", "cut", "other", "list"],
)
@pytest.mark.asyncio
async def test_what_is_no_answer_of_aws_is_not_shown(
    body: bytes, monkeypatch: pytest.MonkeyPatch, answering: Callable[..., HttpServer]
) -> None:
    lead(monkeypatch, answering(200, body))
    with pytest.raises(SecretUnavailable, match=r"^secret://aws/prod/db: .*: check `endpoint`") as caught:
        await read("prod/db")
    assert VALUE not in "".join(traceback.format_exception(caught.value))


@pytest.mark.asyncio
async def test_a_server_that_is_down_is_told_long_before_the_timeout(
    refusing: Refusing, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_credentials(monkeypatch)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    secrets = AwsSecrets(region="eu-central-1", endpoint=refusing.url, timeout=600.0)
    await secrets.open(None)  # type: ignore[arg-type]
    began = time.monotonic()
    with pytest.raises(SecretUnavailable, match=r"cannot be reached .*check the network, `region`"):
        await secrets.get(ref("prod/db"))
    assert time.monotonic() - began < 20.0
    await secrets.aclose()


@pytest.mark.asyncio
async def test_a_server_that_does_not_answer_is_unavailable_after_the_timeout(
    monkeypatch: pytest.MonkeyPatch, answering: Callable[..., HttpServer]
) -> None:
    lead(monkeypatch, answering(200, b"{}", delay=60.0))
    began = time.monotonic()
    assert "timeout" in (await refused("prod/db", SecretUnavailable, timeout=0.3)).lower()
    assert time.monotonic() - began < 20.0  # of 60


@pytest.mark.asyncio
async def test_what_is_not_set_up_is_told_with_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    without_credentials(monkeypatch)
    assert "no region is set" in await refused("a", ConfigError)
    said = await refused("a", SecretDenied, region="eu-central-1")
    assert said.startswith("secret://aws/a: there are no usable credentials")
    assert "correct `profile`" in await refused("a", ConfigError, profile="nobody")


class Rotated(Front):
    """Takes one key."""

    takes = "AKIDNEW"

    def respond(self, request: Request) -> Answer:
        if f"Credential={self.takes}/" not in request.headers["authorization"]:
            return aws_error("UnrecognizedClientException", "The security token is invalid")
        return super().respond(request)


@pytest.mark.asyncio
async def test_refused_keys_of_a_file_are_read_anew_at_most_once_in_a_while(
    moto: Moto, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    await managed(moto, "CreateSecret", Name="db", SecretString=VALUE)
    without_credentials(monkeypatch)
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    form = "[default]\naws_access_key_id = {}\naws_secret_access_key = y\n"
    with Rotated(moto.url) as server:
        file.write_text(form.format("AKIDOLD"))
        server.takes = "AKIDOLD"
        secrets = AwsSecrets(region="eu-central-1", endpoint=server.url)
        assert (await secrets.get(ref("db"))).value == VALUE
        file.write_text(form.format("AKIDNEW"))
        server.takes = "AKIDNEW"
        found = await asyncio.gather(*(secrets.get(ref("db")) for _ in range(5)))
        assert [value.value for value in found] == [VALUE] * 5
        server.takes = "AKIDNEXT"
        before = len(server.requests)
        with pytest.raises(SecretDenied):
            await secrets.get(ref("db"))
        assert len(server.requests) == before + 1
        await secrets.aclose()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"endpoint": "aws"}, "endpoint must look like"),
        ({"region": ""}, "region must be a name"),
        ({"prefix": " "}, "prefix must be a name"),
        ({"prefix": "arn:aws:x"}, "prefix must begin names, not ARNs"),
        ({"timeout": 0.0}, "timeout must be a number of seconds"),
        ({"regoin": "x"}, "did you mean 'region'"),
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        plugins.make("agentrt.secrets", "aws", options)


# ------------------------------------------------------------------------------------------------- its life
@pytest.mark.asyncio
async def test_no_value_is_in_a_log_at_any_level(
    front: Front, moto: Moto, caplog: pytest.LogCaptureFixture
) -> None:
    await managed(moto, "CreateSecret", Name="logged", SecretString=VALUE)
    caplog.set_level(logging.DEBUG)
    assert (await read("logged")).value == VALUE
    assert any(record.name.startswith("botocore") for record in caplog.records)
    assert VALUE not in caplog.text
    # What the same logger says for others stays.
    logging.getLogger("botocore.parsers").debug("of somebody else")
    assert "of somebody else" in caplog.text


@pytest.mark.asyncio
async def test_a_reader_that_is_cancelled_leaves_the_client_usable(front: Front, moto: Moto) -> None:
    await managed(moto, "CreateSecret", Name="slow", SecretString=VALUE)
    was_asked = partial(front.wait_for_requests, 1)
    hanging = answering_with(front, Answer(delay=60.0))
    await survives_a_cancelled_reader(AwsSecrets(), ref("slow"), hanging, was_asked)


def test_two_event_loops_one_after_the_other_work(front: Front, moto: Moto) -> None:
    manage(moto, "CreateSecret", Name="loops", SecretString=VALUE)
    on_two_loops(AwsSecrets(), ref("loops"))


@pytest.mark.asyncio
async def test_the_first_readers_at_once_make_one_client(front: Front, moto: Moto) -> None:
    names = [f"first{number}" for number in range(20)]
    for name in names:
        await managed(moto, "CreateSecret", Name=name, SecretString=name)
    secrets = AwsSecrets()
    found = await asyncio.gather(*(secrets.get(ref(name)) for name in names))
    assert [value.value for value in found] == names
    await secrets.aclose()  # a second client would be left open, which is a warning and an error


@pytest.mark.asyncio
async def test_what_boto_reads_from_its_files_is_read_beside_the_event_loop(
    front: Front, moto: Moto, monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.loaders import JSONFileLoader, Loader

    threads: list[threading.Thread] = []

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*given: Any, **named: Any) -> Any:
            threads.append(threading.current_thread())
            return function(*given, **named)

        return noted

    monkeypatch.setattr(JSONFileLoader, "_load_file", noting(JSONFileLoader._load_file))
    monkeypatch.setattr(Loader, "_find_extras", noting(Loader._find_extras))
    await managed(moto, "CreateSecret", Name="threads", SecretString=VALUE)
    threads.clear()
    assert (await read("threads")).value == VALUE
    assert len(threads) > 4
    assert threading.main_thread() not in threads


# ---------------------------------------------------------------------------------------------- in a runtime
@pytest.mark.asyncio
async def test_five_hundred_readers_of_what_the_configuration_leads_to_are_one_request(
    front: Front, moto: Moto
) -> None:
    stored = json.dumps({"user": "app", "password": VALUE})
    await managed(moto, "CreateSecret", Name="agents/db", SecretString=stored)
    table = {"provider": "aws", "region": "eu-central-1", "prefix": "agents/"}
    await agents_read(table, ("secret://aws/db#password", VALUE), ("db", stored))
    assert front.operations() == ["GetSecretValue"]
