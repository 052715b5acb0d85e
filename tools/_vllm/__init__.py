"""vLLM's loader of Zamba2 without vLLM installed: what check_vllm.py runs."""
