"""Hold a request against the operator's limits, before anything is spent on it.

What this room does: counts messages, tools, inputs, bytes and choices; checks ids and token ids.
What it knows: `config.Limits`, and that what leaves this room crosses to another process, where
every number must fit.
What it never does: look at the model (the text process and the router do), or cut anything off.
"""

from __future__ import annotations

import re
import secrets
from array import array
from itertools import accumulate

from appliance.config import Limits
from appliance.domain import (
    ChatPrompt,
    Constraint,
    ConstraintKind,
    EmbedRequest,
    GenerateRequest,
    InfillPrompt,
    Prompt,
    RequestId,
    RerankRequest,
    TextPrompt,
    TokenPrompt,
)
from appliance.errors import InvalidRequest

TOKEN_ID_MAX = 2**31 - 1
REQUEST_ID_CHARS_MAX = 128
JSON_DEPTH_MAX = 100  # of a schema or of arguments; deeper, some reader on the way gives up
_SHOWN_CHARS = 64
_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"{}[]"))
_STEPS = bytes.maketrans(b"{[}]", b"\x01\x01\xff\xff")  # +1 and -1 as signed bytes
_SEED_BITS = 53  # exact in the numbers of every JSON reader
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def new_request_id() -> RequestId:
    """Make an id that nobody can guess."""
    return RequestId(f"req-{secrets.token_hex(12)}")


def new_seed() -> int:
    """Draw a seed for a request that brought none."""
    return secrets.randbits(_SEED_BITS)


def check_generate(request: GenerateRequest, limits: Limits) -> None:
    """Check everything that can be checked without the model.

    Raises:
        InvalidRequest: names the field and the limit.
    """
    check_request_id(request.request_id)
    _check_prompt("prompt", request.prompt, limits)
    _check_token_ids("stop_token_ids", request.stop.token_ids)
    _check_token_ids("logit_bias", tuple(request.sampling.logit_bias))
    _check_constraint(request.constraint, limits)
    if isinstance(request.prompt, ChatPrompt):
        _refuse(request.output.echo, "echo", "a chat has no prompt of its own to repeat")
    _refuse(
        request.output.echo and request.output.top_logprobs is not None,
        "logprobs",
        "can't be had together with 'echo': those of a prompt are not computed",
    )


def check_embed(request: EmbedRequest, limits: Limits) -> None:
    """Check the number of inputs, and each. See `check_generate` for what is raised."""
    check_request_id(request.request_id)
    _refuse(not request.inputs, "input", "is empty")
    _refuse(
        len(request.inputs) > limits.embed_inputs,
        "input",
        f"has {len(request.inputs)} entries; the limit is {limits.embed_inputs}",
    )
    for prompt in request.inputs:
        _check_prompt("input", prompt, limits)
    size = sum(_prompt_bytes(prompt) for prompt in request.inputs)
    _check_bytes("input", size, limits.prompt_bytes)


def check_rerank(request: RerankRequest, limits: Limits) -> None:
    """Check the number of documents, and each with the query. Raises as `check_generate`."""
    check_request_id(request.request_id)
    count = len(request.documents)
    _refuse(not request.query, "query", "is empty")
    _refuse(not count, "documents", "is empty")
    _refuse(
        count > limits.rerank_documents,
        "documents",
        f"has {count} entries; the limit is {limits.rerank_documents}",
    )
    for index, document in enumerate(request.documents):
        _refuse(not document, f"documents[{index}]", "is empty")
    # The query is evaluated again with each document.
    size = count * len(request.query.encode()) + sum(len(d.encode()) for d in request.documents)
    _check_bytes("documents", size, limits.prompt_bytes)


def check_text(field: str, text: str, limits: Limits) -> None:
    """Check a text to tokenise; it may be empty."""
    _check_bytes(field, len(text.encode()), limits.prompt_bytes)


def check_tokens(field: str, token_ids: tuple[int, ...], limits: Limits) -> None:
    """Check token ids to turn into text; there may be none."""
    _check_bytes(field, len(token_ids), limits.prompt_bytes)
    _check_token_ids(field, token_ids)


def check_timeout(timeout_s: float, limits: Limits) -> None:
    """Check how long a request says it may take."""
    _refuse(
        not 0 < timeout_s <= limits.request_s,
        "timeout",
        f"must be above 0 s and at most {limits.request_s:g} s",
    )


def check_request_id(request_id: str) -> None:
    """Check an id that will stand in logs."""
    _refuse(
        not _REQUEST_ID.fullmatch(request_id),
        "request_id",
        f"must be 1 to {REQUEST_ID_CHARS_MAX} letters, digits, dots, colons, dashes or underscores",
    )


def _refuse(wrong: bool, field: str, reason: str) -> None:  # noqa: FBT001 - reads as a sentence
    if wrong:
        raise InvalidRequest(field=field, reason=reason)


def _check_prompt(field: str, prompt: Prompt, limits: Limits) -> None:
    if isinstance(prompt, ChatPrompt):
        _check_chat(prompt, limits)
    elif isinstance(prompt, InfillPrompt):
        count, limit = len(prompt.files), limits.infill_files
        _refuse(count > limit, "input_extra", f"has {count} entries; the limit is {limit}")
        _refuse(not (prompt.prefix or prompt.suffix), field, "is empty, and so is the suffix")
    elif isinstance(prompt, TokenPrompt):
        _refuse(not prompt.token_ids, field, "is empty")
        _check_token_ids(field, prompt.token_ids)
    else:
        _refuse(not prompt.text, field, "is empty")
    _check_bytes(field, _prompt_bytes(prompt), limits.prompt_bytes)


def _check_chat(prompt: ChatPrompt, limits: Limits) -> None:
    for field, count, limit in (
        ("messages", len(prompt.messages), limits.messages),
        ("tools", len(prompt.tools), limits.tools),
    ):
        _refuse(count > limit, field, f"has {count} entries; the limit is {limit}")
    _refuse(not prompt.messages, "messages", "is empty")
    for tool in prompt.tools:
        _check_bytes("tools", len(tool.parameters.encode()), limits.constraint_bytes)
        _check_depth("tools", tool.parameters)
    for index, message in enumerate(prompt.messages):
        for call in message.tool_calls:
            field = f"messages[{index}].tool_calls"
            _check_bytes(field, len(call.arguments.encode()), limits.prompt_bytes)
            _check_depth(field, call.arguments)


def _check_constraint(constraint: Constraint | None, limits: Limits) -> None:
    if constraint is not None:
        _check_bytes(constraint.kind.value, len(constraint.text.encode()), limits.constraint_bytes)
        if constraint.kind is ConstraintKind.JSON_SCHEMA:
            _check_depth(constraint.kind.value, constraint.text)


def _check_depth(field: str, text: str) -> None:
    """Check how deeply JSON text is nested; what is not JSON is left to those who parse it."""
    if text.count("{") + text.count("[") > JSON_DEPTH_MAX:
        brackets = _JSON_STRING.sub("", text).encode().translate(None, _NOT_BRACKETS)
        depth = max(accumulate(array("b", brackets.translate(_STEPS))), default=0)
        _refuse(
            depth > JSON_DEPTH_MAX, field, f"is nested {depth} deep; the limit is {JSON_DEPTH_MAX}"
        )


def _check_bytes(field: str, size: int, limit: int) -> None:
    _refuse(size > limit, field, f"has {size} bytes; the limit is {limit}")


def _check_token_ids(field: str, token_ids: tuple[int, ...]) -> None:
    for token_id in token_ids:
        _refuse(
            not 0 <= token_id <= TOKEN_ID_MAX,
            field,
            f"{str(token_id)[:_SHOWN_CHARS]} is not a token id",
        )


def _prompt_bytes(prompt: Prompt) -> int:
    """Count the text of a prompt in UTF-8; a token counts as one byte."""
    if isinstance(prompt, TextPrompt):
        return len(prompt.text.encode())
    if isinstance(prompt, TokenPrompt):
        return len(prompt.token_ids)
    if isinstance(prompt, InfillPrompt):
        files = (file.name + file.text for file in prompt.files)
        return sum(len(text.encode()) for text in (prompt.prefix, prompt.suffix, *files))
    texts = [
        text
        for message in prompt.messages
        for text in (
            message.content,
            message.name,
            *(call.arguments + call.name for call in message.tool_calls),
        )
    ]
    texts += [tool.name + tool.description + tool.parameters for tool in prompt.tools]
    return sum(len(text.encode()) for text in texts)
