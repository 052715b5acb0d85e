"""The rule: which tensors are one and the same, what each is called, and what a config means. No torch at import."""
