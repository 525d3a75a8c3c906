"""An AWS of the tests' own that answers as told, and what leads boto to it."""

from __future__ import annotations

import json

import pytest
from servers.http_server import Answer, HttpServer

__all__ = ["aws_error", "lead", "without_credentials"]

REGION = "eu-central-1"


def lead(monkeypatch: pytest.MonkeyPatch, server: HttpServer) -> None:
    """Everything that boto asks goes to `server`."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)


def without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials and no region, whatever this machine has."""
    for name in (
        "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION",
        "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")


def aws_error(code: str, message: str = "because", status: int = 400, **headers: str) -> Answer:
    """An error in AWS's JSON protocol."""
    body = json.dumps({"__type": code, "message": message}).encode()
    return Answer(status, body, {"Content-Type": "application/x-amz-json-1.1", **headers})
