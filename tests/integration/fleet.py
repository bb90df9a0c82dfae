"""A hub with a publisher and one appliance, run as their operators run them: by the program."""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeAlias, TypeVar

import grpc
import grpc.aio

from appliance.api.proto import deployment_pb2 as pb
from appliance.api.proto import inference_pb2, model_pb2
from appliance.api.proto.deployment_pb2_grpc import DeploymentServiceStub
from appliance.api.proto.inference_pb2_grpc import InferenceServiceStub
from appliance.api.proto.model_pb2_grpc import ModelServiceStub
from tests.integration.daemons import DEMO, RunningDaemon, program
from tests.integration.hubs import RunningHub

MODEL, COHORT = "demo", "lab"
DEMO_1 = DEMO.with_name("demo-1.q8_0.gguf")
DEMO_2 = DEMO
TRIAL = {"samples_min": 3, "duration_s": 0.0}
QUICK: Mapping[str, object] = {
    "shadow_share": 1.0,
    "shadow": TRIAL,
    "steps_percent": [50],
    "step": TRIAL,
    "probation": TRIAL,
}
STRAIGHT: Mapping[str, object] = {"shadow_share": 0.0, "steps_percent": [], "probation": None}
CALL_S = 60.0
WAIT_S = 90.0
T = TypeVar("T")
_SETTINGS = {  # a small machine under a test: what users would notice is not what is tested here
    "deployments.tick_s": 0.1,
    "deployments.time_ratio_max": 100,
    "deployments.slack_ms": 60_000,
    "downloads.free_bytes_min": 0,
    "link.hint_spread_s": 0,
    "link.retry_s_min": 0.05,
    "link.retry_s_max": 0.2,
}


class Fleet:
    """The directories of a hub, of its keys and of one appliance, all below `place`."""

    def __init__(self, place: Path) -> None:
        """Found the hub's repository and its publisher."""
        self.place = place
        self.keys = place / "keys"
        self.box = place / "box"
        self.state = self.box / "state"
        self.repository = place / "hub" / "repository"
        self._options = ("--set", f"hub.state_dir={place / 'hub'}")
        self.hub_run("init", "--keys", self.keys, "--no-passphrase")
        self.run("hub", "key", "new", "acme", "--keys", self.keys, "--no-passphrase")
        publisher = ("--model", MODEL, "--public", self.keys / "acme.pub", "--yes")
        self.hub_run("key", "publisher", "acme", *publisher, "--key", self.keys / "targets.key")
        self.hub_run("sign", "--yes", "--key", self.keys / "acme.key")

    def beside(self, name: str) -> Fleet:
        """Take another appliance of the same hub, in a directory of its own."""
        other = copy.copy(self)
        other.box = self.place / name
        other.state = other.box / "state"
        return other

    def run(self, *words: object) -> str:
        """Run a command of the program; returns what it printed."""
        done = program(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def hub_run(self, *words: object) -> str:
        """Run a verb of the hub on its directory."""
        return self.run("hub", *words, *self._options)

    def publish(
        self,
        version: str,
        weights: Path,
        strategy: Mapping[str, object] = QUICK,
        health: Mapping[str, object] | None = None,
        *,
        more: Sequence[object] = (),
    ) -> None:
        """Publish a version, and have the cohort run it. more: further options."""
        files = {"strategy": strategy, "health": health or {"prompts": []}}
        options: list[object] = []
        for name, value in files.items():
            path = self.place / f"{name}-{version}.json"
            path.write_text(json.dumps(value))
            options += [f"--{name}", path]
        said = ("publish", MODEL, version, "--weights", weights, *options, *more)
        self.hub_run(*said, "--yes", "--key", self.keys / "acme.key")
        self.assign(version)

    def assign(self, version: str) -> None:
        """Have the cohort run a version."""
        self.hub_run("assign", COHORT, MODEL, version)

    def trust(self) -> None:
        """Have the appliance trust the repository's first root."""
        root = self.repository / "metadata" / "1.root.json"
        digest = hashlib.sha256(root.read_bytes()).hexdigest()
        self.run("trust", root, "--sha256", digest, "--state-dir", self.state)

    def hub(self) -> RunningHub:
        """Start the hub."""
        return RunningHub(self.place)

    def enrol(self, hub: RunningHub) -> None:
        """Enrol the appliance."""
        hub.enrolled(self.state, cohort=COHORT)

    def daemon(self, *options: object, **settings: object) -> RunningDaemon:
        """Start the appliance."""
        given = _SETTINGS | settings
        words = [word for key, value in given.items() for word in ("--set", f"{key}={value}")]
        self.box.mkdir(exist_ok=True)
        return RunningDaemon(self.box, *words, *options)


class Desk:
    """An operator at the appliance's socket. Blocks."""

    Stub: TypeAlias = DeploymentServiceStub

    def __init__(self, daemon: RunningDaemon) -> None:
        """Ask this daemon."""
        self._address = daemon.address

    def call(self, work: Callable[[DeploymentServiceStub], Awaitable[T]]) -> T:
        """Make one call."""

        async def once() -> T:
            async with asyncio.timeout(CALL_S), grpc.aio.insecure_channel(self._address) as channel:
                return await work(DeploymentServiceStub(channel))

        return asyncio.run(once())

    def overview(self) -> pb.GetOverviewResponse:
        """See how all stands."""

        async def work(stub: DeploymentServiceStub) -> pb.GetOverviewResponse:
            return await stub.GetOverview(pb.GetOverviewRequest())

        return self.call(work)

    def model(self) -> pb.ModelOutlook:
        """See how the model stands."""
        return next(iter(self.overview().models), pb.ModelOutlook())

    def deployments(self) -> list[pb.Deployment]:
        """List all deployments."""

        async def work(stub: DeploymentServiceStub) -> pb.ListDeploymentsResponse:
            return await stub.ListDeployments(pb.ListDeploymentsRequest())

        return list(self.call(work).deployments)

    def active(self) -> str:
        """Name the version that is written down as the active one, once users are sent to it."""
        written = self.model().active.version

        async def work() -> model_pb2.ListResponse:
            async with asyncio.timeout(CALL_S), grpc.aio.insecure_channel(self._address) as channel:
                return await ModelServiceStub(channel).List(model_pb2.ListRequest())

        serving = [one for one in asyncio.run(work()).models if one.role == model_pb2.ROLE_ACTIVE]
        return written if (MODEL, written) in [(one.name, one.version) for one in serving] else ""


def state_of(deployment: pb.Deployment) -> str:
    """Name a state as its enum does, without the prefix."""
    return pb.DeploymentState.Name(deployment.state).removeprefix("DEPLOYMENT_STATE_")


def steps(lines: list[dict[str, Any]], version: str) -> list[str]:
    """List the states that a version went through, as the log tells."""
    return [
        str(line["state"])
        for line in lines
        if line.get("event") == "deployment_step" and line["version"] == f"{MODEL}@{version}"
    ]


class Load:
    """Streams of several users, one after the other each, until it is left. A context manager."""

    def __init__(
        self, daemon: RunningDaemon, users: int = 6, tokens: int = 12, adapter: str = ""
    ) -> None:
        """Ask this daemon, in a thread of its own."""
        self.failures: list[str] = []
        self.versions: list[str] = []
        self._address = daemon.address
        self._users = users
        self._tokens = tokens
        self._adapter = adapter
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(CALL_S)
        assert not self._thread.is_alive()

    async def _run(self) -> None:
        async with (
            grpc.aio.insecure_channel(self._address) as channel,
            asyncio.TaskGroup() as group,
        ):
            stub = InferenceServiceStub(channel)
            for number in range(self._users):
                group.create_task(self._user(stub, f"user-{number}"))

    async def _user(self, stub: InferenceServiceStub, user: str) -> None:
        stop = inference_pb2.StopOptions(max_tokens=self._tokens, ignore_eos=True)
        asked = inference_pb2.GenerateInput(
            model=MODEL, text="2 + 2 =", stop=stop, user=user, adapter=self._adapter
        )
        while not self._stop.is_set():
            tokens, version = 0, ""
            try:
                async with asyncio.timeout(CALL_S):
                    call = stub.GenerateStream(inference_pb2.GenerateStreamRequest(input=asked))
                    async for answer in call:
                        version = answer.event.accepted.version or version
                        tokens += len(answer.event.delta.token_ids)
            except (grpc.aio.AioRpcError, TimeoutError) as error:
                self.failures.append(f"{user} on {version}: {error!r}")
                continue
            if tokens != self._tokens:
                self.failures.append(f"{user} on {version}: {tokens} tokens")
            self.versions.append(version)
