"""One module per step; none is edited after its release.

A step that alters a table which views read drops those first and makes them again after: neither database would let it.
"""
