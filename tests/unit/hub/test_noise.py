"""Noise of a known size: on each matrix, in each type, and on nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quants

from appliance.errors import ModelUnloadable
from appliance.hub.noise import with_noise

SHAPE, DEVIATION, SHARE = (64, 256), 0.5, 0.05


def _write(path: Path, kind: GGMLQuantizationType) -> None:
    rng = np.random.default_rng(1)
    writer = GGUFWriter(path, "llama")
    for number in (1, 2):
        matrix = rng.normal(0.1, DEVIATION * number, SHAPE).astype(np.float32)
        writer.add_tensor(f"matrix-{number}", quants.quantize(matrix, kind), raw_dtype=kind)
    writer.add_tensor("vector", np.ones(SHAPE[1], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _read(path: Path) -> dict[str, np.ndarray]:
    return {
        one.name: quants.dequantize(one.data, one.tensor_type) for one in GGUFReader(path).tensors
    }


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_each_matrix_has_noise_in_proportion_to_its_own_deviation(
    kind: str, tmp_path: Path
) -> None:
    source, target = tmp_path / "model.gguf", tmp_path / "noisy.gguf"
    _write(source, GGMLQuantizationType[kind])
    before = source.read_bytes()
    with_noise(source, target, share=SHARE)
    assert source.read_bytes() == before
    old, new = _read(source), _read(target)
    for number in (1, 2):
        noise = new[f"matrix-{number}"] - old[f"matrix-{number}"]
        assert noise.std() == pytest.approx(SHARE * DEVIATION * number, rel=0.05)
        assert abs(noise.mean()) < 0.1 * noise.std()
    assert np.array_equal(new["vector"], old["vector"])


def test_quantised_weights_and_what_is_no_model_are_refused(tmp_path: Path) -> None:
    source, target = tmp_path / "model.gguf", tmp_path / "noisy.gguf"
    _write(source, GGMLQuantizationType.Q8_0)
    with pytest.raises(ModelUnloadable, match="F32, F16 or BF16"):
        with_noise(source, target, share=SHARE)
    source.write_bytes(b"GGUF")
    with pytest.raises(ModelUnloadable):
        with_noise(source, target, share=SHARE)
    assert not target.exists()
