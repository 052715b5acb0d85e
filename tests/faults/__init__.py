"""Hostile and broken checkpoints, one generator per row of the table in docs/faults.md, run against every command."""
