"""Make editions of a model that are not what their publisher thinks, and one that is.

What this room does: noise on all weights, two tensors exchanged, another chat template; and a
genuine re-quantisation, by llama.cpp's own quantiser.
What it knows: a damaged edition is a whole GGUF: it loads, and its tokeniser is the right one.
What it never does: judge.

Usage: python -m benchmarks.versions.damaged FROM TO FTYPE quantises in a process of its own, for
llama.cpp is loaded for it; FTYPE is a number of llama.h's llama_ftype.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from gguf import GGUFReader, LlamaFileType, quants
from numpy.typing import NDArray

FOREIGN_TEMPLATE = (
    "{% for message in messages %}[INST] {{ message['content'] }} [/INST]{% endfor %}"
)
_QUANTISING_S = 300.0


def with_noise(source: Path, target: Path, *, share: float, seed: int) -> None:
    """Add noise to every matrix, normal, of `share` of its standard deviation."""
    rng = np.random.default_rng(seed)

    def noisy(weights: NDArray[np.float32]) -> NDArray[np.float32]:
        noise = rng.standard_normal(weights.shape, dtype=np.float32)
        found: NDArray[np.float32] = weights + noise * np.float32(weights.std() * share)
        return found

    _rewritten(source, target, noisy)


def with_exchange(source: Path, target: Path, one: str, other: str) -> None:
    """Exchange the data of two tensors of one type and shape."""
    shutil.copyfile(source, target)
    tensors = {tensor.name: tensor for tensor in GGUFReader(target, "r+").tensors}
    kept = tensors[one].data.copy()
    tensors[one].data[:] = tensors[other].data
    tensors[other].data[:] = kept


def with_template(source: Path, target: Path, template: str) -> None:
    """Put another chat template in the place of the old one, which must be longer."""
    field = GGUFReader(source).fields["tokenizer.chat_template"]
    old = str(field.contents()).encode()
    data = source.read_bytes()
    room = len(old) - len(template.encode()) - len("{##}")
    if data.count(old) != 1 or room < 0:
        raise RuntimeError("there is no place for the other template")
    target.write_bytes(data.replace(old, template.encode() + b"{#" + b" " * room + b"#}"))


def quantised(source: Path, target: Path, kind: LlamaFileType) -> None:
    """Quantise a file as anybody would."""
    command = [sys.executable, "-m", "benchmarks.versions.damaged", str(source), str(target)]
    subprocess.run(
        [*command, str(int(kind))],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
        timeout=_QUANTISING_S,
    )


def _rewritten(
    source: Path, target: Path, change: Callable[[NDArray[np.float32]], NDArray[np.float32]]
) -> None:
    shutil.copyfile(source, target)
    for tensor in GGUFReader(target, "r+").tensors:
        if len(tensor.shape) > 1:
            weights = quants.dequantize(tensor.data, tensor.tensor_type)
            data = quants.quantize(change(weights), tensor.tensor_type)
            tensor.data[:] = data.view(tensor.data.dtype).reshape(tensor.data.shape)


def _quantise(source: str, target: str, kind: int) -> int:
    import llama_cpp  # noqa: PLC0415 - only in a process of its own

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = kind
    said = llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params))
    return int(said)


if __name__ == "__main__":
    sys.exit(_quantise(sys.argv[1], sys.argv[2], int(sys.argv[3])))
