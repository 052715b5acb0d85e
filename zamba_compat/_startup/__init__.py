"""A folder to put on PYTHONPATH: its sitecustomize arms the adapters in every Python that starts with it."""
