"""The parts of the adapter engine. `zamba_compat._engine.registry` is the way in."""
