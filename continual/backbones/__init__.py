"""Frozen pretrained transformers: loading, quantisation, fingerprints, and the sites of their modules."""
