"""agentrt's secrets from Azure Key Vault."""
