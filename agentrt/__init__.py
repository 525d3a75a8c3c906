"""agentrt: the production runtime for Python agents."""

__version__ = "0.1.0"
