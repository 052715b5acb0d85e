"""Checkpoints on disk: opened safely from their headers alone, written staged and all at once."""
