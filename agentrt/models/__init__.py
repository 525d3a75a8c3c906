"""Model clients: the protocol and one file per client."""
