"""Frozen pretrained transformers: load, quantise, fingerprint; the sites of their modules."""
