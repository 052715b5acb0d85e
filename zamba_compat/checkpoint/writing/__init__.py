"""A new checkpoint: staged beside its destination, written in one pass, put in place all at once."""
