"""Hardware: what networks are trained on, and what a scale asks of it."""

from __future__ import annotations

import platform
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch.nn.functional import conv2d

from evenkeel.papers.lab.specs import Accelerator, Precision, Scale


@dataclass(frozen=True)
class Hardware:
    """What a network is trained on; part of what decides the last bits of its weights.

    Args:
        accelerator: `cpu`, `cuda`, or `auto` for the latter where there is one.
        devices: over how many the batch is spread, by DistributedDataParallel.
        precision: `32-true` or `bf16-mixed`, as lightning-fabric names them. Scores are always taken in 32 bits.
        compile: train what torch.compile makes of the network.
        channels_last: keep weights, and so what convolutions give, in that memory format.
        threads: of each process on a CPU. Sums are taken in another order with more of them, so the bits differ.
    """

    accelerator: Accelerator = "auto"
    devices: int = 1
    precision: Precision = "32-true"
    compile: bool = False
    channels_last: bool = False
    threads: int = 1

    def resolved(self) -> Hardware:
        """The same with the accelerator that `auto` means on this machine."""
        found = "cuda" if torch.cuda.is_available() else "cpu"  # scores are summed in float64, which mps has not
        return replace(self, accelerator=found) if self.accelerator == "auto" else self


def hardware_at(
    scale: Scale,
    accelerator: Accelerator = "auto",
    devices: int = 1,
    precision: Precision | None = None,
    *,
    compile: bool = False,
    channels_last: bool | None = None,
) -> Hardware:
    """Hardware, and what a scale sets of it where nothing else is asked for.

    At desk scale that is bfloat16, if `has_bf16`, and images channels last. At others it is float32.

    >>> hardware_at("quick").precision, hardware_at("desk", precision="32-true").channels_last
    ('32-true', True)
    """
    asked = Hardware(accelerator, devices, compile=compile, channels_last=bool(channels_last))
    if scale == "desk":
        asked = replace(asked, channels_last=channels_last is not False)
        precision = precision or ("bf16-mixed" if has_bf16(asked) else "32-true")
    return replace(asked, precision=precision or "32-true")


def has_bf16(hardware: Hardware) -> bool:
    """Whether the processor, or the GPU where one is trained on, is faster in bfloat16 than in float32.

    A processor is if it has AMX. One that has only AVX-512's instructions for bfloat16 is tried: steps of WRN-16-2 were
    seen to take 0.45 seconds against 0.85 in float32, and 1.02 against 0.71 (torch 2.13, one thread).
    """
    if hardware.resolved().accelerator == "cuda":
        return torch.cuda.is_bf16_supported()
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(found.get("amx_bf16")) or (bool(found.get("avx512_bf16")) and _is_faster_in_bf16())


@cache
def _is_faster_in_bf16(rounds: int = 7) -> bool:
    """Whether forward and backward passes of a convolution are; of each kind the least of several turns counts."""
    x, weight = (
        torch.ones(shape).to(memory_format=torch.channels_last).requires_grad_()
        for shape in ((32, 32, 32, 32), (32, 32, 3, 3))
    )

    def seconds(*, bf16: bool) -> float:
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            y = conv2d(x, weight, padding=1)
        torch.autograd.grad(y.sum(), (x, weight))
        return time.perf_counter() - start

    turns = [(seconds(bf16=True), seconds(bf16=False)) for _ in range(rounds)]
    bf16, float32 = map(min, zip(*turns, strict=True))
    return bf16 < float32


def device_name(hardware: Hardware) -> str:
    """The model of the GPU, or else of the processor; its architecture where nothing tells the model."""
    if hardware.resolved().accelerator == "cuda":
        return torch.cuda.get_device_name()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
