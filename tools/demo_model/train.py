"""Train the network: seeded, resumable, measured as it goes.

What this room does: batches of similar length from the corpus; Muon for the matrices and AdamW for
the rest; a warm-up, a plateau and a linear descent; an average of the weights; checkpoints.
What it knows: progress is counted in tokens; a run that is resumed sees the same batches that it
would have seen.
What it never does: look at held-out text, except to measure.

Muon orthogonalises the momentum of each matrix by five Newton-Schulz steps (Keller Jordan et al.,
2024); on this corpus it needs far fewer tokens than AdamW alone.
"""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from tools.demo_model import corpus
from tools.demo_model.chat import END_OF_TURN, render_prompt
from tools.demo_model.model import Llama, Shape
from tools.demo_model.tokenizer import PAD, load_tokenizer, train_tokenizer

IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a training run does. Lengths in tokens, times in seconds."""

    seed: int = 7
    steps: int = 2300
    batch_tokens: int = 4096
    pool_examples: int = 2048
    matrix_rate: float = 0.02
    other_rate: float = 0.003
    warm_up_steps: int = 50
    descent_share: float = 0.4
    average_decay: float = 0.98
    measure_every_s: float = 100.0
    measure_count: int = 300
    threads: int = 2


class Muon:
    """Momentum, orthogonalised, for matrices; state is one buffer per parameter."""

    def __init__(self, parameters: list[nn.Parameter], momentum: float = 0.95) -> None:
        self.parameters = parameters
        self.momentum = momentum
        self.buffers = [torch.zeros_like(parameter) for parameter in parameters]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move every parameter once, by its gradient, and clear the gradient."""
        for parameter, buffer in zip(self.parameters, self.buffers, strict=True):
            assert parameter.grad is not None
            buffer.mul_(self.momentum).add_(parameter.grad)
            update = _orthogonal(parameter.grad.add(buffer, alpha=self.momentum))
            scale = max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5
            parameter.mul_(1 - rate * 0.01).add_(update, alpha=-rate * scale)
            parameter.grad = None


def _orthogonal(matrix: Tensor) -> Tensor:
    """Bring the singular values of a matrix near one (five Newton-Schulz steps)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)


def encode_example(tokenizer: Tokenizer, example: corpus.Example) -> tuple[list[int], int]:
    """Return the token ids of a chat with its answer, and how many of them are the prompt."""
    prompt = tokenizer.encode(render_prompt(example.messages, example.tools)).ids
    answer = tokenizer.encode(example.expected + END_OF_TURN).ids
    return prompt + answer, len(prompt)


def batches(tokenizer: Tokenizer, plan: Plan) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (ids, targets), each (rows, length) int64; targets outside answers are IGNORED."""
    stream = corpus.examples(plan.seed, held_out=False)
    order = random.Random(plan.seed)
    pad = tokenizer.token_to_id(PAD)
    while True:
        pool = [
            encode_example(tokenizer, example)
            for example in itertools.islice(stream, plan.pool_examples)
        ]
        pool.sort(key=lambda item: len(item[0]))
        grouped: list[list[tuple[list[int], int]]] = [[]]
        for item in pool:
            if (len(grouped[-1]) + 1) * len(item[0]) > plan.batch_tokens:
                grouped.append([])
            grouped[-1].append(item)
        order.shuffle(grouped)
        for group in grouped:
            yield _tensors(group, pad)


def _tensors(group: list[tuple[list[int], int]], pad: int) -> tuple[Tensor, Tensor]:
    length = max(len(ids) for ids, _ in group) - 1
    inputs = torch.full((len(group), length), pad)
    targets = torch.full((len(group), length), IGNORED)
    for row, (ids, prompt_count) in enumerate(group):
        inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        targets[row, prompt_count - 1 : len(ids) - 1] = torch.tensor(ids[prompt_count:])
    return inputs, targets


def _rate_share(plan: Plan, step: int) -> float:
    """Return the share of the full rate at a step: up, level, down to zero."""
    descent = int(plan.steps * plan.descent_share)
    return min(1.0, (step + 1) / plan.warm_up_steps, max(0.0, plan.steps - step) / descent)


@torch.no_grad()
def measure(model: Llama, tokenizer: Tokenizer, plan: Plan) -> float:
    """Return the share of held-out examples whose whole answer is the model's first choice.

    Every token is predicted from the right ones before it; an answer in which each is right is
    the answer that greedy decoding gives.
    """
    drawn = itertools.islice(corpus.examples(plan.seed + 1, held_out=True), plan.measure_count)
    items = sorted((encode_example(tokenizer, e) for e in drawn), key=lambda item: len(item[0]))
    right = 0
    pad = tokenizer.token_to_id(PAD)
    for start in range(0, len(items), 32):
        inputs, targets = _tensors(items[start : start + 32], pad)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.hidden(inputs)
            best = model.logits(hidden).argmax(-1)
        right += int(((best == targets) | (targets == IGNORED)).all(-1).sum())
    return right / plan.measure_count


class Run:
    """One training run in a folder: everything that a checkpoint holds."""

    def __init__(self, folder: Path, plan: Plan, shape: Shape) -> None:
        """Start afresh, or go on from the checkpoint in `folder`."""
        self.folder, self.plan = folder, plan
        folder.mkdir(parents=True, exist_ok=True)
        vocabulary = folder / "tokenizer.json"
        self.tokenizer = (
            load_tokenizer(vocabulary)
            if vocabulary.exists()
            else train_tokenizer(plan.seed, vocabulary)
        )
        torch.manual_seed(plan.seed)
        self.model = Llama(shape)
        matrices = [p for p in self.model.blk.parameters() if p.ndim > 1]
        chosen = {id(p) for p in matrices}
        others = [p for p in self.model.parameters() if id(p) not in chosen]
        self.muon = Muon(matrices)
        self.adam = torch.optim.AdamW(
            others, lr=plan.other_rate, betas=(0.9, 0.95), weight_decay=0.01
        )
        self.average = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.step = 0
        self.spent_s = 0.0
        self.trail: list[dict[str, float]] = []
        self.checkpoint = folder / "checkpoint.pt"
        if self.checkpoint.exists():
            self._restore()

    def _restore(self) -> None:
        held = torch.load(self.checkpoint)
        self.model.load_state_dict(held["model"])
        self.adam.load_state_dict(held["adam"])
        for buffer, kept in zip(self.muon.buffers, held["muon"], strict=True):
            buffer.copy_(kept)
        self.average, self.step = held["average"], held["step"]
        self.spent_s, self.trail = held["spent_s"], held["trail"]

    def save(self) -> None:
        """Write the checkpoint: a temporary file, then a rename."""
        fresh = self.checkpoint.with_suffix(".new")
        torch.save(
            {
                "model": self.model.state_dict(),
                "adam": self.adam.state_dict(),
                "muon": self.muon.buffers,
                "average": self.average,
                "step": self.step,
                "spent_s": self.spent_s,
                "trail": self.trail,
            },
            fresh,
        )
        fresh.replace(self.checkpoint)

    def _loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.model.hidden(inputs)
            kept = targets != IGNORED
            logits = self.model.logits(hidden[kept])
        return functional.cross_entropy(logits, targets[kept])

    def _advance(self, inputs: Tensor, targets: Tensor) -> float:
        share = _rate_share(self.plan, self.step)
        loss = self._loss(inputs, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        self.muon.step(self.plan.matrix_rate * share)
        for group in self.adam.param_groups:
            group["lr"] = self.plan.other_rate * share
        self.adam.step()
        self.adam.zero_grad()
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                self.average[name].lerp_(value, 1 - self.plan.average_decay)
        self.step += 1
        return float(loss.detach())

    def keep(self) -> float:
        """Measure the averaged weights, keep them beside the checkpoint, and return the figure."""
        averaged = Llama(self.model.shape)
        averaged.load_state_dict(self.average)
        exact = measure(averaged, self.tokenizer, self.plan)
        self.trail.append({"step": self.step, "exact": exact, "spent_s": self.spent_s})
        torch.save(self.average, self.folder / f"weights-{self.step:06d}.pt")
        (self.folder / "trail.json").write_text(
            json.dumps(
                {
                    "plan": asdict(self.plan),
                    "shape": asdict(self.model.shape),
                    "trail": self.trail,
                },
                indent=1,
            )
        )
        self.save()
        return exact

    def train(self) -> None:
        """Train to the end of the plan, with a line of progress every twenty seconds."""
        torch.set_num_threads(self.plan.threads)
        source = batches(self.tokenizer, self.plan)
        for _ in range(self.step):
            next(source)
        told = measured = time.monotonic()
        tokens, losses = 0, []
        while self.step < self.plan.steps:
            start = time.monotonic()
            inputs, targets = next(source)
            losses.append(self._advance(inputs, targets))
            tokens += inputs.numel()
            now = time.monotonic()
            self.spent_s += now - start
            if now - told > 20:  # noqa: PLR2004 - seconds
                recent = losses[-50:]
                print(
                    f"step {self.step}/{self.plan.steps}  loss {sum(recent) / len(recent):.3f}  "
                    f"{tokens / (now - told):.0f} tokens/s",
                    flush=True,
                )
                told, tokens, losses = now, 0, losses[-50:]
            if now - measured > self.plan.measure_every_s:
                print(f"step {self.step}  held-out exact {self.keep():.3f}", flush=True)
                measured = told = time.monotonic()
        print(f"step {self.step}  held-out exact {self.keep():.3f}", flush=True)


def train(folder: Path, *, layers: int | None = None, **changes: Any) -> None:  # noqa: ANN401 - fields of Plan
    """Run or go on with the training in `folder`."""
    shape = Shape() if layers is None else Shape(layers=layers)
    Run(folder, Plan(**changes), shape).train()
