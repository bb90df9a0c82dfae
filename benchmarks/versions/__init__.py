"""Measure what versions cost to fetch, to switch and to roll back."""
