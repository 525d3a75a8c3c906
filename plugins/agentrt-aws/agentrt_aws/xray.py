"""The backend `xray`."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from agentrt import options
from agentrt.errors import ConfigError, PermanentError, ThrottledError
from agentrt.telemetry.delivery import GRACE, Delivery, Part, Rejected, parts
from agentrt.telemetry.http import HttpSender, check_url
from agentrt.telemetry.signals import Batch, Resource, Signal, Span
from agentrt_aws.client import AwsClient, Place
from agentrt_aws.segments import document

if TYPE_CHECKING:
    from agentrt.telemetry.otlp_messages import Messages
    from agentrt_aws.signing import Signer

__all__ = ["ANNOTATIONS", "XRay"]

TABLE = "[telemetry.xray]"
MODES = ("segments", "otlp")
REQUEST_DOCUMENTS = 50
REQUEST_DOCUMENT_BYTES = 512 * 1024
OTLP_BYTES = 5_000_000
OTLP_SPANS = 10_000
OTLP_SPAN_BYTES = 200_000
OTLP_LEVEL = 1
TOO_LARGE = "too large"
MOST_ANNOTATIONS = 50
"""X-Ray indexes no more of a trace."""

ANNOTATIONS = (
    "gen_ai.operation.name",
    "gen_ai.provider.name",
    "gen_ai.request.model",
    "gen_ai.agent.name",
    "gen_ai.conversation.id",
    "gen_ai.tool.name",
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.output_tokens",
    "error.type",
    "agentrt.run.id",
    "agentrt.target",
    "agentrt.attempts",
    "agentrt.degraded",
)


class XRay:
    """Spans, as segments of X-Ray or by its OTLP endpoint.

    `mode`: "segments" (default), or "otlp": the whole span, for accounts with Transaction Search. `annotations`: the
    attributes by which segments can be searched for. `region`, `profile`, `endpoint`: as boto finds them. `interval`:
    seconds between two batches (5.0). `timeout`: seconds for one (10.0).
    """

    signals: tuple[Signal, ...] = ("spans",)

    def __init__(
        self,
        *,
        mode: Literal["segments", "otlp"] = "segments",
        annotations: Sequence[str] = ANNOTATIONS,
        region: str | None = None,
        profile: str | None = None,
        endpoint: str | None = None,
        interval: float = 5.0,
        timeout: float = 10.0,
    ) -> None:
        self.mode = options.choice("mode", mode, MODES)
        if len(annotations) > MOST_ANNOTATIONS:
            raise ConfigError(f"annotations may be {MOST_ANNOTATIONS} names at most, not {len(annotations)}")
        self.annotations = frozenset(options.text("annotations", name) for name in annotations)
        self.interval = options.seconds("interval", interval)
        self.timeout = options.seconds("timeout", timeout) + GRACE
        place = Place(TABLE, region=region, profile=profile, endpoint=endpoint, timeout=timeout)
        self._endpoint = place.endpoint
        self._client = AwsClient("xray", place)
        self._http = HttpSender(
            "xray",
            key_setting="the credentials, their policy (AWSXrayWriteOnlyAccess) and the machine's clock",
            url_setting=f"`region` and `endpoint` of {TABLE}",
            timeout=timeout,
        )
        self._signer: Signer | None = None
        self._messages: Messages | None = None
        self._resource: Resource | None = None
        split, send = (self._documents, self._put) if mode == "segments" else (self._spans, self._post)
        self._delivery = Delivery(TABLE, split, send, signal="spans", timeout=timeout)
        self.undelivered = self._delivery.undelivered

    async def export(self, batch: Batch, /) -> None:
        self._resource = batch.resource
        await self._delivery.deliver(batch)

    async def aclose(self) -> None:
        await self._client.aclose()
        await self._http.aclose()

    # ------------------------------------------------------------------------------------------- segments
    def _documents(self, batch: Batch) -> Iterator[Part]:
        documents = (document(span, batch.resource, self.annotations).decode() for span in batch.spans)
        return parts(
            documents,
            count=REQUEST_DOCUMENTS,
            size=REQUEST_DOCUMENT_BYTES,
            size_of=lambda text: len(json.dumps(text)),
        )

    async def _put(self, part: Part) -> None:
        documents = part.items
        answer = await self._client.call("put_trace_segments", {"TraceSegmentDocuments": documents})
        unprocessed = answer.get("UnprocessedTraceSegments") or []
        if not unprocessed:
            return
        first = unprocessed[0]
        code = str(first.get("ErrorCode", "no code"))
        said = (
            f"{TABLE} {len(unprocessed)} of {len(documents)} segments were not processed; the first, "
            f"{first.get('Id', 'without an id')}: {code}: {first.get('Message', '')}"
        )
        if "Throttl" in code:
            raise ThrottledError(said)
        raise Rejected(said, count=len(unprocessed))

    # ----------------------------------------------------------------------------------------------- otlp
    def _spans(self, batch: Batch) -> Iterator[Part]:
        small: list[tuple[Span, int]] = []
        for span in batch.spans:
            size = self._message([span], batch.resource).ByteSize()
            if size <= OTLP_SPAN_BYTES:
                small.append((span, size))
            else:
                yield Part([(span, size)], TOO_LARGE)
        yield from parts(small, count=OTLP_SPANS, size=OTLP_BYTES, size_of=lambda item: item[1])

    async def _post(self, part: Part) -> None:
        if part.to == TOO_LARGE:
            span, size = part.items[0]
            raise PermanentError(
                f"{TABLE} the span {span.name!r} has {size} bytes; X-Ray takes {OTLP_SPAN_BYTES} at most"
            )
        from google.protobuf.message import DecodeError

        from agentrt.telemetry.otlp_messages import RESPONSES

        assert self._resource is not None
        if self._signer is None:
            self._signer = await self._client.signer()
        message = self._message([span for span, _ in part.items], self._resource)
        body = gzip.compress(message.SerializeToString(), OTLP_LEVEL)
        headers = {"content-type": "application/x-protobuf", "content-encoding": "gzip"}
        url = self._url(self._signer.region)
        answer = await self._http.send(
            url, body, headers=await self._signed(self._signer, url, body, headers)
        )
        try:
            response = RESPONSES["spans"].FromString(answer)
        except DecodeError as error:
            raise PermanentError(
                f"{TABLE} {url} answers, but not as X-Ray does: {answer[:200]!r}", fault="target"
            ) from error
        rejected = response.partial_success.rejected_spans
        if rejected:
            raise Rejected(
                f"{TABLE} {rejected} of {len(part.items)} spans were rejected: "
                f"{response.partial_success.error_message}",
                count=rejected,
            )

    async def _signed(self, signer: Signer, url: str, body: bytes, headers: dict[str, str]) -> dict[str, str]:
        from agentrt_aws.failures import failure

        try:
            return await signer.headers(url, body, headers)
        except Exception as error:
            raise failure(error, TABLE, "xray:PutTraceSegments") from error

    def _message(self, spans: list[Span], resource: Resource) -> Any:
        if self._messages is None:
            from agentrt.telemetry.otlp_messages import Messages

            self._messages = Messages()
        return self._messages.spans(spans, resource)

    def _url(self, region: str) -> str:
        for name, value in (
            ("endpoint", self._endpoint),
            ("AWS_ENDPOINT_URL_XRAY", os.environ.get("AWS_ENDPOINT_URL_XRAY")),
            ("AWS_ENDPOINT_URL", os.environ.get("AWS_ENDPOINT_URL")),
        ):
            if value:
                return f"{check_url(name, value).removesuffix('/v1/traces')}/v1/traces"
        suffix = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
        return f"https://xray.{region}.{suffix}/v1/traces"
