"""Learn of signed versions, fetch them, try them safely, and come back from them.

What this room does: trust, blobs, and the life of a deployment.
What it knows: the signed documents of `contract`, and those who host versions by a Protocol.
What it never does: load a model, talk to a client, or import a room beside it.
"""
