"""One module per revision; none is edited after its release.

A revision that alters a table used by views drops the views first and recreates them afterwards: neither database
allows it otherwise.
"""
