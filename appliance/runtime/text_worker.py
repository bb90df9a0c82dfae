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
import signal
import socket
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib

from appliance.domain import ChatPrompt, Constraint, TextPrompt
from appliance.errors import ApplianceError, InvalidRequest, ModelNotServed, ModelUnloadable
from appliance.runtime import constrain, gguf, wire
from appliance.runtime.chat import Guard, Template, demanded_call

EXIT_ASKED = 0
_READ_BYTES = 256 * 1024
_PR_SET_PDEATHSIG = 1
_HIDDEN = 8 | 2  # llama.h: LLAMA_TOKEN_ATTR_CONTROL, LLAMA_TOKEN_ATTR_UNKNOWN
_PIECE_BYTES = 4096


class Vocabulary:
    """The tokens and the template of one file."""

    def __init__(self, path: Path, prompt_bytes_max: int) -> None:
        """Load the vocabulary only (10 ms to a second); freed with the process.

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
        self._pointer: Any = lib.llama_model_get_vocab(model)
        self._model = model
        self._prompt_bytes_max = prompt_bytes_max
        self.size = int(lib.llama_vocab_n_tokens(self._pointer))
        self._bos_id = int(lib.llama_vocab_bos(self._pointer))
        self._eos_id = int(lib.llama_vocab_eos(self._pointer))
        self._adds_bos = bool(lib.llama_vocab_get_add_bos(self._pointer))
        self._piece_buffer: Any = ctypes.create_string_buffer(_PIECE_BYTES)
        self._control_texts = tuple(self._find_control_texts())
        self._template: Template | None = None

    def close(self) -> None:
        """Free the vocabulary."""
        lib.llama_model_free(self._model)

    def chat(self, prompt: ChatPrompt, *, add_bos: bool) -> tuple[tuple[int, ...], str, str]:
        """Render and tokenise a chat; returns ids, the rendered text and the tool syntax.

        Raises:
            InvalidRequest: there is no template, or it refuses the chat.
        """
        template = self._compiled()
        guard = Guard(self._control_texts)
        rendered = template.render(prompt, guard)
        ids: list[int] = []
        texts: list[str] = []
        for text, plain in guard.cut(rendered):
            texts.append(text)
            ids += self.tokenize(text, add_special=False, parse_special=not plain)
        if add_bos and self._adds_bos and ids[:1] != [self._bos_id]:
            ids.insert(0, self._bos_id)
        syntax = template.tool_syntax if prompt.tools else ""
        return tuple(ids), "".join(texts), syntax

    def text(self, text: str, *, add_bos: bool, parse_special: bool) -> tuple[int, ...]:
        """Tokenise a text; special tokens around it as the model says, never a second BOS."""
        ids = self.tokenize(text, add_special=add_bos, parse_special=parse_special)
        if add_bos and self._adds_bos and ids[:2] == [self._bos_id, self._bos_id]:
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

    def check_ids(self, token_ids: tuple[int, ...], field: str) -> None:
        """Refuse an id that is not a token.

        Raises:
            InvalidRequest: there is one.
        """
        for token_id in token_ids:
            if not 0 <= token_id < self.size:
                reason = f"token id {token_id} is not in the vocabulary of {self.size} tokens"
                raise InvalidRequest(field=field, reason=reason)

    def piece(self, token_id: int, *, special: bool) -> bytes:
        """Return a token's bytes; a control token has none unless `special`."""
        buffer = self._piece_buffer
        size = lib.llama_token_to_piece(self._pointer, token_id, buffer, len(buffer), 0, special)
        if size < 0:
            buffer = ctypes.create_string_buffer(-size)
            size = lib.llama_token_to_piece(
                self._pointer, token_id, buffer, len(buffer), 0, special
            )
        return bytes(buffer.raw[:size])

    def _compiled(self) -> Template:
        if self._template is None:
            source = lib.llama_model_chat_template(self._model, None)
            if not source:
                raise InvalidRequest(field="messages", reason="the model has no chat template")
            self._template = Template(
                source.decode("utf-8", "replace"),
                bos=self._spelt(self._bos_id),
                eos=self._spelt(self._eos_id),
                output_chars_max=self._prompt_bytes_max,
            )
        return self._template

    def _spelt(self, token_id: int) -> str:
        if token_id < 0:
            return ""
        return self.piece(token_id, special=True).decode("utf-8", "replace")

    def _find_control_texts(self) -> list[str]:
        return [
            self._spelt(token_id)
            for token_id in range(self.size)
            if lib.llama_vocab_get_attr(self._pointer, token_id) & _HIDDEN
        ]


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
                    wire.OpenVocabulary | wire.CloseVocabulary | wire.Prepare | wire.Detokenize,
                )
                self._send(self._answer(frame))

    def _send(self, frame: wire.Frame) -> None:
        self._connection.sendall(wire.encode(frame))

    def _answer(self, frame: wire.ToText) -> wire.Frame:
        try:
            if isinstance(frame, wire.OpenVocabulary):
                if frame.key not in self._vocabularies:
                    self._vocabularies[frame.key] = Vocabulary(
                        Path(frame.path), frame.prompt_bytes_max
                    )
                return wire.Opened(ticket=frame.ticket)
            if isinstance(frame, wire.CloseVocabulary):
                vocabulary = self._vocabularies.pop(frame.key, None)
                if vocabulary is not None:
                    vocabulary.close()
                return wire.Opened(ticket=frame.ticket)
            vocabulary = self._vocabularies.get(frame.key)
            if vocabulary is None:  # its file has gone since the last start of this process
                raise ModelNotServed(model=frame.key)
            if isinstance(frame, wire.Detokenize):
                vocabulary.check_ids(frame.token_ids, "token_ids")
                data = b"".join(vocabulary.piece(i, special=True) for i in frame.token_ids)
                return wire.Detokenized(ticket=frame.ticket, text=data.decode("utf-8", "replace"))
            return prepare(vocabulary, frame)
        except ApplianceError as error:
            failure = wire.Failure(ticket=frame.ticket, code=error.code, fields=error.fields)
            return wire.TextFailed(failure=failure)


def prepare(vocabulary: Vocabulary, frame: wire.Prepare) -> wire.Prepared:
    """Turn a prompt into token ids and check what it demands of the output.

    Raises:
        InvalidRequest: the prompt is empty, refused by the template, or holds ids of no token.
        SchemaUnsupported: the constraint can't be honoured.
    """
    prompt = frame.prompt
    rendered = syntax = ""
    constraint: Constraint | None = frame.constraint
    if isinstance(prompt, ChatPrompt):
        demanded = demanded_call(prompt)
        if demanded is not None and constraint is not None:
            raise InvalidRequest(
                field="tool_choice", reason="can't demand a call while the output is constrained"
            )
        constraint = demanded or constraint
        token_ids, rendered, syntax = vocabulary.chat(prompt, add_bos=frame.add_bos)
    elif isinstance(prompt, TextPrompt):
        if not prompt.text:
            raise InvalidRequest(field="prompt", reason="must not be empty")
        token_ids = vocabulary.text(
            prompt.text, add_bos=frame.add_bos, parse_special=frame.parse_special
        )
    else:
        token_ids = prompt.token_ids
        vocabulary.check_ids(token_ids, "prompt")
    if not token_ids:
        raise InvalidRequest(field="prompt", reason="must not be empty")
    if constraint is not None:
        constrain.check(constraint)
    pieces = tuple(vocabulary.piece(token_id, special=True) for token_id in token_ids)
    return wire.Prepared(
        ticket=frame.ticket,
        token_ids=token_ids,
        pieces=pieces,
        rendered=rendered,
        constraint=constraint,
        tool_syntax=syntax,
    )


def _prepare_process() -> None:
    """End with the parent, even in the midst of a call, and leave other signals to it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the daemon drains, then closes the socket


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
