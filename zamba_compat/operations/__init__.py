"""One function per command: what is done to whole checkpoints."""
