"""Say what hub and appliance both believe: the documents that are signed, and where they lie.

What this room does: the shape of every signed document, its encoding, its bounds, and the checks
that make a document fit to act on.
What it knows: JSON and MessagePack by msgspec; TUF carries each document as a target, so its length
and hash are checked before a byte of it comes here.
What it never does: I/O, signatures, or decide whether a document applies to this appliance.
"""
