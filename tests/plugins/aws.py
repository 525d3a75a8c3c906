"""An AWS of the tests' own that answers as told, and what leads boto to it."""

from __future__ import annotations

import json

import pytest
from servers.http_server import Answer, HttpServer, Request
from servers.program import fetch

__all__ = ["Front", "aws_error", "lead", "without_credentials"]

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


class Front(HttpServer):
    """Stands in front of moto: passes on what comes, keeps it, and answers itself what moto cannot (`answer`)."""

    def __init__(self, onward: str) -> None:
        super().__init__()
        self.onward = onward

    def respond(self, request: Request) -> Answer:
        kept = ("content-type", "authorization", "x-amz-target", "x-amz-date")
        headers = {name: value for name, value in request.headers.items() if name in kept}
        reply = fetch(self.onward + request.path, method=request.method, body=request.body, headers=headers)
        return Answer(reply.status, reply.body, {"Content-Type": "application/x-amz-json-1.1"})

    def operations(self) -> list[str]:
        """What was asked so far: "GetSecretValue"."""
        return [request.headers.get("x-amz-target", "").rpartition(".")[2] for request in self.requests]
