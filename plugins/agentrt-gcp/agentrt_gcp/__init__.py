"""agentrt's secrets from GCP Secret Manager."""
