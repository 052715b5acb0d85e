"""Adapters for accelerate."""
