"""Continue a text, or talk to a model.

What this room does: `generate` and `chat`; an answer as it streams; the conversation of a terminal.
What it knows: Ctrl-C ends an answer, not the conversation; a conversation is kept in memory only.
What it never does: write a prompt or an answer anywhere but to standard output.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from appliance import domain
from appliance.cli import show
from appliance.cli.client import Client
from appliance.cli.exits import USAGE, CommandFailed
from appliance.cli.options import (
    Generation,
    address_of,
    address_option,
    generation_of,
    generation_options,
)

STDIN_CHARS_MAX = 8 * 1024 * 1024
MESSAGES_MAX = 512
HELP = "/clear forgets the conversation, /exit leaves; Ctrl-C stops an answer"


class Answer(msgspec.Struct, kw_only=True):
    """One answer as far as it has come; texts and token ids by choice."""

    accepted: domain.Accepted | None = None
    texts: dict[int, str] = {}
    token_ids: dict[int, list[int]] = {}
    tool_calls: list[domain.ToolCall] = []
    final: domain.Final | None = None

    def take(self, event: domain.Event) -> None:
        """Add what an event brought."""
        if isinstance(event, domain.Accepted):
            self.accepted = event
        elif isinstance(event, domain.Delta):
            self.texts[event.choice] = self.texts.get(event.choice, "") + event.text
            self.token_ids.setdefault(event.choice, []).extend(event.token_ids)
        elif isinstance(event, domain.ToolCallMade):
            self.tool_calls.append(event.call)
        elif isinstance(event, domain.Final):
            self.final = event


@click.command()
@click.argument("prompt", required=False)
@click.option("--n", "choices_count", type=int, default=1, help="This many answers.")
@click.option("--echo", is_flag=True, help="Put the prompt in front of the answer.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
@generation_options
@address_option
def generate(
    prompt: str | None,
    choices_count: int,
    echo: bool,  # noqa: FBT001 - an option of a command
    as_json: bool,  # noqa: FBT001 - likewise
    address: str | None,
    runtime_dir: Path | None,
    **options: Any,  # noqa: ANN401 - the values of generation_options, read by generation_of
) -> None:
    """Continue PROMPT, or what comes on standard input; the answer streams to standard output."""
    generation = generation_of(options)
    output = domain.OutputOptions(n=choices_count, echo=echo)
    request = generation.request(domain.TextPrompt(text=_text_or_stdin(prompt)), output)
    with asyncio.Runner() as runner:
        answer = runner.run(
            _once(address_of(address, runtime_dir), request, quiet=as_json or choices_count > 1)
        )
    if as_json:
        print(as_object(answer))
    elif choices_count > 1:
        for choice in range(choices_count):
            show.write(f"--- {choice}\n{answer.texts.get(choice, '')}\n")
    else:
        show.write("\n")
    _show_stats(generation, answer)


@click.command()
@click.argument("message", required=False)
@click.option("--system", default="", help="A system message in front of the conversation.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
@generation_options
@address_option
def chat(
    message: str | None,
    system: str,
    as_json: bool,  # noqa: FBT001 - an option of a command
    address: str | None,
    runtime_dir: Path | None,
    **options: Any,  # noqa: ANN401 - the values of generation_options, read by generation_of
) -> None:
    """Send MESSAGE and show the answer; without it, talk (or read one message from a pipe)."""
    generation = generation_of(options)
    where = address_of(address, runtime_dir)
    opening = (domain.Message(role="system", content=system),) if system else ()
    if message is None and sys.stdin.isatty():
        with asyncio.Runner() as runner:
            Conversation(runner, where, generation, opening).run()
        return
    said = domain.Message(role="user", content=_text_or_stdin(message))
    request = generation.request(domain.ChatPrompt(messages=(*opening, said)))
    with asyncio.Runner() as runner:
        answer = runner.run(_once(where, request, quiet=as_json))
    if as_json:
        print(as_object(answer))
    else:
        show.write("\n")
    _show_stats(generation, answer)


class Conversation:
    """A chat at a terminal: keeps the messages, one answer at a time."""

    def __init__(
        self,
        runner: asyncio.Runner,
        address: str,
        generation: Generation,
        opening: tuple[domain.Message, ...],
    ) -> None:
        """Begin with the opening messages; nothing is sent yet."""
        self._runner = runner
        self._address = address
        self._generation = generation
        self._opening = opening
        self._messages = list(opening)

    def run(self) -> None:
        """Read and answer until /exit or the end of input."""
        importlib.import_module("readline")  # gives `input` its history and editing keys
        print(HELP)
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print()
                continue
            if line in ("/exit", "/quit"):
                return
            if line == "/clear":
                self._messages = list(self._opening)
                print("(forgotten)")
            elif line.startswith("/"):
                print(HELP)
            elif line:
                self._turn(line)

    def _turn(self, line: str) -> None:
        """Send one message; a refused or stopped one is forgotten, the conversation goes on."""
        said = domain.Message(role="user", content=line)
        messages = (*self._messages, said)
        if len(messages) > MESSAGES_MAX:
            print(f"the conversation has {MESSAGES_MAX} messages: /clear forgets it")
            return
        request = self._generation.request(domain.ChatPrompt(messages=messages))
        try:
            answer = self._runner.run(_once(self._address, request, quiet=False))
        except KeyboardInterrupt:
            print("\n(stopped)")
            return
        except CommandFailed as failure:
            print(f"\n{failure.sentence}", file=sys.stderr)
            return
        print()
        _show_stats(self._generation, answer)
        replied = domain.Message(
            role="assistant",
            content=answer.texts.get(0, ""),
            tool_calls=tuple(answer.tool_calls),
        )
        self._messages = [*messages, replied]


async def _once(address: str, request: domain.GenerateRequest, *, quiet: bool) -> Answer:
    """Get one answer, shown as it comes unless quiet; being cancelled cancels the request."""
    answer = Answer()
    async with Client(address) as client:
        events = client.stream(request)
        try:
            async for event in events:
                answer.take(event)
                if quiet:
                    continue
                if isinstance(event, domain.Delta):
                    show.write(event.text)
                elif isinstance(event, domain.ToolCallMade):
                    show.write(show.call_of(event.call))
        finally:
            await events.aclose()
    return answer


def as_object(answer: Answer) -> str:
    """Write an answer as one line of JSON."""
    accepted, final = answer.accepted, answer.final
    choices = [
        {
            "text": answer.texts.get(choice, ""),
            "token_ids": answer.token_ids.get(choice, []),
            "finish_reason": reason.value,
        }
        for choice, reason in enumerate(final.finish_reasons if final else ())
    ]
    return msgspec.json.encode(
        {
            "request_id": accepted.request_id if accepted else "",
            "version": accepted.version if accepted else "",
            "seed": accepted.seed if accepted else None,
            "choices": choices,
            "tool_calls": answer.tool_calls,
            "usage": final.usage if final else None,
            "timings": final.timings if final else None,
        }
    ).decode()


def _show_stats(generation: Generation, answer: Answer) -> None:
    if generation.stats and answer.final is not None:
        print(f"({show.measurements(answer.final)})", file=sys.stderr)


def _text_or_stdin(text: str | None) -> str:
    """Take the argument, or all of standard input if that is a pipe or a file."""
    if text is not None and text != "-":
        return text
    if text is None and sys.stdin.isatty():
        raise CommandFailed("give a text as an argument or on standard input", USAGE)
    try:
        found = sys.stdin.read(STDIN_CHARS_MAX + 1)
    except UnicodeDecodeError as error:
        raise CommandFailed("standard input is not UTF-8", USAGE) from error
    if len(found) > STDIN_CHARS_MAX:
        raise CommandFailed(f"standard input has more than {STDIN_CHARS_MAX} characters", USAGE)
    return found.removesuffix("\n")
