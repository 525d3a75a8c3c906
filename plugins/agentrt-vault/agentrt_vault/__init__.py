"""agentrt's secrets from HashiCorp Vault and OpenBao, with leases."""

from agentrt_vault.auth import AppRole, Jwt, Kubernetes
from agentrt_vault.provider import VaultSecrets

__all__ = ["AppRole", "Jwt", "Kubernetes", "VaultSecrets"]
