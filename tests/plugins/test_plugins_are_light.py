"""Importing a plugin, as `agentrt plugins` does for all that are installed, loads no client of any service."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "aioboto3",
    "aiobotocore",
    "botocore",
    "aiohttp",
    "prometheus_client",
    "httpx2",
    "opentelemetry",
    "google",
    "google_crc32c",
    "grpc",
    "azure",
    "msal",
    "cryptography",
)


@pytest.mark.parametrize(
    "package",
    [
        "agentrt_aws", "agentrt_aws.secrets", "agentrt_azure", "agentrt_datadog", "agentrt_gcp",
        "agentrt_prometheus", "agentrt_redis", "agentrt_zipkin",
    ],
)  # fmt: skip
def test_importing_a_plugin_loads_no_client(package: str) -> None:
    code = f"import sys, {package}; print(*sorted(set({HEAVY!r}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
