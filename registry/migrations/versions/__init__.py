"""One module per step; none is edited after its release."""
