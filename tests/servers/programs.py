"""The real servers: how each is started, shown to answer, reset and asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from servers.program import Program, Reply, ServerError, eventually, fetch, find_debian, find_wheel

__all__ = ["Ddapm", "Moto", "Phoenix", "Prometheus", "Pushgateway", "Rotel"]


def _ok(reply: Reply, what: str) -> Reply:
    if reply.status >= 300:
        raise ServerError(f"{what}: status {reply.status}: {reply.body[:500]!r}")
    return reply


class Rotel(Program):
    """An OpenTelemetry collector: takes OTLP over HTTP (`url`) and gRPC (`grpc`), passes it on to `onward`.

    `onward` is the base of an OTLP/HTTP receiver that takes gzip, which this version sends whatever it is told.
    """

    name = "rotel"
    ports_needed = 2

    def __init__(self, onward: str) -> None:
        super().__init__()
        self.onward = onward

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def grpc(self) -> str:
        """Without TLS."""
        return f"http://127.0.0.1:{self.ports[1]}"

    def argv(self, folder: Path) -> Sequence[str | Path]:
        http, grpc = self.ports
        program = find_wheel("rotel", "lib/python*/site-packages/rotel/rotel-agent")
        line = f"--otlp-http-endpoint 127.0.0.1:{http} --otlp-grpc-endpoint 127.0.0.1:{grpc}"
        line += " --exporter otlp --otlp-exporter-protocol http --otlp-exporter-batch-timeout 50ms"
        line += f" --otlp-exporter-endpoint {self.onward}"
        return [program, "start", "--pid-file", folder / "pid", *line.split()]

    def ready(self) -> bool:
        # An empty request; the body is one of no resource spans.
        headers = {"Content-Type": "application/x-protobuf"}
        return fetch(f"{self.url}/v1/traces", method="POST", body=b"", headers=headers).status == 200


class Ddapm(Program):
    """Datadog's test agent: the Agent's own port (`url`), OTLP over HTTP (`otlp`) and gRPC (`grpc`)."""

    name = "ddapm"
    ports_needed = 3

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def otlp(self) -> str:
        return f"http://127.0.0.1:{self.ports[1]}"

    @property
    def grpc(self) -> str:
        return f"http://127.0.0.1:{self.ports[2]}"

    def argv(self, folder: Path) -> Sequence[str | Path]:
        own, http, grpc = self.ports
        line = f"--host 127.0.0.1 --port {own} --otlp-http-port {http} --otlp-grpc-port {grpc}"
        # It would pass on to datadoghq.com what has a key.
        line += " --disable-llmobs-data-forwarding"
        line += f" --snapshot-dir {folder} --vcr-cassettes-directory {folder}"
        return [find_wheel("ddapm", "bin/ddapm-test-agent"), *line.split()]

    def ready(self) -> bool:
        return all(fetch(f"{base}/test/session/traces").status < 500 for base in (self.url, self.otlp))

    def reset(self) -> None:
        """Forgets all that it received."""
        for base in (self.url, self.otlp):
            _ok(fetch(f"{base}/test/session/clear"), "clearing the Datadog test agent")

    async def received(self, signal: str, *, timeout: float = 30.0) -> list[Any]:
        """The requests of a signal, "traces", "metrics" or "logs", as soon as there are any."""
        url = f"{self.otlp}/test/session/{signal}"
        return await eventually(lambda: _ok(fetch(url), url).json(), what=signal, timeout=timeout)


class Moto(Program):
    """A stand-in for AWS that keeps what it is given: CloudWatch Logs, CloudWatch metrics, X-Ray and more."""

    name = "moto"
    region = "eu-central-1"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def variables(self) -> dict[str, str]:
        """What leads botocore here: for `monkeypatch.setenv` or a child's environment."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def argv(self, folder: Path) -> Sequence[str | Path]:
        del folder
        return [find_wheel("moto", "bin/moto_server"), "-H", "127.0.0.1", "-p", str(self.ports[0])]

    def ready(self) -> bool:
        return fetch(f"{self.url}/moto-api/").status == 200

    def reset(self) -> None:
        """Forgets all that it was given."""
        _ok(fetch(f"{self.url}/moto-api/reset", method="POST"), "resetting moto")

    async def call(self, service: str, target: str, body: Mapping[str, Any], *, path: str = "/") -> Any:
        """One request in AWS's JSON protocol, such as ("logs", "Logs_20140328.PutLogEvents", {...}).

        With an empty `target` it goes to `path` as REST (X-Ray). Unsigned but for the scope, which moto reads.
        """
        scope = f"Credential=testing/20260101/{self.region}/{service}/aws4_request"
        headers = {
            "Content-Type": "application/x-amz-json-1.1",
            "Authorization": f"AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=0",
        }
        if target:
            headers["X-Amz-Target"] = target
        data = json.dumps(body).encode()
        reply = await asyncio.to_thread(
            fetch, self.url + path, method="POST", body=data, headers=headers, timeout=20.0
        )
        _ok(reply, target or path)
        return reply.json() if reply.body else {}


class Prometheus(Program):
    """Scrapes what `scrape` names, five times a second, and answers PromQL."""

    name = "prometheus"

    def __init__(self) -> None:
        super().__init__()
        self._jobs: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    def argv(self, folder: Path) -> Sequence[str | Path]:
        self._write(folder)
        line = f"--config.file={folder / 'prometheus.yml'} --storage.tsdb.path={folder / 'data'}"
        line += f" --web.listen-address=127.0.0.1:{self.ports[0]} --web.enable-lifecycle --log.level=warn"
        return [find_debian("prometheus"), *line.split()]

    def ready(self) -> bool:
        return fetch(f"{self.url}/-/ready").status == 200

    async def scrape(self, target: str, *, path: str = "/metrics", job: str = "test") -> None:
        """Adds a target, "127.0.0.1:PORT"; returns when the first scrape of it has succeeded, after up to 5 s.

        That is how often Prometheus looks whether it has new targets.
        """
        # Labels that the target gives (a pushgateway's job) win.
        self._jobs.append(
            {
                "job_name": job,
                "metrics_path": path,
                "honor_labels": True,
                "static_configs": [{"targets": [target]}],
            }
        )
        self._write(self._folder / "work")
        reply = await asyncio.to_thread(fetch, f"{self.url}/-/reload", method="POST")
        _ok(reply, "loading the configuration of prometheus")
        try:
            await self.query_until(f'up{{job="{job}", instance="{target}"}} == 1', timeout=20.0)
        except AssertionError as error:
            targets = await asyncio.to_thread(fetch, f"{self.url}/api/v1/targets")
            error.add_note(f"the targets: {targets.body.decode(errors='replace')}")
            raise

    async def query(self, promql: str) -> list[dict[str, Any]]:
        """The series of an instant query: each with "metric" (labels) and "value" (time, text)."""
        return await asyncio.to_thread(self._query, promql)

    async def query_until(self, promql: str, *, timeout: float = 30.0) -> list[dict[str, Any]]:
        """The first answer that is not empty; fails after `timeout` seconds."""
        return await eventually(lambda: self._query(promql), what=f"series for {promql}", timeout=timeout)

    async def metadata(self, metric: str) -> list[dict[str, str]]:
        """Type, help and unit of a metric."""
        reply = await asyncio.to_thread(fetch, f"{self.url}/api/v1/metadata?metric={quote(metric)}")
        found: list[dict[str, str]] = _ok(reply, "metadata").json()["data"].get(metric, [])
        return found

    def _query(self, promql: str) -> list[dict[str, Any]]:
        reply = fetch(f"{self.url}/api/v1/query?{urlencode({'query': promql})}")
        result: list[dict[str, Any]] = _ok(reply, promql).json()["data"]["result"]
        return result

    def _write(self, folder: Path) -> None:
        settings = {"global": {"scrape_interval": "200ms", "scrape_timeout": "200ms"}}
        # JSON is YAML.
        (folder / "prometheus.yml").write_text(json.dumps({**settings, "scrape_configs": self._jobs}))


class Pushgateway(Program):
    """Keeps what short runs push, for Prometheus to scrape."""

    name = "pushgateway"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def address(self) -> str:
        """For `Prometheus.scrape`."""
        return f"127.0.0.1:{self.ports[0]}"

    def argv(self, folder: Path) -> Sequence[str | Path]:
        del folder
        address = f"--web.listen-address={self.address}"
        return [find_debian("prometheus-pushgateway"), address, "--persistence.file="]

    def ready(self) -> bool:
        return fetch(f"{self.url}/-/ready").status == 200

    async def groups(self) -> list[dict[str, Any]]:
        """The groups that were pushed: each with "labels" and its metrics by name."""
        reply = await asyncio.to_thread(fetch, f"{self.url}/api/v1/metrics")
        found: list[dict[str, Any]] = _ok(reply, "the pushed groups").json()["data"]
        return found


class Phoenix(Program):
    """Arize Phoenix: takes OTLP over HTTP (`url`) and gRPC (`grpc`), shows runs as traces of agents."""

    name = "phoenix"
    ports_needed = 2
    start_limit = 180.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def grpc(self) -> str:
        return f"http://127.0.0.1:{self.ports[1]}"

    def argv(self, folder: Path) -> Sequence[str | Path]:
        del folder
        return [find_wheel("phoenix", "bin/phoenix"), "serve"]

    def environment(self, folder: Path) -> Mapping[str, str]:
        return {
            "PHOENIX_HOST": "127.0.0.1",
            "PHOENIX_PORT": str(self.ports[0]),
            "PHOENIX_GRPC_PORT": str(self.ports[1]),
            "PHOENIX_WORKING_DIR": str(folder),
            "PHOENIX_TELEMETRY_ENABLED": "false",
            "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
            "HOME": str(folder),
        }

    def ready(self) -> bool:
        return fetch(f"{self.url}/healthz").status == 200

    async def spans(self, project: str = "default", *, count: int = 1, timeout: float = 30.0) -> list[Any]:
        """The spans of a project, as soon as there are `count`."""
        url = f"{self.url}/v1/projects/{quote(project)}/spans?limit=1000"

        def ask() -> list[Any]:
            reply = fetch(url)
            # A project comes to be with its first span.
            found: list[Any] = [] if reply.status == 404 else _ok(reply, url).json()["data"]
            return found if len(found) >= count else []

        return await eventually(ask, what=f"{count} spans in {project!r}", timeout=timeout)
