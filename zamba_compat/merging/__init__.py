"""Merging checkpoints: mergekit's YAML read, each tensor's share of each parent decided, and the sums."""
