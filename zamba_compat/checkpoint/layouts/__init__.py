"""What the stored tensors mean: which layout they are in, what the model needs, how another layout is made of them."""
