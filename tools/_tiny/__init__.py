"""Parts of tools/train_tiny.py: corpus, model, training, perplexity, ablations and the checkpoint on disk."""
