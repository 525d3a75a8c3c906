"""What outlives a process: a store of documents, which are the conversations' business and opaque to it."""

from agentrt.state.protocol import MAX_ID, Entry, StateConflict, StateStore, Stored

__all__ = ["MAX_ID", "Entry", "StateConflict", "StateStore", "Stored"]
