"""What stands between a model's text and the world: encryption, boundaries, files, rate limits, the audit log."""
