"""agentrt's secrets from GCP Secret Manager."""

from agentrt_gcp.secrets import GcpSecrets

__all__ = ["GcpSecrets"]
