"""The registry's schema, step by step, from the first table on."""
