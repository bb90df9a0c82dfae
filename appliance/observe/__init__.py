"""Measure what the appliance does, and hold the measurements for those who ask."""
