"""Publish signed versions of models, and say which appliances should run which.

What this room does: the repository that appliances read, the tool that publishers sign with, and
the small server between them.
What it knows: python-tuf's metadata; the documents of `contract`.
What it never does: run in an appliance's daemon, or hold a publisher's key on the hub.
"""
