"""A publisher measures the original: what is far from it is named, and a pack can be published."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import msgspec
import pytest

from appliance import originals
from appliance.cli import exits
from appliance.cli.hub_options import read_part
from appliance.cli.main import main
from appliance.contract.release import HealthPack
from appliance.errors import ModelUnloadable

DEMO = Path(__file__).resolve().parents[2] / "appliance" / "models" / "demo"
ORIGINAL = str(DEMO / "demo-2.f16.gguf")
PROMPTS = (
    "Olivia sold a white phone in Rome. What colour is the phone?",
    "List the entities of this sentence as JSON: John met a client of Bluewave in Bern.",
)


@pytest.fixture
def health(tmp_path: Path) -> Path:
    path = tmp_path / "health.json"
    prompts = [{"prompt": prompt, "tokens_min": 1} for prompt in PROMPTS]
    path.write_text(json.dumps({"prompts": prompts}))
    return path


def test_the_served_edition_is_near_its_original_and_a_damaged_one_is_far(
    health: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "measured.json"
    words = ["hub", "measure", ORIGINAL, "--health", str(health), "--out", str(out), "--json"]
    for edition, code in (("demo-2.q8_0.gguf", 0), ("demo-3.q8_0.gguf", exits.DATA)):
        assert main([*words, "--edition", str(DEMO / edition)]) == code
        (held,) = json.loads(capsys.readouterr().out)["editions"]
        assert held["passes"] == (code == 0)
        pack = read_part(out, HealthPack)
        assert 0 < pack.drift_max < 1
        assert (held["drift_nats"] <= pack.drift_max) == (code == 0)
    for prompt in pack.prompts:
        assert prompt.likely
        assert all(len(one.ids) == originals.LIKELY_COUNT for one in prompt.likely)
        assert all(list(one.logprobs) == sorted(one.logprobs)[::-1] for one in prompt.likely)
    assert msgspec.json.decode(out.read_bytes(), type=HealthPack) == pack


def test_the_bar_grows_with_the_noise_it_is_measured_by_and_can_be_said_outright(
    health: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "measured.json"
    words = ["hub", "measure", ORIGINAL, "--health", str(health), "--out", str(out), "--json"]
    bars = []
    for more in (["--noise-percent", "1"], ["--noise-percent", "10"], ["--drift-max", "7"]):
        assert main([*words, *more]) == 0
        bars.append(json.loads(capsys.readouterr().out)["drift_max"])
        assert read_part(out, HealthPack).drift_max == bars[-1]
    assert bars[0] < bars[1] < bars[2] == 7
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_an_original_that_is_quantised_already_needs_the_bar_said(
    health: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, quantised = tmp_path / "measured.json", str(DEMO / "demo-2.q8_0.gguf")
    words = ["hub", "measure", quantised, "--health", str(health), "--out", str(out)]
    assert main(words) != 0
    assert "F32, F16 or BF16" in capsys.readouterr().err
    assert not out.exists()
    assert main([*words, "--drift-max", "0.1"]) == 0


def test_a_pack_without_prompts_measures_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty, out = tmp_path / "health.json", tmp_path / "measured.json"
    empty.write_text("{}")
    words = ["hub", "measure", ORIGINAL, "--health", str(empty), "--out", str(out)]
    assert main(words) == exits.USAGE
    assert "no prompts" in capsys.readouterr().err
    assert not out.exists()


def test_a_file_that_is_no_model_is_said_to_be_none(tmp_path: Path, health: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(ModelUnloadable):
        asyncio.run(originals.answers_of(path, read_part(health, HealthPack).prompts))
