"""agentrt's secrets from Azure Key Vault."""

from agentrt_azure.secrets import AzureSecrets

__all__ = ["AzureSecrets"]
