"""Model clients: one file each, found by prefix through the entry-point group `agentrt.models`."""
