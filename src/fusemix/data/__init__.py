"""Items, pairs and stores: what there is, which of it belongs together, and its latents on disk."""
