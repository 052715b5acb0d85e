"""Adapters for transformers, one file per upstream defect."""
