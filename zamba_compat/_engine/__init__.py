"""The parts of the adapter engine. `zamba_compat.adapters` is the way in."""
