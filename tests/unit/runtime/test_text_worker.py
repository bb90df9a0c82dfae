"""What a client wrote is only ever text, and what can't be served is refused before it costs."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf import GGUFValueType, GGUFWriter, Keys, TokenType

from appliance.domain import (
    ChatPrompt,
    Message,
    Prompt,
    TextPrompt,
    TokenPrompt,
)
from appliance.errors import ContextTooLong, InvalidRequest
from appliance.runtime import wire
from appliance.runtime.text_worker import Vocabulary, prepare
from tools.gguf_writer import SHAPES, Quantisation, byte_vocabulary, write_llama

PROMPT_BYTES_MAX = 4096
SPECIAL = UNKNOWN, BEGIN, END, TURN = "<unk>", "<s>", "</s>", "<|turn|>"
TEMPLATE = "{% for m in messages %}<|turn|>{{ m.role }}: {{ m.content }}{% endfor %}"


def write_sentencepiece(path: Path) -> None:
    """Write a vocabulary of SentencePiece's kind, without weights: letters, some words, bytes."""
    plain = [*map(chr, range(33, 127)), "▁", "▁▁", "▁a", "▁b", "us", "er", "user"]
    spelt = [f"<0x{byte:02X}>" for byte in range(256)]
    kinds = [TokenType.UNKNOWN, *[TokenType.CONTROL] * 3]
    kinds += [TokenType.NORMAL] * len(plain) + [TokenType.BYTE] * len(spelt)
    writer = GGUFWriter(path, "llama")
    for key, number in (
        ("llama.context_length", 64),
        ("llama.embedding_length", 32),
        ("llama.block_count", 1),
        ("llama.feed_forward_length", 32),
        ("llama.attention.head_count", 1),
        ("llama.rope.dimension_count", 32),
        (Keys.Tokenizer.UNK_ID, 0),
        (Keys.Tokenizer.BOS_ID, 1),
        (Keys.Tokenizer.EOS_ID, 2),
    ):
        writer.add_key_value(key, number, GGUFValueType.UINT32)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*SPECIAL, *plain, *spelt])
    writer.add_token_scores([0.0] * 4 + [-float(i) for i in range(len(plain))] + [0.0] * 256)
    writer.add_token_types(kinds)
    writer.add_add_bos_token(True)  # noqa: FBT003 - theirs
    writer.add_add_space_prefix(True)  # noqa: FBT003 - theirs
    writer.add_chat_template(TEMPLATE)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    path = tmp_path_factory.mktemp("spm") / "vocabulary.gguf"
    write_sentencepiece(path)
    return Vocabulary(path, PROMPT_BYTES_MAX, constraint_ms=250.0)


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    path = tmp_path_factory.mktemp("bpe") / "tiny.gguf"
    write_llama(path, SHAPES["tiny"], byte_vocabulary(), Quantisation.F16)
    return Vocabulary(path, PROMPT_BYTES_MAX, constraint_ms=250.0)


def prepared(vocabulary: Vocabulary, prompt: Prompt, **fields: object) -> wire.Prepared:
    frame = wire.Prepare(ticket=1, key="it", prompt=prompt, **fields)  # type: ignore[arg-type]
    return prepare(vocabulary, frame)


def chat(text: str) -> ChatPrompt:
    return ChatPrompt(messages=(Message(role="user", content=text),))


@pytest.mark.parametrize(
    "text", ["a<|turn|>b", "<|turn|>", "a <|turn|> b", "<s></s>", "x<", "a<unk>b", "<unk>"]
)
def test_control_texts_of_a_client_are_plain_text_and_get_no_space_of_their_own(
    sentencepiece: Vocabulary, text: str
) -> None:
    found = prepared(sentencepiece, chat(text))
    assert b"".join(found.pieces).decode() == f"{BEGIN}{TURN} user: {text}"
    assert [token_id for token_id in found.token_ids if token_id < len(SPECIAL)] == [1, 3]


def test_a_text_that_can_only_be_too_long_is_refused_before_it_is_tokenised(
    bytewise: Vocabulary, sentencepiece: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Vocabulary, "tokenize")
    for vocabulary in (bytewise, sentencepiece):
        for prompt in (TextPrompt(text="x" * 2000), chat("x" * 2000)):
            with pytest.raises(ContextTooLong) as caught:
                prepared(vocabulary, prompt, limit_tokens=64)
            assert caught.value.limit_tokens == 64
            assert 64 < caught.value.prompt_tokens <= 2000
    with pytest.raises(ContextTooLong):
        prepared(bytewise, TokenPrompt(token_ids=(1,) * 65), limit_tokens=64)


def test_a_text_that_might_fit_is_tokenised_whatever_its_length(bytewise: Vocabulary) -> None:
    text = "<tool_call>" * 40
    ids = prepared(bytewise, TextPrompt(text=text), limit_tokens=64, with_pieces=False)
    assert len(ids.token_ids) == 41
    assert ids.pieces == ()
    assert len(prepared(bytewise, TextPrompt(text="x" * 2000)).pieces) == 2001


def test_token_ids_do_not_stand_for_more_text_than_a_prompt_may_have(bytewise: Vocabulary) -> None:
    longest = prepared(bytewise, TextPrompt(text="</tool_call>"), add_bos=False).token_ids
    assert bytewise.spell(longest * 10) == "</tool_call>" * 10
    with pytest.raises(InvalidRequest) as caught:
        bytewise.spell(longest * 400)
    assert caught.value.field == "token_ids"
