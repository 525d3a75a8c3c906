"""boto's connections, which follow no redirect.

boto itself follows none either, but aiohttp does, wherever it leads and from https to http: with the session token, and
what answers there would pass for AWS.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from aiobotocore.httpsession import AIOHTTPSession

__all__ = ["Connections"]


class _Requests:
    """Of a session of aiohttp what aiobotocore uses."""

    def __init__(self, session: Any) -> None:
        self.request = partial(session.request, allow_redirects=False)


async def _get_session(self: Any, proxy_url: str | None) -> _Requests:
    return _Requests(await AIOHTTPSession._get_session(self, proxy_url))


# Not as a class statement: mypy sees no types in aiobotocore, and pyright those of what is overridden.
Connections: Any = type("Connections", (AIOHTTPSession,), {"_get_session": _get_session})
