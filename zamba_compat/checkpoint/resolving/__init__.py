"""What becomes of each tensor: copies that differ, another dtype, a quantizer's format."""
