"""agentrt's secrets from HashiCorp Vault and OpenBao, with leases."""
