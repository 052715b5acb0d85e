"""Adapters for mergekit, one file per upstream defect."""
