"""Fixtures of the adapter engine's tests."""

from support.fake_library import library, make_registry

__all__ = ["library", "make_registry"]
