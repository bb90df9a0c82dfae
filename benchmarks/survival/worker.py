"""Stand for a worker: map the files of a version, say what is in them, end when nobody listens.

Usage: python -I -S worker.py FILE...; a line of JSON for each line that is asked, and one before:
the SHA-256 of each file as it is mapped.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import sys
from pathlib import Path


def main(paths: list[str]) -> None:
    """Answer until the other end is closed."""
    maps = []
    for path in paths:
        with Path(path).open("rb") as file:
            maps.append(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    while True:
        print(json.dumps([hashlib.sha256(one).hexdigest() for one in maps]), flush=True)
        if not sys.stdin.readline():
            return


if __name__ == "__main__":
    main(sys.argv[1:])
