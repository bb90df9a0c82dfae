"""A KV cache of another type changes the answers a little, or the model is refused by its key."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from appliance.clock import monotonic_ms
from appliance.domain import SamplingOptions, StopOptions
from appliance.errors import ModelUnloadable
from appliance.runtime import wire
from appliance.runtime.loading import Loaded, load
from tools.gguf_writer import SHAPES, Quantisation, byte_vocabulary, write_llama

PROMPT = tuple(range(40, 104))
TOP = 20


@pytest.fixture(name="paths", scope="module")
def _paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write two models: with heads of 64 values, and of 16, which are no whole block."""
    place = tmp_path_factory.mktemp("cache")
    for shape in ("small", "tiny"):
        write_llama(place / shape, SHAPES[shape], byte_vocabulary(), Quantisation.Q8_0, seed=5)
    return {shape: place / shape for shape in ("small", "tiny")}


def loaded(path: Path, key: str, value: str, flash: str = "auto") -> Loaded:
    options = wire.EngineOptions(
        path=str(path),
        context_tokens=256,
        cells_total=512,
        sequences_max=2,
        batch_tokens=64,
        threads_decode=1,
        threads_prefill=1,
        gpu_layers=0,
        step_ms_while_streaming=300.0,
        step_ms_max=1000.0,
        queue_requests_max=8,
        output_reserve_tokens=16,
        ack_window_steps=16,
        cache_type_k=key,
        cache_type_v=value,
        flash_attention=flash,
    )
    return load(options, monotonic_ms, lambda _ratio: None)


def top_logprobs(path: Path, key: str, value: str, flash: str = "auto") -> dict[int, float]:
    """Evaluate the prompt in several steps and draw one token; its best alternatives."""
    engine = loaded(path, key, value, flash).engine
    engine.submit(
        wire.Submit(
            ticket=1,
            prompt_ids=PROMPT + PROMPT,
            n=1,
            seed=1,
            sampling=SamplingOptions(temperature=0.0),
            stop=StopOptions(max_tokens=1, ignore_eos=True),
            top_logprobs=TOP,
        )
    )
    while engine.has_work:
        for frame in engine.step():
            assert isinstance(frame, wire.Step)
            for news in frame.news:
                for token in news.logprobs:
                    return {token_id: logprob for token_id, _, logprob in token.top}
    raise AssertionError


def shared(one: dict[int, float], other: dict[int, float]) -> NDArray[np.float64]:
    return np.array([one[token_id] - other[token_id] for token_id in one.keys() & other.keys()])


def test_quantised_caches_give_nearly_the_same_distribution(paths: dict[str, Path]) -> None:
    exact = top_logprobs(paths["small"], "f32", "f32")
    for key, value, bound in (
        ("f16", "f16", 0.05),  # no gap at all where flash attention rounds f32 to f16 itself
        ("bf16", "bf16", 0.5),
        ("q8_0", "q8_0", 0.5),
        ("q8_0", "q4_0", 3.0),
    ):
        found = top_logprobs(paths["small"], key, value)
        gaps = shared(exact, found)
        assert len(gaps) > TOP // 2, (key, value)
        assert np.abs(gaps).max() < bound, (key, value)
        assert key == "f16" or np.abs(gaps).max() > 0.0, "the type had no effect"


def test_every_type_loads_and_its_cells_have_their_size(paths: dict[str, Path]) -> None:
    sizes = {}
    for name in ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"):
        sizes[name] = loaded(paths["small"], name, name).facts.kv_bytes_per_token
    f16 = sizes["f16"]
    assert sizes["f32"] > 1.9 * f16
    assert sizes["bf16"] == f16
    assert sizes["q4_0"] < sizes["q4_1"] < sizes["q5_1"] < sizes["q8_0"] < 0.6 * f16


def test_without_flash_attention_keys_may_be_quantised(paths: dict[str, Path]) -> None:
    gaps = shared(
        top_logprobs(paths["small"], "q8_0", "f16", "off"),
        top_logprobs(paths["small"], "q8_0", "f16", "on"),
    )
    assert np.abs(gaps).max() < 0.3


def test_what_llama_cpp_refuses_is_refused_with_the_reason(paths: dict[str, Path]) -> None:
    with pytest.raises(ModelUnloadable, match="quantized V cache requires flash_attn"):
        loaded(paths["small"], "f16", "q8_0", "off")
    with pytest.raises(ModelUnloadable, match="cache_type_v can't be q8_0: the 16 values"):
        loaded(paths["tiny"], "f16", "q8_0")
