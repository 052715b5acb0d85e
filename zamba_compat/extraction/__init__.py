"""A LoRA from the difference of two checkpoints."""
