"""What agents remember: the `Memory` protocol, and an embedded one on SQLite."""

from agentrt.memory.protocol import Item, Memory

__all__ = ["Item", "Memory"]
