"""agentrt's rate limits shared between processes by Redis or Valkey."""
