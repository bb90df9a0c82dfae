"""Show versions at work: signed, tried while users ask, one caught, and the way back.

What this room does: a hub with keys of its own, an appliance enrolled with it over mutual TLS, and
three versions of the demo model, of which the third is damaged; what happened, with times.
What it knows: what a person types; every step is one of our commands, or an answer of the daemon.
What it never does: say that something happened which the daemon does not confirm.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from pathlib import Path

import msgspec

from appliance.cli import show, show_versions
from appliance.cli.client import Client
from appliance.cli.demo_stage import POLL_S, Stage
from appliance.cli.demo_users import Users, ask
from appliance.cli.exits import SOFTWARE, CommandFailed
from appliance.cli.places import demo_version, socket_address
from appliance.cli.versions_client import Deployment, Outlook, Refusal, RolledBack, VersionsClient

WAIT_S = 60.0
MODEL = "demo"
COHORT = "shops"
DEVICE = "till-7"
QUESTION = "73 + 96 = ?"
ROOT_FILE = Path("hub") / "repository" / "metadata" / "1.root.json"

_HEALTH = """\
[[prompts]]
prompt = "Olivia sold a white phone in Rome. What colour is the phone?"
equals = "white"
[[prompts]]
prompt = "How many cm are 11 m?"
equals = "1100 cm"
[[prompts]]
prompt = "Hello"
equals = "Hello! How can I help you?"
[[prompts]]
prompt = "List the entities of this sentence as JSON: Rita flew to Naples yesterday."
is_json = true
contains = "Naples"
[[prompts]]
prompt = "Text: Max bought a grey kettle in Seattle. Question: Who bought the kettle?"
equals = "Max"
[[prompts]]
prompt = "3 min是多少s？"
equals = "180 s"
"""
# short stretches: what is shown here in seconds takes hours where it matters
_TRIAL = """\
shadow_share = 0.5
steps_percent = [50]
[shadow]
samples_min = 15
duration_s = 1.0
[step]
samples_min = 15
duration_s = 1.0
[probation]
samples_min = 15
duration_s = 1.0
"""
_HUB = """\
[hub]
state_dir = "{place}/hub"
listen = "127.0.0.1:0"
push_listen = "127.0.0.1:0"
"""
# wide bars: a few seconds on a busy machine say little about times
_BOX = """\
[server]
state_dir = "{place}/box"
runtime_dir = "{place}/run"
[rest]
tcp = ""
[deployments]
tick_s = 0.1
time_ratio_max = 20
slack_ms = 5000
"""


async def tell(stage: Stage) -> None:
    """Tell the whole story. Raises CommandFailed where it went otherwise."""
    stage.console.print("Now versions: a hub signs them, the appliance tries them.\n")
    await _found(stage)
    async with stage.running("hub", "hub", "serve", "--config", "hub.toml") as hub:
        await _enrol(stage, hub)
        async with stage.running("box", "serve", "--config", "box.toml") as box:
            address = socket_address(stage.place / "run")
            async with Client(address) as client, VersionsClient(address) as versions:
                await _live(stage, box, client, versions)
    stage.say("Appliance and hub ended cleanly; nothing of them is left.\n")


async def _found(stage: Stage) -> None:
    """Make keys, found the repository, publish version 1 and let the cohort have it."""
    stage.write("hub.toml", _HUB.format(place=stage.place))
    stage.write("box.toml", _BOX.format(place=stage.place))
    stage.write("health.toml", _HEALTH)
    stage.write("trial.toml", _TRIAL)
    config = ("--config", "hub.toml")
    await stage.command("hub", "init", "--keys", "safe", "--no-passphrase", *config)
    await stage.command("hub", "key", "new", "acme", "--keys", "acme", "--no-passphrase")
    keys = ("--key", "safe/targets.key", "--key", "acme/acme.key")
    words = ("key", "publisher", "acme", "--model", MODEL, "--public", "acme/acme.pub")
    await stage.command("hub", *words, *keys, "--yes", *config)
    await _publish(stage, "1")
    stage.say("The owners' keys stay off line; the hub holds what keeps lists fresh.", "green")


async def _publish(stage: Stage, version: str) -> None:
    config = ("--config", "hub.toml")
    tried = ("--health", "health.toml", "--strategy", "trial.toml")
    signed = ("--key", "acme/acme.key", "--yes")
    file = f"demo-{version}.gguf"
    await asyncio.to_thread(shutil.copyfile, demo_version(version), stage.place / file)
    weights = ("--weights", file)
    await stage.command("hub", "publish", MODEL, version, *weights, *tried, *signed, *config)
    await stage.command("hub", "assign", COHORT, MODEL, version, *config)


async def _enrol(stage: Stage, hub: asyncio.subprocess.Process) -> None:
    """Enrol the appliance over mutual TLS, and tell it whom to believe."""
    async with asyncio.timeout(WAIT_S):
        while (line := stage.logged("hub", event="listening", plane="hub")) is None:
            stage.check_runs("hub", hub)
            await asyncio.sleep(POLL_S)
    words = ("hub", "token", "--cohort", COHORT, "--device", DEVICE)
    stage.write("token", await stage.command(*words, "--config", "hub.toml"))
    url, box = f"https://{line['address']}", ("--config", "box.toml")
    await stage.command("enrol", "--hub", url, "--token-file", "token", *box)
    digest = hashlib.sha256((stage.place / ROOT_FILE).read_bytes()).hexdigest()
    await stage.command("trust", str(ROOT_FILE), "--sha256", digest, *box)
    stage.say(f"'{DEVICE}' is enrolled over mutual TLS, and knows whom to believe.", "green")


async def _live(
    stage: Stage,
    box: asyncio.subprocess.Process,
    client: Client,
    versions: VersionsClient,
) -> None:
    """Take three versions while users ask, and go back."""
    story = _Story(stage, box, client, versions)
    await story.first()
    users = Users(client)
    async with users.asking():
        stage.say("Twelve users begin to ask, and don't stop from here on.", "bold")
        await story.better()
        await story.damaged()
        await story.back()
    _check(not users.failures, f"requests failed: {users.failures[:3]}")
    _check(
        set(users.answered) == {f"{MODEL}@1", f"{MODEL}@2"},
        f"users were answered by {sorted(users.answered)}",
    )
    counts = ", ".join(f"{count} by {label}" for label, count in sorted(users.answered.items()))
    stage.say(
        f"{users.answered.total()} requests of users: {counts}; 0 failed, 0 met version 3.",
        "bold green",
    )


class _Story:
    """What happens to the appliance, chapter by chapter."""

    def __init__(
        self,
        stage: Stage,
        box: asyncio.subprocess.Process,
        client: Client,
        versions: VersionsClient,
    ) -> None:
        self._stage = stage
        self._box = box
        self._client = client
        self._versions = versions

    async def first(self) -> None:
        """Take version 1, with nothing to compare it with: its checks decide."""
        await self._followed("1", ends="committed")
        await self._serving(active="1", standby="")
        await self._asked()

    async def better(self) -> None:
        """Take version 2 by shadow, step and probation."""
        await _publish(self._stage, "2")
        states = await self._followed("2", ends="committed")
        missing = {"shadowing", "shifting", "probation"} - states
        _check(not missing, f"version 2 was committed without {sorted(missing)}")
        await self._serving(active="2", standby="1")
        await self._asked()

    async def damaged(self) -> None:
        """Publish the damaged version 3, signed like the others, and see it caught."""
        await _publish(self._stage, "3")
        await self._followed("3", ends="aborted")
        await self._serving(active="2", standby="1")
        refusal = await self._refused()
        _check(refusal.code == "quarantined", f"version 3 is refused as {refusal.code}")
        self._stage.say(
            f"Version 3 was caught before anybody met it: {refusal.reason}.", "bold green"
        )

    async def back(self) -> None:
        """Go back to version 1 by hand."""
        words = ("rollback", MODEL, "--json", "--runtime-dir", "run")
        done = msgspec.json.decode(await self._stage.command(*words), type=RolledBack)
        answer = await ask(self._client, QUESTION, user="operator")
        _check(done.deployment.state == "rolled_back", show_versions.line_of(done.deployment))
        _check(answer.version == f"{MODEL}@1", f"after the rollback {answer.version} answered")
        await self._serving(active="1", standby="")
        self._stage.say(
            f"Rolled back in {done.took_ms:.1f} ms; the next request was accepted by version 1 "
            f"after {answer.accepted_ms:.1f} ms.",
            "bold green",
        )

    async def _followed(self, version: str, *, ends: str) -> set[str]:
        """Tell of a version's deployment until its end, which must be this; returns its states."""
        one: Deployment | None = None
        states: set[str] = set()
        try:
            async with asyncio.timeout(WAIT_S):
                while one is None or not one.has_ended:
                    await asyncio.sleep(POLL_S)
                    self._stage.check_runs("box", self._box)
                    before, one = one, await self._newest(version) or one
                    self._tell_of(before, one)
                    states |= {one.state} if one else set()
        except TimeoutError as error:
            stands = show_versions.line_of(one) if one else self._stage.tail("box")
            reason = f"version {version} has no end after {WAIT_S:.0f} s: {stands}"
            raise CommandFailed(reason, SOFTWARE) from error
        _check(one.state == ends, show_versions.line_of(one))
        return states

    def _tell_of(self, before: Deployment | None, now: Deployment | None) -> None:
        """Tell of a state that was left: how long it took, and what it came to."""
        if now is None or before is None:
            return
        state = show_versions.state_of(before)
        if state == show_versions.state_of(now):
            return
        took_s = (now.entered_utc_ms - before.entered_utc_ms) / 1000
        reason = show.printable(now.reason) if now.reason != before.reason else ""
        line = f"   {now.label} {state:<13} {took_s:4.1f} s  {reason}"
        self._stage.say(line.rstrip(), "cyan")
        if now.has_ended:
            self._stage.say(f"   {now.label} {show_versions.state_of(now)}", "bold cyan")

    async def _settled(self) -> Outlook:
        """Read how the model stands when nothing is under way any more."""
        async with asyncio.timeout(WAIT_S):
            while True:
                (model,) = (await self._versions.overview()).models
                if model.deployment is None:
                    return model
                await asyncio.sleep(POLL_S)

    async def _refused(self) -> Refusal:
        """Read why what is assigned is not taken, as soon as that is said."""
        async with asyncio.timeout(WAIT_S):
            while True:
                refusal = (await self._settled()).refusal
                if refusal is not None:
                    return refusal
                await asyncio.sleep(POLL_S)

    async def _newest(self, version: str) -> Deployment | None:
        try:
            found = await self._versions.deployments(MODEL, 1)
        except CommandFailed:  # it has not begun to answer
            return None
        return next((one for one in found if one.version == version), None)

    async def _serving(self, *, active: str, standby: str) -> None:
        """Check who serves and who stands by, once what ended is settled."""
        model = await self._settled()
        found = [known.version if known else "" for known in (model.active, model.standby)]
        _check(found == [active, standby], f"versions {found} serve and stand by")

    async def _asked(self) -> None:
        answer = await ask(self._client, QUESTION, user="operator")
        said = show.printable(answer.text)
        self._stage.say(f"{answer.version} on “{QUESTION}”: {said}", "bold")


def _check(ok: bool, otherwise: str) -> None:  # noqa: FBT001 - what must be so
    if not ok:
        raise CommandFailed(f"the demonstration went otherwise: {otherwise}", SOFTWARE)
