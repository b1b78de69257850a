"""Faults: what a kill, a full disk or a stranger does to a search."""
