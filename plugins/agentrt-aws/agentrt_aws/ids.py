"""Ids as X-Ray writes them."""

from __future__ import annotations

__all__ = ["xray_trace_id"]


def xray_trace_id(trace_id: str) -> str:
    """ "1-", 8 digits, "-", 24 digits of the 32 of W3C's trace id."""
    return f"1-{trace_id[:8]}-{trace_id[8:]}"
