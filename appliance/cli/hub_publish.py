"""Publish a version of a model from a publisher's desk, and withdraw one.

What this room does: reads files, shows what will be signed, asks, signs.
What it knows: `hub.publish`; where there is no online key, what is signed waits for the hub.
What it never does: sign without a yes, from a person or as `--yes`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from appliance.cli import hub_options, show
from appliance.cli.exits import USAGE, CommandFailed
from appliance.cli.hub_options import (
    Places,
    Ring,
    json_option,
    key_options,
    place_options,
    read_part,
)
from appliance.clock import utc_ms
from appliance.contract.release import HealthPack, Needs, Release, Strategy
from appliance.hub import publish as publishing
from appliance.hub.publish import Intent, Prepared, Published

_FILE = click.Path(dir_okay=False, path_type=Path)


def intent_options(command: Callable[..., object]) -> Callable[..., object]:
    """Let a command be told what to publish; it is handed `intent`."""

    @functools.wraps(command)
    def intended(
        *args: Any,  # noqa: ANN401 - what click hands over
        health: Path | None,
        strategy: Path | None,
        appliance_min: str,
        memory_bytes: int,
        model: str,
        version: str,
        **rest: Any,  # noqa: ANN401 - likewise
    ) -> object:
        said = {name: rest.pop(name) for name in ("weights", "adapters", "licence", "notes")}
        intent = Intent(
            model=model,
            version=version,
            health=read_part(health, HealthPack) if health else HealthPack(),
            strategy=read_part(strategy, Strategy) if strategy else Strategy(),
            needs=Needs(appliance_min=appliance_min, memory_bytes=memory_bytes),
            **said,
        )
        return command(*args, intent=intent, **rest)

    for option in (
        click.option("--appliance-min", default="", help="The oldest program that can run it."),
        click.option(
            "--memory-bytes",
            type=click.IntRange(0),
            default=0,
            help="Memory it needs; default: as its files tell.",
        ),
        click.option("--notes", default="", help="What operators should know of it."),
        click.option("--licence", default="", help="Its licence; default: what the file says."),
        click.option("--strategy", type=_FILE, help="How it is tried, TOML or JSON."),
        click.option("--health", type=_FILE, help="The health pack, TOML or JSON."),
        click.option("--adapter", "adapters", multiple=True, type=_FILE, help="A LoRA adapter."),
        click.option(
            "--weights",
            multiple=True,
            required=True,
            type=_FILE,
            help="A GGUF, or the first part of a split one; repeat it for other quantisations.",
        ),
        click.argument("version"),
        click.argument("model"),
    ):
        intended = option(intended)
    return intended


@click.command()
@intent_options
@click.option("--yes", is_flag=True, help="Sign without asking.")
@key_options
@place_options
@json_option
def publish(
    *,
    intent: Intent,
    yes: bool,
    ring: Ring,
    places: Places,
    as_json: bool,
) -> None:
    """Publish VERSION of MODEL: check its files, show what will be signed, sign it.

    Without --key and --yes nothing is written: it shows what would be signed.
    """
    now = utc_ms()
    prepared = publishing.prepare(places.repository, intent, now_utc_ms=now)
    if not as_json:
        _show(prepared)
    if not ring.paths and not yes:
        if as_json:
            hub_options.print_json({"release": prepared.release, "role": prepared.role})
        return
    if not yes and not hub_options.confirmed("Sign this?"):
        raise CommandFailed("nothing was signed; say --yes where there is no terminal", USAGE)
    done = publishing.publish(places.repository, prepared, ring.signers(), now_utc_ms=now)
    _answer(places, now, done, prepared.release, as_json=as_json)


@click.command()
@click.argument("model")
@click.argument("version")
@click.option("--reason", required=True, help="What operators are told.")
@click.option("--floor", is_flag=True, help="And refuse every version before it.")
@click.option("--yes", is_flag=True, help="Sign without asking.")
@key_options
@place_options
@json_option
def revoke(
    *,
    model: str,
    version: str,
    reason: str,
    floor: bool,
    yes: bool,
    ring: Ring,
    places: Places,
    as_json: bool,
) -> None:
    """Withdraw VERSION of MODEL for ever; no appliance takes it, whoever assigns it."""
    now = utc_ms()
    if not yes and not hub_options.confirmed(f"Withdraw {model}@{version} for ever?"):
        raise CommandFailed("nothing was signed; say --yes where there is no terminal", USAGE)
    done = publishing.revoke(
        places.repository,
        model,
        version,
        ring.signers(),
        now_utc_ms=now,
        reason=reason,
        is_floor_raised=floor,
    )
    _answer(places, now, done, None, as_json=as_json)


def _answer(
    places: Places,
    now_utc_ms: int,
    done: Published,
    release: Release | None,
    *,
    as_json: bool,
) -> None:
    settled = places.settle(now_utc_ms)
    if as_json:
        hub_options.print_json(
            {
                "path": done.path,
                "sha256": done.sha256,
                "signing": done.signing,
                "put_out": settled.versions,
                "release": release,
            }
        )
        return
    click.echo(f"signed {done.path} (sha256:{done.sha256[:12]})")
    hub_options.print_put_out(settled.versions)
    if done.signing.role not in settled.versions:
        hub_options.print_waiting(done.signing)


def _show(prepared: Prepared) -> None:
    """Show everything that a signature will stand for."""
    release, facts = prepared.release, prepared.release.facts
    rows = [
        ("version", f"{release.label}, number {release.sequence}, signed by {prepared.role}"),
        ("model", f"{facts.architecture}, {facts.parameters_count:,} parameters"),
        ("quantisation", ", ".join(release.quantisations)),
        ("context", f"{facts.context_train_tokens:,} tokens, {facts.kv_bytes_per_token:,} B each"),
        ("licence", facts.licence or "not named"),
        ("tokenizer", f"sha256:{facts.tokenizer_sha256}"),
        ("template", f"sha256:{facts.template_sha256}" if facts.template_sha256 else "none"),
        ("needs", f"{show.size(release.needs.memory_bytes)} of memory"),
        ("health", _health(release.health)),
        ("strategy", _strategy(release.strategy)),
    ]
    for source in prepared.sources:
        blob = source.file.blob
        rows.append((source.file.role.value, f"{source.path}"))
        rows.append(("", f"{show.size(blob.length)}, {source.chunks_count} chunks"))
        rows.append(("", f"sha256:{blob.sha256}"))
    if prepared.known_version:
        share = f"{show.size(prepared.new_bytes)} new since {prepared.known_version}"
        rows.append(("to fetch", share))
    for name, value in rows:
        click.echo(f"{name:>13}  {show.printable(value)}")


def _health(health: HealthPack) -> str:
    speed = f", speed {health.speed_ratio_min:g} of the active" if health.speed_ratio_min else ""
    drift = f", at most {health.drift_max:g} nats from its original" if health.drift_max else ""
    return f"{len(health.prompts)} prompts, {health.pass_ratio_min:.0%} must pass{speed}{drift}"


def _strategy(strategy: Strategy) -> str:
    """Say how a version will be tried, what was left to the defaults among it."""
    words = [f"shadow {strategy.shadow_share:.0%}"]
    words += [f"{step} %" for step in strategy.steps_percent]
    if strategy.needs_approval:
        words.insert(1, "approval")
    if strategy.probation is not None:
        trial = strategy.probation
        words.append(f"probation {trial.duration_s:g} s and {trial.samples_min} samples")
    words.append(f"within {strategy.deadline_s / 3600:g} h")
    if strategy.stop_then_start:
        words.append("may stop the active version first")
    return ", ".join(words)
