"""Measurements beside peers: same weights, same machine, one run, ratios."""
