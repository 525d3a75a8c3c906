"""The backends of plugins/, against real servers."""
