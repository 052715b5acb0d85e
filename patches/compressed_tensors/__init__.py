"""Adapters for compressed-tensors, one file per upstream defect."""
