"""Turn the events of a request into OpenAI's chunks, or collect them into a whole answer.

What this room does: one object per kind of answer, fed with events in order.
What it knows: the order OpenAI's clients expect: the role first, then text and calls, then the
reason, then (if asked for) the usage with no choices.
What it never does: I/O. Events that OpenAI has no word for bring no chunk.
"""

from __future__ import annotations

from appliance.api.openai_answers import (
    ChoiceParts,
    Head,
    TextLogprobs,
    call_delta,
    chat_chunk,
    chat_logprobs,
    progress_object,
    text_choice,
    usage_object,
)
from appliance.domain import (
    Accepted,
    ChoiceEnd,
    Delta,
    Event,
    Final,
    JsonObject,
    Progress,
    Timings,
    ToolCallMade,
    Usage,
)


class Whole:
    """Collect what one request brings. `accepted`, `usage`, `timings` are there after Final."""

    def __init__(self, choices: int) -> None:
        self.parts = [ChoiceParts() for _ in range(choices)]
        self.accepted: Accepted | None = None
        self.usage = Usage(prompt_tokens=0, completion_tokens=0)
        self.timings = Timings()

    def head(self, head: Head) -> Head:
        """Complete what the answer says of itself; call after Final."""
        assert self.accepted is not None
        return head.accepted(self.accepted)

    def take(self, event: Event) -> None:
        """Add one event."""
        if isinstance(event, Delta):
            self.parts[event.choice].text.append(event.text)
            self.parts[event.choice].logprobs.extend(event.logprobs)
        elif isinstance(event, ToolCallMade):
            self.parts[event.choice].calls.append(event.call)
        elif isinstance(event, ChoiceEnd):
            self.parts[event.choice].finish_reason = event.finish_reason
        elif isinstance(event, Accepted):
            self.accepted = event
        elif isinstance(event, Final):
            self.usage = event.usage
            self.timings = event.timings


class ChatChunks:
    """Write the chunks of a chat."""

    def __init__(
        self, head: Head, choices: int, *, logprobs: bool, usage: bool, progress: bool = False
    ) -> None:
        """Begin. `usage`, so that every chunk has the member, and `progress`: as asked for."""
        self._head = head
        self._begun = [False] * choices
        self._logprobs = logprobs
        self._usage = usage
        self._progress = progress

    def turn(self, event: Event) -> list[JsonObject]:
        """Write the chunks of one event, in order."""
        chunks: list[JsonObject] = []
        if isinstance(event, Delta):
            if not event.text and not (self._logprobs and event.logprobs):
                return []
            shown = chat_logprobs(event.logprobs) if self._logprobs else None
            self._begin(event.choice, chunks)
            chunks.append(
                chat_chunk(self._head, event.choice, {"content": event.text}, logprobs=shown)
            )
        elif isinstance(event, ToolCallMade):
            self._begin(event.choice, chunks)
            delta = call_delta(event.index, event.call)
            chunks.append(chat_chunk(self._head, event.choice, delta))
        elif isinstance(event, ChoiceEnd):
            self._begin(event.choice, chunks)
            chunks.append(
                chat_chunk(self._head, event.choice, {}, finish_reason=event.finish_reason)
            )
        elif isinstance(event, Accepted):
            self._head = self._head.accepted(event)
        elif isinstance(event, Progress) and self._progress:
            chunk = self._head.object("chat.completion.chunk", [])
            chunks.append({**chunk, "prompt_progress": progress_object(event)})
        elif isinstance(event, Final) and self._usage:
            chunk = self._head.object("chat.completion.chunk", [])
            return [{**chunk, "usage": usage_object(event.usage)}]
        if self._usage:
            for chunk in chunks:
                chunk["usage"] = None
        return chunks

    def _begin(self, choice: int, chunks: list[JsonObject]) -> None:
        if not self._begun[choice]:
            self._begun[choice] = True
            delta: JsonObject = {"role": "assistant", "content": "", "refusal": None}
            chunks.append(chat_chunk(self._head, choice, delta))


class TextChunks:
    """Write the chunks of a completion; one request per prompt, whose choices follow each other."""

    def __init__(
        self, head: Head, choices: int, *, logprobs: bool, usage: bool, progress: bool = False
    ) -> None:
        """Begin. `choices` per prompt; `usage` and `progress`: the client asked for it."""
        self._head = head
        self._choices = choices
        self._logprobs: dict[int, TextLogprobs] | None = {} if logprobs else None
        self._usage = usage
        self._progress = progress
        self._spent = Usage(prompt_tokens=0, completion_tokens=0)

    def turn(self, prompt: int, event: Event) -> list[JsonObject]:
        """Write the chunks of one event of one prompt."""
        if isinstance(event, Delta):
            if not event.text and not (self._logprobs is not None and event.logprobs):
                return []
            index = prompt * self._choices + event.choice
            shown = None
            if self._logprobs is not None:
                shown = self._logprobs.setdefault(index, TextLogprobs()).take(event.logprobs)
            choice = text_choice(index, event.text, logprobs=shown, finish_reason=None)
            return [self._chunk(choice)]
        if isinstance(event, ChoiceEnd):
            index = prompt * self._choices + event.choice
            choice = text_choice(index, "", logprobs=None, finish_reason=event.finish_reason)
            return [self._chunk(choice)]
        if isinstance(event, Accepted):
            self._head = self._head.accepted(event)
        elif isinstance(event, Final):
            self._spent = add_usage(self._spent, event.usage)
        elif isinstance(event, Progress) and self._progress:
            chunk = self._head.object("text_completion", [])
            chunk["prompt_progress"] = {"prompt": prompt, **progress_object(event)}
            return [{**chunk, "usage": None} if self._usage else chunk]
        return []

    def last(self) -> list[JsonObject]:
        """Write what follows when every prompt has ended."""
        if not self._usage:
            return []
        chunk = self._head.object("text_completion", [])
        return [{**chunk, "usage": usage_object(self._spent)}]

    def _chunk(self, choice: JsonObject) -> JsonObject:
        chunk = self._head.object("text_completion", [choice])
        return {**chunk, "usage": None} if self._usage else chunk


def add_usage(one: Usage, other: Usage) -> Usage:
    """Add up what two requests used."""
    return Usage(
        prompt_tokens=one.prompt_tokens + other.prompt_tokens,
        completion_tokens=one.completion_tokens + other.completion_tokens,
        cached_tokens=one.cached_tokens + other.cached_tokens,
    )
