"""Speech quality: NISQA, a CNN over pieces of a mel spectrogram, self-attention, and pooling to an opinion score.

Files of --folder:

- `nisqa_mos_only.tar`: github.com/gabrielmittag/NISQA, weights (CC BY-NC-SA 4.0; the code is MIT).
- `librispeech_test-other/`: github.com/resemble-ai/Resemblyzer, audio_data: clips of LibriSpeech (CC BY 4.0). They are
  FLAC: soundfile must be installed.

Its training code drops whole channels, p = 0.2, before convolutions 3 to 6, and p = 0.1 in the attention. No opinions
come with the clips: they are made worse step by step, and a net is right where it puts the better of two above.

Clips are cut to one length here, so that no padding has to be masked.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d, relu, softmax

from benchmarks.published.study import Batch, Figure, Study, Task, outputs, required
from evenkeel.errors import EvenkeelError

RATE, SECONDS, CLIPS, MELS, FRAMES, STEP = 48_000, 2, 16, 48, 15, 4
WINDOW, HOP, BINS, HIGHEST = 960, 480, 4096, 20_000
POOLS = ((24, 7), (12, 5), (6, 3))
KINDS = ("noise", "clipping", "lowpass", "loss")
LEVELS = {"noise": (30, 15, 0), "clipping": (0.3, 0.1, 0.03), "lowpass": (4000, 2000, 1000), "loss": (0.05, 0.15, 0.4)}


class SegmentCNN(nn.Module):
    """Pieces of a spectrogram (batch, 1, 48, 15) to 384 features."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 16, 32, 64, 64, 64, 64)
        for k in range(6):
            padding = (1, 1) if k < 5 else (1, 0)
            setattr(self, f"conv{k + 1}", nn.Conv2d(widths[k], widths[k + 1], 3, padding=padding))
            setattr(self, f"bn{k + 1}", nn.BatchNorm2d(widths[k + 1]))
        self.dropout = nn.Dropout2d(0.2)

    def step(self, k: int, x: Tensor) -> Tensor:
        return relu(getattr(self, f"bn{k}")(getattr(self, f"conv{k}")(x)))

    def forward(self, x: Tensor) -> Tensor:
        x = adaptive_max_pool2d(self.step(1, x), POOLS[0])
        x = self.dropout(adaptive_max_pool2d(self.step(2, x), POOLS[1]))
        x = self.dropout(self.step(3, x))
        x = self.dropout(adaptive_max_pool2d(self.step(4, x), POOLS[2]))
        return self.step(6, self.dropout(self.step(5, x))).flatten(1)


class AttentionLayer(nn.Module):
    """A transformer's layer, time first, norms behind."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(64, 1, dropout=0.1)
        self.linear1, self.linear2 = nn.Linear(64, 64), nn.Linear(64, 64)
        self.norm1, self.norm2 = nn.LayerNorm(64), nn.LayerNorm(64)
        self.dropout, self.dropout1, self.dropout2 = nn.Dropout(0.1), nn.Dropout(0.1), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.dropout1(self.self_attn(x, x, x)[0]))
        return self.norm2(x + self.dropout2(self.linear2(self.dropout(relu(self.linear1(x))))))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm1 = nn.Linear(384, 64), nn.LayerNorm(64)
        self.layers = nn.ModuleList(AttentionLayer() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.linear(x).transpose(0, 1))
        for layer in self.layers:
            x = layer(x)
        return x.transpose(0, 1)


class AttentionPool(nn.Module):
    """A weighted mean over time, to one number."""

    def __init__(self) -> None:
        super().__init__()
        self.linear1, self.linear2, self.linear3 = nn.Linear(64, 128), nn.Linear(128, 1), nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = softmax(self.linear2(relu(self.linear1(x))), 1)
        return self.linear3((weight * x).sum(1))[:, 0]


class Nisqa(nn.Module):
    """Clips (batch, pieces, 1, 48, 15) of one length to opinion scores."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn, self.time_dependency, self.pool = SegmentCNN(), Attention(), AttentionPool()

    def forward(self, x: Tensor) -> Tensor:
        pieces = self.cnn(x.flatten(0, 1))
        return self.pool(self.time_dependency(pieces.unflatten(0, x.shape[:2])))


def load(folder: Path) -> Task:
    net = Nisqa()
    path = required(folder, "nisqa_mos_only.tar", "github.com/gabrielmittag/NISQA, weights")
    # The file holds its training options beside the weights, as plain values and numpy numbers.
    with torch.serialization.safe_globals(numpy_types()):
        weights = torch.load(path, map_location="cpu", weights_only=True)["model_state_dict"]
    net.load_state_dict({name.replace(".model.", "."): value for name, value in weights.items()})
    clips = read_clips(required(folder, "librispeech_test-other", "github.com/resemble-ai/Resemblyzer, audio_data"))
    generator = np.random.default_rng(0)
    versions = [[clip, *(worse(clip, k, n, generator) for k in KINDS for n in LEVELS[k])] for clip in clips]
    pieces = torch.stack([torch.stack([segments(version) for version in clip]) for clip in versions])

    def inputs(units: Tensor) -> Batch:
        return (pieces[units].flatten(0, 1),)

    def score(candidate: nn.Module, units: Tensor) -> dict[str, float]:
        opinions = outputs(candidate, inputs(units), 8).unflatten(0, (len(units), -1))
        ladders = torch.stack([opinions[:, [0, 1 + 3 * k, 2 + 3 * k, 3 + 3 * k]] for k in range(len(KINDS))])
        right = [ladders[..., a] > ladders[..., b] for a in range(4) for b in range(a + 1, 4)]
        return {
            "pairs": 100 * torch.stack(right).float().mean().item(),
            "clean": opinions[:, 0].mean().item(),
        }

    return Task(net, len(clips), inputs, score, 16)


def numpy_types() -> list[Any]:
    """What the file's training options are made of, beside plain values."""
    return [np.dtype, np.dtypes.Float64DType, importlib.import_module("numpy._core.multiarray").scalar]


def read_clips(folder: Path) -> list[np.ndarray[Any, Any]]:
    """The first two seconds of some clips, one a speaker as far as there are, at 48 kHz."""
    from scipy.signal import resample_poly

    if importlib.util.find_spec("soundfile") is None:
        raise EvenkeelError(f"the clips in {folder} are FLAC: install soundfile to read them")
    soundfile = importlib.import_module("soundfile")
    speakers = [sorted(speaker.rglob("*.flac")) for speaker in sorted(folder.iterdir()) if speaker.is_dir()]
    paths = [files[n] for n in range(CLIPS) for files in speakers if n < len(files)]
    clips: list[np.ndarray[Any, Any]] = []
    for path in paths:
        wave, rate = soundfile.read(path)
        if len(wave) >= SECONDS * rate and len(clips) < CLIPS:
            wave = resample_poly(wave[: SECONDS * rate], RATE, rate)
            clips.append(wave / np.abs(wave).max() * 0.7)
    if len(clips) < CLIPS:
        raise EvenkeelError(f"{folder} holds {len(clips)} clips of {SECONDS} s or more: {CLIPS} are needed")
    return clips


def worse(wave: Any, kind: str, level: float, generator: np.random.Generator) -> Any:
    """A clip with noise, clipped, without high frequencies, or with 20 ms lost here and there."""
    from scipy.signal import butter, sosfilt

    if kind == "noise":
        strength = np.sqrt(np.mean(wave**2)) * 10 ** (-level / 20)
        return wave + strength * generator.standard_normal(len(wave))
    if kind == "clipping":
        return np.clip(wave, -level, level) / level * 0.7
    if kind == "lowpass":
        return sosfilt(butter(8, level, fs=RATE, output="sos"), wave)
    lost = generator.random(math.ceil(len(wave) / 960)) < level
    return np.where(np.repeat(lost, 960)[: len(wave)], 0, wave)


def segments(wave: Any) -> Tensor:
    """The mel spectrogram in dB, in pieces of 15 frames, every fourth."""
    signal = torch.from_numpy(np.ascontiguousarray(wave)).float()
    spectrum = torch.stft(signal, BINS, HOP, WINDOW, torch.hann_window(WINDOW), return_complex=True).abs()
    mel = mel_filters() @ spectrum
    decibels = 20 * mel.clamp(min=1e-4).log10()
    return decibels.clamp(min=decibels.max() - 80).unfold(1, FRAMES, STEP).permute(1, 0, 2)[:, None]


def mel_filters() -> Tensor:
    """Triangles of equal area on Slaney's mel scale: linear below 1 kHz, logarithmic above."""
    step = math.log(6.4) / 27
    top = 15 + math.log(HIGHEST / 1000) / step
    mels = torch.linspace(0, top, MELS + 2, dtype=torch.float64)
    edges = torch.where(mels < 15, mels * 200 / 3, 1000 * torch.exp(step * (mels - 15)))
    bins = torch.linspace(0, RATE / 2, BINS // 2 + 1, dtype=torch.float64)
    low, peak, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = torch.minimum((bins - low) / (peak - low), (high - bins) / (high - peak)).clamp(min=0)
    return (triangles * 2 / (high - low)).float()


def example() -> Batch:
    return (torch.zeros(2, 6, 1, MELS, FRAMES),)


STUDY = Study(
    "Speech quality: NISQA",
    Nisqa,
    example,
    load,
    {"pairs": Figure("pairs in order, %", 1), "clean": Figure("opinion of clean speech", 0, 2)},
    splits=4,
    passes=2,
)
