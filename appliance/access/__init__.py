"""Decide who may do what, and record it."""
