"""Models on the hub, by huggingface_hub: what a name means, downloads into its cache, uploads in one commit."""
