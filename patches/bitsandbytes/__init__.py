"""Adapters for bitsandbytes, one file per upstream defect."""
