"""Helpers of check_zyphra.py."""
