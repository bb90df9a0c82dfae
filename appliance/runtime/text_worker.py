"""Render, tokenise and check prompts, as a process of its own that may be killed at any time.

What this room does: loads vocabularies (no weights); turns a prompt into token ids; turns ids back
into text; checks constraints.
What it knows: llama.h's tokeniser (llama-cpp-python 0.3.36), and one call at a time.
What it never does: hold state that can't be built again from the file, or survive the daemon.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import socket
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib

from appliance import gguf
from appliance.domain import ChatPrompt, Constraint, InfillPrompt, RankPrompt, TextPrompt
from appliance.errors import (
    ApplianceError,
    ContextTooLong,
    InvalidRequest,
    ModelNotServed,
    ModelUnloadable,
)
from appliance.runtime import (
    constrain,
    infill,
    llama,
    tool_grammar,
    tool_syntax,
    wire,
)
from appliance.runtime.chat import Guard, Template, try_template

EXIT_ASKED = 0
_READ_BYTES = 256 * 1024
_PR_SET_PDEATHSIG = 1
_SPECIAL = (
    lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN | lib.LLAMA_TOKEN_ATTR_USER_DEFINED
)
# In these a token stands for the bytes of its piece; in others one may stand for a whole word.
_PIECEWISE = (lib.LLAMA_VOCAB_TYPE_SPM, lib.LLAMA_VOCAB_TYPE_BPE)
_PRICE_TRIES = 4  # times the allowed cost after which a constraint is given up
_PLACES = re.compile(r"\{query\}|\{document\}")
_ANCHOR = "\U0010fffd"  # a private character, which merges with nothing


class Vocabulary:
    """The tokens and the template of one file."""

    def __init__(self, path: Path, prompt_bytes_max: int, constraint_ms: float) -> None:
        """Load the vocabulary only (10 ms to some seconds); freed with the process.

        Raises:
            ModelUnloadable: the file is not a GGUF, or llama.cpp refuses its vocabulary.
        """
        try:
            gguf.read_head(path)
        except gguf.GgufFault as fault:
            raise ModelUnloadable(path=str(path), reason=str(fault)) from fault
        params = lib.llama_model_default_params()
        params.vocab_only = True
        model = lib.llama_model_load_from_file(os.fsencode(path), params)
        if not model:
            raise ModelUnloadable(path=str(path), reason="its vocabulary can't be loaded")
        self._model = model
        try:
            self._tokens = llama.Vocabulary(model)
        except llama.EngineFault as fault:
            raise ModelUnloadable(path=str(path), reason=str(fault)) from fault
        self._pointer: Any = self._tokens.pointer
        self._prompt_bytes_max = prompt_bytes_max
        self._constraint_ms = constraint_ms
        self._kind = int(lib.llama_vocab_type(self._pointer))
        self._piece_bytes_max = max(map(len, self._tokens.spelt), default=1)
        self._control_texts = tuple(map(self._spelt, self._tokens.control_ids))
        spelt = zip(self._control_texts, self._tokens.control_ids, strict=True)
        self.control = {text: token_id for text, token_id in spelt if text}
        self._anchor_ids = self.tokenize(_ANCHOR, add_special=False, parse_special=False)
        self._template: Template | None = None
        self._pricer: constrain.Pricer | None = None

    def close(self) -> None:
        """Free the vocabulary."""
        lib.llama_model_free(self._model)

    def chat(
        self, prompt: ChatPrompt, *, add_bos: bool, limit_tokens: int
    ) -> tuple[tuple[int, ...], str, str]:
        """Render and tokenise a chat; returns ids, the rendered text and the tool syntax.

        Raises:
            InvalidRequest: there is no template, or it refuses the chat.
            ContextTooLong: it can't fit.
        """
        template = self._compiled()
        guard = Guard(self._control_texts)
        rendered = template.render(prompt, guard)
        whole, ids = self._cut_and_tokenize(guard, rendered, limit_tokens)
        if add_bos and self._tokens.adds_bos and ids[:1] != [self._tokens.bos_id]:
            ids.insert(0, self._tokens.bos_id)
        return tuple(ids), whole, template.tool_syntax if prompt.tools else ""

    def rank(self, prompt: RankPrompt, limit_tokens: int) -> tuple[int, ...]:
        """Put a query and a document together as llama-server does, and tokenise them.

        By the file's own template for it, else [BOS] query [EOS] [SEP] document [EOS], of these
        tokens those that the model wants.

        Raises:
            InvalidRequest: one of them holds too many private characters.
            ContextTooLong: it can't fit.
        """
        template = lib.llama_model_chat_template(self._model, b"rerank")
        if template:
            guard = Guard(self._control_texts, field="documents")
            texts = {"{query}": guard.hide(prompt.query), "{document}": guard.hide(prompt.document)}
            rendered = _PLACES.sub(
                lambda match: str(texts[match.group()]), template.decode("utf-8", "replace")
            )
            return tuple(self._cut_and_tokenize(guard, rendered, limit_tokens)[1])
        self._check_length(prompt.query + prompt.document, limit_tokens)
        tokens = self._tokens
        eos_id = tokens.eos_id if tokens.eos_id >= 0 else tokens.sep_id
        ends = [eos_id] if tokens.adds_eos else []
        ids = [tokens.bos_id] if tokens.adds_bos else []
        ids += self.tokenize(prompt.query, add_special=False, parse_special=False) + ends
        ids += [tokens.sep_id] if tokens.adds_sep else []
        ids += self.tokenize(prompt.document, add_special=False, parse_special=False) + ends
        return tuple(ids)

    def infill(self, prompt: InfillPrompt, *, add_bos: bool, limit_tokens: int) -> tuple[int, ...]:
        """Tokenise what stands before and after a gap, as `infill.layout` says.

        Raises:
            InvalidRequest: the model has no tokens for it.
            ContextTooLong: it can't fit.
        """
        ids = [self._tokens.bos_id] if add_bos and self._tokens.adds_bos else []
        parts = tuple(infill.layout(prompt, self._tokens.infill))
        texts = (part.text for part in parts if not isinstance(part, int))
        self._check_length("".join(texts), limit_tokens)
        for part in parts:
            if isinstance(part, int):
                ids.append(part)
            elif part.text:
                goes_on = isinstance(part, infill.Going)
                call = self._tokenize_on if goes_on else self.tokenize
                ids += call(part.text, add_special=False, parse_special=False)
        return tuple(ids)

    def _cut_and_tokenize(
        self, guard: Guard, rendered: str, limit_tokens: int
    ) -> tuple[str, list[int]]:
        """Tokenise what a template made; what is the client's in it is only ever text."""
        parts = tuple(guard.cut(rendered))
        whole = "".join(text for text, _ in parts)
        self._check_length(whole, limit_tokens)
        ids: list[int] = []
        for text, plain in parts:
            call = self._tokenize_on if ids and not self._is_special(ids[-1]) else self.tokenize
            ids += call(text, add_special=False, parse_special=not plain)
        return whole, ids

    def text(
        self, text: str, *, add_bos: bool, parse_special: bool, limit_tokens: int
    ) -> tuple[int, ...]:
        """Tokenise a text; special tokens around it as the model says, never a second BOS.

        Raises:
            ContextTooLong: it can't fit.
        """
        self._check_length(text, limit_tokens)
        ids = self.tokenize(text, add_special=add_bos, parse_special=parse_special)
        bos_id = self._tokens.bos_id
        if add_bos and self._tokens.adds_bos and ids[:2] == [bos_id, bos_id]:
            del ids[0]
        return tuple(ids)

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Call llama_tokenize (llama.h) on any text."""
        data = text.encode()
        size = len(data) + 8  # a token is a byte at least, but for the special ones around
        buffer = (lib.llama_token * size)()
        count = lib.llama_tokenize(
            self._pointer, data, len(data), buffer, size, add_special, parse_special
        )
        if count < 0:
            buffer = (lib.llama_token * -count)()
            count = lib.llama_tokenize(
                self._pointer, data, len(data), buffer, -count, add_special, parse_special
            )
        return list(buffer[:count])

    def _tokenize_on(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Tokenise what goes on after other text, which a beginning is not: SPM puts a space there.

        So another text is put before it, one that no token reaches across, and its ids are dropped.
        """
        if self._kind == lib.LLAMA_VOCAB_TYPE_SPM:
            begin = self._anchor_ids
            ids = self.tokenize(
                _ANCHOR + text, add_special=add_special, parse_special=parse_special
            )
            if ids[: len(begin)] == begin:
                return ids[len(begin) :]
        return self.tokenize(text, add_special=add_special, parse_special=parse_special)

    def _check_length(self, text: str, limit_tokens: int) -> None:
        """Refuse what is too long even if every token were the longest one; 0: nothing is."""
        if limit_tokens and self._kind in _PIECEWISE:
            least = -(-len(text.encode()) // self._piece_bytes_max)
            if least > limit_tokens:
                raise ContextTooLong(prompt_tokens=least, limit_tokens=limit_tokens)

    def _is_special(self, token_id: int) -> bool:
        return bool(lib.llama_vocab_get_attr(self._pointer, token_id) & _SPECIAL)

    def check_constraint(self, constraint: Constraint) -> None:
        """Refuse what can't be honoured, or would cost a worker too much; blocks while it tries.

        What costs many times too much ends this process (SIGPROF), and so does what never ends.

        Raises:
            SchemaUnsupported: it is one of these.
        """
        if self._pricer is None:
            tokens = self._tokens
            tokenizer = constrain.tokenizer_of(
                tokens.spelt,
                tokens.control_ids,
                tokens.end_ids or (max(tokens.eos_id, 0),),
                tokens.pointer,
                tokens.tokenize_address,
            )
            self._pricer = constrain.Pricer(tokenizer, self._constraint_ms)
        signal.setitimer(signal.ITIMER_PROF, _PRICE_TRIES * self._constraint_ms / 1000)
        try:
            self._pricer.check(constraint)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0.0)

    def check_ids(self, token_ids: tuple[int, ...], field: str) -> None:
        """Refuse an id that is not a token.

        Raises:
            InvalidRequest: there is one.
        """
        for token_id in token_ids:
            if not 0 <= token_id < self._tokens.size:
                size = self._tokens.size
                reason = f"token id {token_id} is not in the vocabulary of {size} tokens"
                raise InvalidRequest(field=field, reason=reason)

    def pieces(self, token_ids: tuple[int, ...]) -> tuple[bytes, ...]:
        """List the bytes of each token, control tokens spelt out."""
        return tuple(map(self._tokens.spelt.__getitem__, token_ids))

    def spell(self, token_ids: tuple[int, ...]) -> str:
        """Turn token ids into text; bytes that are not UTF-8 become U+FFFD.

        Raises:
            InvalidRequest: an id is not a token, or the text is larger than the bound.
        """
        self.check_ids(token_ids, "token_ids")
        spelt = self._tokens.spelt
        if sum(len(spelt[token_id]) for token_id in token_ids) > self._prompt_bytes_max:
            reason = f"stand for more than {self._prompt_bytes_max} bytes"
            raise InvalidRequest(field="token_ids", reason=reason)
        return b"".join(self.pieces(token_ids)).decode("utf-8", "replace")

    def _compiled(self) -> Template:
        if self._template is None:
            source = lib.llama_model_chat_template(self._model, None)
            if not source:
                raise InvalidRequest(field="messages", reason="the model has no chat template")
            self._template = Template(
                source.decode("utf-8", "replace"),
                bos=self._spelt(self._tokens.bos_id),
                eos=self._spelt(self._tokens.eos_id),
                output_chars_max=self._prompt_bytes_max,
            )
        return self._template

    def _spelt(self, token_id: int) -> str:
        if token_id < 0:
            return ""
        return self._tokens.spelt[token_id].decode("utf-8", "replace")


class TextWorker:
    """Answer the daemon's calls, one at a time."""

    def __init__(self, connection: socket.socket) -> None:
        """Take the connected socket."""
        self._connection = connection
        self._vocabularies: dict[str, Vocabulary] = {}

    def run(self) -> None:
        """Greet, then answer until the daemon closes; blocks."""
        self._send(wire.Hello(protocol_version=wire.PROTOCOL_VERSION, pid=os.getpid()))
        reader = wire.FrameReader(wire.ToText)
        while data := self._connection.recv(_READ_BYTES):
            for frame in reader.feed(data):
                assert isinstance(
                    frame,
                    wire.OpenVocabulary
                    | wire.CloseVocabulary
                    | wire.Prepare
                    | wire.Detokenize
                    | wire.TryTemplate,
                )
                self._send(self._answer(frame))

    def _send(self, frame: wire.Frame) -> None:
        try:
            data = wire.encode(frame)
        except wire.WireFault:
            assert isinstance(frame, wire.Prepared | wire.Detokenized), "a frame of ours is too big"
            error = InvalidRequest(field="prompt", reason="is too large once it is tokenised")
            failure = wire.Failure(ticket=frame.ticket, code=error.code, fields=error.fields)
            data = wire.encode(wire.TextFailed(failure=failure))
        self._connection.sendall(data)

    def _answer(self, frame: wire.ToText) -> wire.Frame:
        try:
            if isinstance(frame, wire.OpenVocabulary):
                if frame.key not in self._vocabularies:
                    self._vocabularies[frame.key] = Vocabulary(
                        Path(frame.path), frame.prompt_bytes_max, frame.constraint_ms
                    )
                return wire.Opened(ticket=frame.ticket)
            if isinstance(frame, wire.CloseVocabulary):
                vocabulary = self._vocabularies.pop(frame.key, None)
                if vocabulary is not None:
                    vocabulary.close()
                return wire.Opened(ticket=frame.ticket)
            if isinstance(frame, wire.TryTemplate):
                try_template(frame.source, frame.output_chars_max)
                return wire.Opened(ticket=frame.ticket)
            vocabulary = self._vocabularies.get(frame.key)
            if vocabulary is None:  # its file has gone since the last start of this process
                raise ModelNotServed(model=frame.key)
            if isinstance(frame, wire.Detokenize):
                text = vocabulary.spell(frame.token_ids)
                return wire.Detokenized(ticket=frame.ticket, text=text)
            return prepare(vocabulary, frame)
        except ApplianceError as error:
            failure = wire.Failure(ticket=frame.ticket, code=error.code, fields=error.fields)
            return wire.TextFailed(failure=failure)


def prepare(vocabulary: Vocabulary, frame: wire.Prepare) -> wire.Prepared:
    """Turn a prompt into token ids and check what it demands of the output.

    Raises:
        InvalidRequest: the prompt is empty, refused by the template, or holds ids of no token.
        SchemaUnsupported: the constraint can't be honoured.
        ContextTooLong: the prompt can't fit.
    """
    limit_tokens = frame.limit_tokens
    prompt = frame.prompt
    rendered = syntax = ""
    constraint: Constraint | None = frame.constraint
    if isinstance(prompt, ChatPrompt):
        token_ids, rendered, syntax = vocabulary.chat(
            prompt, add_bos=frame.add_bos, limit_tokens=limit_tokens
        )
        row = tool_syntax.find(syntax) if syntax else None
        constraint = tool_grammar.constraint_of(prompt, row, constraint, vocabulary.control)
    elif isinstance(prompt, TextPrompt):
        if not prompt.text:
            raise InvalidRequest(field="prompt", reason="must not be empty")
        token_ids = vocabulary.text(
            prompt.text,
            add_bos=frame.add_bos,
            parse_special=frame.parse_special,
            limit_tokens=limit_tokens,
        )
    elif isinstance(prompt, InfillPrompt):
        token_ids = vocabulary.infill(prompt, add_bos=frame.add_bos, limit_tokens=limit_tokens)
    elif isinstance(prompt, RankPrompt):
        token_ids = vocabulary.rank(prompt, limit_tokens)
    else:
        token_ids = prompt.token_ids
        if limit_tokens and len(token_ids) > limit_tokens:
            raise ContextTooLong(prompt_tokens=len(token_ids), limit_tokens=limit_tokens)
        vocabulary.check_ids(token_ids, "prompt")
    if not token_ids:
        raise InvalidRequest(field="prompt", reason="must not be empty")
    if constraint is not None:
        vocabulary.check_constraint(constraint)
    return wire.Prepared(
        ticket=frame.ticket,
        token_ids=token_ids,
        pieces=vocabulary.pieces(token_ids) if frame.with_pieces else (),
        rendered=rendered,
        constraint=constraint,
        tool_syntax=syntax,
    )


def _prepare_process() -> None:
    """End with the parent, even in the midst of a call, and leave other signals to it.

    SCHED_BATCH: this process keeps its share of the cores, but never pushes a running thread of a
    worker off its core when it wakes, for which all other threads of a step would have to wait.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the daemon drains, then closes the socket
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def main(fd: int) -> int:
    """Serve the daemon over this socket until it closes; returns the exit code.

    llama.cpp's own log is dropped: it could hold prompt text.
    """
    _prepare_process()
    quiet = lib.llama_log_callback(lambda _level, _text, _data: None)
    lib.llama_log_set(quiet, ctypes.c_void_p(0))
    with socket.socket(fileno=fd) as connection, contextlib.suppress(ConnectionError):
        TextWorker(connection).run()
    return EXIT_ASKED
