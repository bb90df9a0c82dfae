"""Read tool calls out of the text of a chat while it streams.

What this room does: one reader per choice; text that is not a call goes on as it is, each whole
call becomes one event, and the reason of a choice that called is `tool_calls`.
What it knows: the syntax the template uses, as the text process named it (`runtime.tool_syntax`).
What it never does: hold back tokens or logprobs: they go with the next piece, text or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from appliance.domain import (
    ChatPrompt,
    ChoiceEnd,
    Delta,
    Event,
    Final,
    FinishReason,
    GenerateRequest,
    RequestId,
    Tool,
    ToolCall,
    ToolCallMade,
    ToolChoiceMode,
)
from appliance.runtime.call_reader import ToolCallReader
from appliance.runtime.tool_syntax import find


def reading_of(request: GenerateRequest, syntax: str) -> CallReading | None:
    """Read calls if the client offered tools and its template has a syntax for calls."""
    prompt = request.prompt
    if not isinstance(prompt, ChatPrompt) or not prompt.tools or not syntax:
        return None
    if prompt.tool_choice.mode is ToolChoiceMode.NONE:
        return None
    parallel = prompt.tool_choice.parallel
    return CallReading(
        syntax, prompt.tools, request.request_id, request.output.n, parallel=parallel
    )


class CallReading:
    """Every choice of one request."""

    def __init__(
        self,
        syntax: str,
        tools: Sequence[Tool],
        request_id: RequestId,
        choices: int,
        *,
        parallel: bool,
    ) -> None:
        """Begin with nothing read. Not `parallel`: what a choice says after a call is dropped."""
        row = find(syntax)
        self._readers = [
            ToolCallReader(row, tools, request_id, choice) for choice in range(choices)
        ]
        self._calls = [0] * choices
        self._parallel = parallel
        self._reasons: dict[int, FinishReason] = {}

    def turn(self, event: Event) -> Iterator[Event]:
        """Yield what the client gets for this event, in order."""
        if isinstance(event, Delta):
            pieces = self._readers[event.choice].feed(event.text)
            yield from self._pieces(event.choice, pieces, event)
        elif isinstance(event, ChoiceEnd):
            yield from self._pieces(event.choice, self._readers[event.choice].finish(), None)
            reason = event.finish_reason
            if self._calls[event.choice] and reason is FinishReason.STOP:
                reason = FinishReason.TOOL_CALLS
            self._reasons[event.choice] = reason
            yield ChoiceEnd(choice=event.choice, finish_reason=reason)
        elif isinstance(event, Final):
            reasons = tuple(self._reasons[choice] for choice in sorted(self._reasons))
            yield msgspec.structs.replace(event, finish_reasons=reasons)
        else:
            yield event

    def _pieces(
        self, choice: int, pieces: Iterable[str | ToolCall], event: Delta | None
    ) -> Iterator[Event]:
        token_ids = event.token_ids if event is not None else ()
        logprobs = event.logprobs if event is not None else ()
        text = ""
        for piece in pieces:
            if self._calls[choice] and not self._parallel:
                break
            if isinstance(piece, str):
                text += piece
                continue
            if text or token_ids:
                yield Delta(choice=choice, text=text, token_ids=token_ids, logprobs=logprobs)
                text, token_ids, logprobs = "", (), ()
            yield ToolCallMade(choice=choice, index=self._calls[choice], call=piece)
            self._calls[choice] += 1
        if text or token_ids:
            yield Delta(choice=choice, text=text, token_ids=token_ids, logprobs=logprobs)
