"""agentrt's rate limits shared between processes by Redis or Valkey."""

from __future__ import annotations

from agentrt_redis.store import RedisLimits

__all__ = ["RedisLimits"]
