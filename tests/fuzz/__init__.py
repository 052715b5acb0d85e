"""Whatever bytes a file has, a reader either reads it or raises an error of this package."""
