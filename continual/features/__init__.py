"""Texts to tokens, batched forward passes, pooled and random features, and their additive statistics."""
