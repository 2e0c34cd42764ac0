"""Migrations of the registry's schema, from the first revision on."""
