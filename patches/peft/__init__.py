"""Adapters for PEFT, one file per upstream defect."""
