"""What the tests judge by and work on: an independent forward pass, small checkpoints."""
