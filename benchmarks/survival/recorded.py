"""Live one life of a scene, to be run under `shim.c`.

Usage: python -m benchmarks.survival.recorded WORLD URL SCENE DIRECTORY
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from benchmarks.survival.box import live
from benchmarks.survival.scenes import SCENES, plan_of

if __name__ == "__main__":
    world, address, name, place = sys.argv[1:]
    plan = plan_of(SCENES[name], Path(world), address, later=1)
    asyncio.run(live(Path(place), plan))
