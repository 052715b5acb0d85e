"""What mergekit is taught of Zamba2: its tensors by layer, its parents' layouts, one value for a shared tensor.

Called by the adapters in patches/mergekit only; needs mergekit when it is called, not when it is imported.
"""
