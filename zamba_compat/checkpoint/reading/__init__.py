"""A checkpoint's files, opened safely and read: nothing here judges what the tensors mean."""
