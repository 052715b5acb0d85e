"""Built models: how they are loaded, placed, quantized, taken apart and checked."""
