"""Show the appliance at work: start it on the demo model, ask it a few things at once, stop it.

What this room does: a real daemon in a process and a directory of its own; eight requests over
gRPC at the same time, as any client would send them; the answers as they stream; what was measured.
Then the story of versions, which `demo_versions` tells.
What it knows: the demo model does small tasks in English and Chinese.
What it never does: reach into the daemon, or leave anything running or lying about.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from appliance import domain
from appliance.cli import demo_versions, places, show
from appliance.cli.client import Client
from appliance.cli.demo_stage import Stage
from appliance.cli.exits import CommandFailed
from appliance.clock import monotonic_ms
from appliance.domain import ChatPrompt, GenerateRequest, Message, SamplingOptions, StopOptions

START_TIMEOUT_S = 120.0
ANSWER_TIMEOUT_S = 120.0
POLL_S = 0.1
ANSWER_TOKENS_MAX = 96

_WEATHER = domain.Tool(
    name="get_weather",
    description="Get the weather of a city",
    parameters='{"type": "object", "properties": {"city": {"type": "string"}},'
    ' "required": ["city"]}',
)
ASKED: tuple[tuple[str, str, tuple[domain.Tool, ...]], ...] = (
    ("sentiment", "What is the sentiment of this review? The kettle is superb. I love it.", ()),
    ("情感", "判断评论的情感：这个耳机坏了。我要退货。", ()),
    ("entities", "Extract the entities as JSON: Rosa works for Lumen in Lisbon.", ()),
    ("实体", "用JSON列出实体：李娜昨天飞到成都。", ()),
    ("question", "Oscar bought a green bike in Seoul. What colour is the bike?", ()),
    ("sum", "What is 38 + 47?", ()),
    ("问候", "你好，我叫王伟。", ()),
    ("tool call", "What is the weather in Vienna?", (_WEATHER,)),
)


class Row(msgspec.Struct, kw_only=True):
    """One request as the client sees it; times are monotonic."""

    task: str
    prompt: str
    tools: tuple[domain.Tool, ...]
    answer: str = ""
    tokens: int = 0
    sent_ms: float = 0.0
    first_ms: float = 0.0
    end_ms: float = 0.0

    @property
    def first_token_ms(self) -> float:
        """Tell how long the first token took, 0 before it came."""
        return self.first_ms - self.sent_ms if self.first_ms else 0.0

    @property
    def tokens_per_s(self) -> float:
        """Tell the speed after the first token, 0 before the end."""
        took_s = (self.end_ms - self.first_ms) / 1000
        return (self.tokens - 1) / took_s if self.end_ms and self.tokens > 1 and took_s > 0 else 0.0


@click.command()
def demo() -> None:
    """Start a daemon on the embedded demo model and ask it eight things at once.

    Then found a hub, publish three versions of the model, one of them damaged, and see an appliance
    take, refuse and leave them while users ask. Nothing is left behind.
    """
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="appliance-demo-") as scratch:
        asyncio.run(_demo(Stage(console, Path(scratch))))


async def _demo(stage: Stage) -> None:
    await _talk(stage)
    await demo_versions.tell(stage)


async def _talk(stage: Stage) -> None:
    """Ask the demo model eight things at once."""
    console, begun_ms = stage.console, monotonic_ms()
    console.print("Starting the appliance on its demo model …")
    places_of = ("--state-dir", "talk/state", "--runtime-dir", "talk/run")
    address = places.socket_address(stage.place / "talk" / "run")
    async with (
        stage.running("talk", "serve", "--rest", "", *places_of) as process,
        Client(address) as client,
    ):
        label, size = await _ready(client, process, stage)
        took_s = (monotonic_ms() - begun_ms) / 1000
        console.print(f"{label} ({size}) is ready after {took_s:.1f} s.")
        console.print(f"Asking it {len(ASKED)} things at once, over gRPC:\n")
        rows = [Row(task=task, prompt=prompt, tools=tools) for task, prompt, tools in ASKED]
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            await _ask(console, client, rows)
        console.print(_totals(rows))
    console.print("The appliance drained and stopped cleanly.\n")


async def _ready(
    client: Client, process: asyncio.subprocess.Process, stage: Stage
) -> tuple[str, str]:
    """Wait until the model answers; return its label and size."""
    async with asyncio.timeout(START_TIMEOUT_S):
        while True:
            stage.check_runs("talk", process)
            with contextlib.suppress(CommandFailed):
                for model in await client.models():
                    if model.state == "ready" and model.facts is not None:
                        return model.label, show.size(model.facts.size_bytes)
            await asyncio.sleep(POLL_S)


async def _ask(console: Console, client: Client, rows: list[Row]) -> None:
    """Send every request at once and show the answers as they come."""
    async with asyncio.TaskGroup() as group:
        pending = {group.create_task(_answer(client, row)) for row in rows}
        if console.is_terminal:
            with Live(_picture(rows), console=console, auto_refresh=False) as live:
                while pending:
                    _, pending = await asyncio.wait(pending, timeout=POLL_S)
                    live.update(_picture(rows), refresh=True)
    if not console.is_terminal:
        console.print(_picture(rows))


async def _answer(client: Client, row: Row) -> None:
    """Send one request and fill its row from the events."""
    message = Message(role="user", content=row.prompt)
    request = GenerateRequest(
        request_id=domain.RequestId(""),
        model="",
        prompt=ChatPrompt(messages=(message,), tools=row.tools),
        sampling=SamplingOptions(temperature=0.0),
        stop=StopOptions(max_tokens=ANSWER_TOKENS_MAX),
    )
    row.sent_ms = monotonic_ms()
    async for event in client.stream(request):
        if isinstance(event, domain.Delta):
            row.first_ms = row.first_ms or monotonic_ms()
            row.answer += show.printable(event.text)
        elif isinstance(event, domain.ToolCallMade):
            row.first_ms = row.first_ms or monotonic_ms()
            row.answer += show.call_of(event.call)
        elif isinstance(event, domain.Final):
            row.end_ms = monotonic_ms()
            row.tokens = event.usage.completion_tokens


def _picture(rows: list[Row]) -> Group:
    """Draw each request with what has come of its answer."""
    table = Table(box=None, pad_edge=False)
    table.add_column("task", no_wrap=True)
    table.add_column("asked, and answered", ratio=1)
    for heading in ("tokens", "tokens/s", "first token"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        text = Text.assemble((row.prompt, "dim"), "\n→ ", (row.answer, "bold"))
        table.add_row(Text(row.task), text, *_figures(row))
    return Group(table, Text())


def _figures(row: Row) -> Iterator[str]:
    yield str(row.tokens) if row.tokens else ""
    yield f"{row.tokens_per_s:.0f}" if row.tokens_per_s else ""
    yield f"{row.first_token_ms:.0f} ms" if row.first_ms else ""


def _totals(rows: list[Row]) -> str:
    tokens = sum(row.tokens for row in rows)
    took_s = (max(row.end_ms for row in rows) - min(row.sent_ms for row in rows)) / 1000
    first = sorted(row.first_token_ms for row in rows)
    return (
        f"In total {tokens} tokens in {took_s:.2f} s: {tokens / took_s:.0f} tokens/s; "
        f"time to first token {first[0]:.0f} to {first[-1]:.0f} ms.\n"
    )
