"""Inference on a CPU, faster than PyTorch alone; without it everything is computed all the same."""
