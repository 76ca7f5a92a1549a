"""The training loop: steps, schedule, running average of the weights, checkpoints, progress.

Owns when things happen and what a checkpoint holds. Knows nothing of pictures, captions or losses: a task brings those.
A run stopped anywhere and started again does what an uninterrupted one does, step for step: all randomness of step n
comes from (seed, n), and the checkpoint holds weights, averages, optimiser state and step.
"""

import copy
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from training.hardware import Hardware
from training.optimiser import Muon, parameter_groups


class Task(Protocol):
    """What a trainer brings to the loop."""

    @property
    def model(self) -> nn.Module: ...

    def compiled_parts(self) -> list[nn.Module]:
        """The parts of the model whose `forward` the loss calls."""

    def loss(self, step: int, random: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """The loss of one batch (scalar, with gradient) and what is worth printing beside it."""

    def sheet(self, averaged: nn.Module) -> Image.Image:
        """A picture of what the averaged weights do now."""

    def measure(self, averaged: nn.Module) -> dict[str, float]:
        """Figures of the averaged weights on pictures that are not trained on."""


@dataclass(frozen=True)
class LoopSettings:
    """How long and how fast. `cooldown_steps`, counted from the end of `steps`, take the rate down to zero linearly."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int = 100
    cooldown_steps: int = 0
    weight_average: float = 0.999
    gradient_clip: float = 1.0
    seed: int = 0
    checkpoint_every_s: float = 300.0
    measure_every_steps: int = 1000

    def rate_at(self, step: int) -> float:
        """Learning rate of step `step` (0-based): linear warm-up, constant, linear cool-down."""
        rate = self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup_steps))
        left = self.steps - step
        return rate * min(1.0, left / self.cooldown_steps) if self.cooldown_steps else rate


class Run:
    """One training run in one folder: `state.pt`, `log.jsonl` and `sheets/`."""

    def __init__(self, folder: Path, task: Task, settings: LoopSettings, hardware: Hardware) -> None:
        self.folder = folder
        self.task = task
        self.settings = settings
        self.hardware = hardware
        self.step = 0
        self.averaged = copy.deepcopy(task.model).requires_grad_(False).to(hardware.place)
        hardware.prepare(task.model, task.compiled_parts())
        self.optimiser = Muon(parameter_groups(task.model), hardware.dtype)
        (folder / "sheets").mkdir(parents=True, exist_ok=True)

    def resume(self) -> bool:
        """Go on from the folder's checkpoint; False when there is none."""
        path = self.folder / "state.pt"
        if not path.exists():
            return False
        state = torch.load(path, map_location=self.hardware.place, weights_only=True)
        self.task.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]
        return True

    def save(self) -> None:
        """Write the checkpoint; a crash while writing leaves the previous one."""
        state = {
            "model": self.task.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
        }
        unfinished = self.folder / "state.pt.part"
        torch.save(state, unfinished)
        os.replace(unfinished, self.folder / "state.pt")

    def train(self, until: Callable[[], bool] = lambda: False) -> None:
        """Train to `settings.steps`, or until `until()` says so after a step. Leaves a checkpoint either way."""
        settings, began, saved = self.settings, time.monotonic(), time.monotonic()
        first, losses = self.step, []
        while self.step < settings.steps and not until():
            value, extra = self._one_step()
            losses.append(value)
            if self.step % 50 == 0:
                speed = (self.step - first) * settings.batch_size / (time.monotonic() - began)
                self._log(loss=float(np.mean(losses)), samples_per_s=round(speed, 2), **extra)
                losses = []
            if self.step % settings.measure_every_steps == 0:
                self.report()
            if time.monotonic() - saved > settings.checkpoint_every_s:
                self.save()
                saved = time.monotonic()
        self.save()

    def report(self) -> None:
        """Measure the averaged weights, write the figures to the log and a sheet of samples as PNG."""
        self.averaged.eval()
        with torch.no_grad():
            self._log(**self.task.measure(self.averaged))
            self.task.sheet(self.averaged).save(self.folder / "sheets" / f"{self.step:07d}.png")

    def _one_step(self) -> tuple[float, dict[str, float]]:
        settings, model = self.settings, self.task.model
        model.train()
        random = np.random.default_rng([settings.seed, self.step])
        torch.manual_seed(int(random.integers(2**62)))
        with self.hardware.precision():
            loss, extra = self.task.loss(self.step, random)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clip)
        self.optimiser.step(settings.rate_at(self.step))
        self.optimiser.zero_grad()
        self.step += 1
        self._average()
        return loss.item(), extra

    def _average(self) -> None:
        """Exponential average of the weights, quick at the start: after n steps at most n/(n + 10) of it is old."""
        keep = min(self.settings.weight_average, self.step / (self.step + 10))
        with torch.no_grad():
            for old, new in zip(self.averaged.parameters(), self.task.model.parameters(), strict=True):
                old.lerp_(new, 1 - keep)

    def _log(self, **figures: Any) -> None:
        line = json.dumps({"step": self.step, **figures})
        print(line, flush=True)  # noqa: T201 progress of a command
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(line + "\n")
