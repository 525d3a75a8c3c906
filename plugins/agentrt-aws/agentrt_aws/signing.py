"""Signature Version 4, by botocore's signer, for requests that boto has no operation for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import NoCredentialsError

__all__ = ["Signer"]


class Signer:
    """Signs for one service and region. Credentials that expire are renewed by boto as they are asked for."""

    def __init__(self, service: str, region: str, credentials: Any) -> None:
        if credentials is None:
            raise NoCredentialsError
        self.service = service
        self.region = region
        self._credentials = credentials

    async def headers(self, url: str, body: bytes, headers: Mapping[str, str]) -> dict[str, str]:
        """`headers` of a POST with those that sign it. They hold for a few minutes, for this body only."""
        frozen = await self._credentials.get_frozen_credentials()
        request = AWSRequest(method="POST", url=url, data=body, headers=dict(headers))
        SigV4Auth(frozen, self.service, self.region).add_auth(request)
        return dict(request.headers.items())
