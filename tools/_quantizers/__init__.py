"""The quantizers of transformers on a CPU: what check_quantizers.py loads, saves and compares."""
