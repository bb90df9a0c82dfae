"""What is cut, copied or restored is worth as much as what is evaluated afresh, or is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from appliance.domain import MemoryKind
from appliance.runtime.llama import Context, ContextOptions, DecodeCode, Model
from tools.gguf_writer import (
    SHAPES,
    WINDOW_TOKENS,
    Architecture,
    Quantisation,
    byte_vocabulary,
    write_llama,
    write_other,
)

PROMPT = tuple(range(40, 40 + 3 * WINDOW_TOKENS))  # longer than the window
NEXT = (7, 8, 9)
# Of logits with a standard deviation of 3: other places in the cache are summed in another order.
CLOSE = 0.02
OTHER = 0.5
WHOLE = tuple(Architecture)


@pytest.fixture(name="models", scope="module")
def _models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    place = tmp_path_factory.mktemp("memory")
    vocabulary = byte_vocabulary()
    write_llama(place / "llama", SHAPES["tiny"], vocabulary, Quantisation.Q8_0, seed=1)
    for architecture in Architecture:
        write_other(place / architecture, architecture, vocabulary, seed=1)
    return {path.name: load(path) for path in place.iterdir()}


def load(path: Path) -> Model:
    return Model(path, gpu_layers=0, on_progress=lambda _ratio: None)


def opened(model: Model, *, kv_unified: bool = True, sequences_max: int = 4) -> Context:
    return model.open_context(
        ContextOptions(
            cells=1024,
            batch_tokens=64,
            sequences_max=sequences_max,
            threads_decode=1,
            threads_prefill=1,
            outputs_max=16,
            embedding=False,
            kv_unified=kv_unified,
        )
    )


def evaluate(context: Context, seq_id: int, ids: tuple[int, ...]) -> NDArray[np.float32]:
    """Append tokens to a sequence; the logits after the last."""
    count = context.put(0, ids, seq_id, context.position_max(seq_id) + 1)
    context.want_row(count - 1)
    assert context.decode(count) is DecodeCode.OK
    row: NDArray[np.float32] = context.logits(1)[0].copy()
    return row


def fresh(model: Model, *parts: tuple[int, ...]) -> NDArray[np.float32]:
    """Evaluate the parts one after the other in a context of their own."""
    context = opened(model)
    return [evaluate(context, 0, part) for part in parts][-1]


def gap(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(np.abs(one - other).max())


# --- what a memory allows is found out ------------------------------------------------------------


@pytest.mark.parametrize("kv_unified", [True, False])
def test_the_kind_of_memory_is_found_when_the_context_is_made(
    models: dict[str, Model], *, kv_unified: bool
) -> None:
    kinds = {
        name: opened(model, kv_unified=kv_unified).memory_kind for name, model in models.items()
    }
    assert kinds == {"llama": MemoryKind.CUTTABLE} | dict.fromkeys(WHOLE, MemoryKind.WHOLE)


def test_the_trial_catches_a_memory_that_says_nothing_of_itself(
    models: dict[str, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model, "has_whole_memory", False)
    kinds = {name: opened(model).memory_kind for name, model in models.items()}
    assert kinds["llama"] is MemoryKind.CUTTABLE
    assert kinds[Architecture.RECURRENT] is MemoryKind.WHOLE
    assert kinds[Architecture.HYBRID] is MemoryKind.WHOLE


@pytest.mark.parametrize("name", ["llama", *WHOLE])
def test_the_trial_leaves_nothing_behind(models: dict[str, Model], name: str) -> None:
    context = opened(models[name])
    assert context.position_max(0) == -1
    assert gap(evaluate(context, 0, PROMPT), fresh(models[name], PROMPT)) == 0.0


# --- attention: cut and share ------------------------------------------------------------


def test_a_copied_prefix_is_worth_an_evaluated_one(models: dict[str, Model]) -> None:
    context = opened(models["llama"])
    evaluate(context, 0, PROMPT)
    context.copy_prefix(0, 1, 30)
    assert context.position_max(1) == 29
    shared = evaluate(context, 1, NEXT)
    expected = fresh(models["llama"], PROMPT[:30], NEXT)
    assert gap(shared, expected) < CLOSE
    assert gap(shared, fresh(models["llama"], PROMPT[:29], NEXT)) > OTHER
    # The source goes on as if nothing had happened.
    assert gap(evaluate(context, 0, NEXT), fresh(models["llama"], PROMPT, NEXT)) < CLOSE


def test_a_prefix_grows_by_copying_more_of_it(models: dict[str, Model]) -> None:
    context = opened(models["llama"])
    evaluate(context, 0, PROMPT)
    for tokens in (10, 10, 30, 20):
        context.copy_prefix(0, 1, tokens)
    assert context.position_max(1) == 29
    expected = fresh(models["llama"], PROMPT[:30], NEXT)
    assert gap(evaluate(context, 1, NEXT), expected) < CLOSE
    # No cell was counted twice: cut back, the sequence ends where it should.
    assert context.cut(1, 5)
    assert context.position_max(1) == 4
    context.remove(0)
    expected = fresh(models["llama"], PROMPT[:5], NEXT)
    assert gap(evaluate(context, 1, NEXT), expected) < CLOSE


@pytest.mark.parametrize("kv_unified", [True, False])
def test_a_cut_sequence_goes_on_as_if_it_had_never_been_longer(
    models: dict[str, Model], *, kv_unified: bool
) -> None:
    context = opened(models["llama"], kv_unified=kv_unified)
    evaluate(context, 2, PROMPT)
    assert context.cut(2, 20)
    assert context.position_max(2) == 19
    expected = fresh(models["llama"], PROMPT[:20], NEXT)
    assert gap(evaluate(context, 2, NEXT), expected) < CLOSE
    assert context.cut(2, 0)
    assert context.position_max(2) == -1


def test_shared_cells_are_not_taken_twice(models: dict[str, Model]) -> None:
    """Four sequences share 960 of 1024 cells, and each has room for 16 of its own."""
    context = opened(models["llama"])
    for _ in range(20):
        evaluate(context, 0, PROMPT)
    for target in (1, 2, 3):
        context.copy_prefix(0, target, 20 * len(PROMPT))
    for seq_id in range(4):
        evaluate(context, seq_id, PROMPT[:16])
    context.put(0, NEXT, 0, context.position_max(0) + 1)
    assert context.decode(1) is DecodeCode.NO_ROOM


# --- only whole sequences ------------------------------------------------------------


@pytest.mark.parametrize("name", WHOLE)
def test_what_cannot_be_cut_says_so_and_stays_as_it_was(
    models: dict[str, Model], name: str
) -> None:
    context = opened(models[name])
    evaluate(context, 0, PROMPT)
    assert not context.cut(0, 20)
    assert context.cut(0, len(PROMPT))  # there is nothing to cut
    with pytest.raises(AssertionError):
        context.copy_prefix(0, 1, 20)  # llama.cpp would do it, or abort
    assert gap(evaluate(context, 0, NEXT), fresh(models[name], PROMPT, NEXT)) < CLOSE
    assert context.cut(0, 0)
    assert gap(evaluate(context, 0, PROMPT), fresh(models[name], PROMPT)) < CLOSE


@pytest.mark.parametrize("kv_unified", [True, False])
@pytest.mark.parametrize("name", ["llama", *WHOLE])
def test_a_whole_sequence_can_be_copied(
    models: dict[str, Model], name: str, *, kv_unified: bool
) -> None:
    context = opened(models[name], kv_unified=kv_unified)
    evaluate(context, 0, PROMPT)
    context.copy(0, 3)
    expected = fresh(models[name], PROMPT, NEXT)
    assert gap(evaluate(context, 3, NEXT), expected) < CLOSE
    assert gap(evaluate(context, 0, NEXT), expected) < CLOSE


# --- states ------------------------------------------------------------


@pytest.mark.parametrize("kv_unified", [True, False])
@pytest.mark.parametrize("name", ["llama", *WHOLE])
def test_a_restored_state_is_worth_an_evaluated_one(
    models: dict[str, Model], name: str, *, kv_unified: bool
) -> None:
    context = opened(models[name], kv_unified=kv_unified)
    evaluate(context, 1, PROMPT[:9])
    evaluate(context, 0, PROMPT)
    state = context.save_state(0)
    assert state.size == context.state_bytes(0)
    context.remove(0)
    for seq_id in (0, 2, 1):  # 1 is not empty: what it holds is replaced
        assert context.restore_state(seq_id, state) == state.size
        assert context.position_max(seq_id) == len(PROMPT) - 1
    expected = fresh(models[name], PROMPT, NEXT)
    for seq_id in range(3):
        assert gap(evaluate(context, seq_id, NEXT), expected) < CLOSE


@pytest.mark.parametrize("kv_unified", [True, False])
def test_a_state_moves_between_contexts_of_one_layout(
    models: dict[str, Model], *, kv_unified: bool
) -> None:
    source = opened(models["llama"], kv_unified=kv_unified)
    evaluate(source, 0, PROMPT)
    state = source.save_state(0)
    target = opened(models["llama"], kv_unified=kv_unified)
    assert target.restore_state(3, state) == state.size
    expected = fresh(models["llama"], PROMPT, NEXT)
    assert gap(evaluate(target, 3, NEXT), expected) < CLOSE
    assert opened(models["llama"], kv_unified=not kv_unified).restore_state(0, state) == 0


@pytest.mark.parametrize("name", ["llama", *WHOLE])
def test_a_state_that_is_none_of_this_model_leaves_the_sequence_empty(
    models: dict[str, Model], name: str
) -> None:
    context = opened(models[name])
    evaluate(context, 0, PROMPT)
    state = context.save_state(0)
    other = models["llama" if name != "llama" else Architecture.HYBRID]
    foreign = opened(other)
    evaluate(foreign, 0, PROMPT)
    longer = np.concatenate([state, np.zeros(8, np.uint8)])
    for wrong in (state[:-5], state[:40].copy(), longer, foreign.save_state(0), state[:0]):
        assert context.restore_state(1, wrong) == 0
        assert context.position_max(1) == -1
    expected = fresh(models[name], PROMPT, NEXT)
    assert gap(evaluate(context, 0, NEXT), expected) < CLOSE


def test_a_state_for_which_there_is_no_room_is_not_restored(models: dict[str, Model]) -> None:
    context = opened(models["llama"])
    for _ in range(12):
        evaluate(context, 0, PROMPT)
    state = context.save_state(0)
    assert context.restore_state(1, state) == 0
    assert context.position_max(1) == -1
    context.remove(0)
    assert context.restore_state(1, state) == state.size
