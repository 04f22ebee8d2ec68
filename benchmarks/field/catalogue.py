"""All models of the field report, by domain."""

from __future__ import annotations

from benchmarks.field import audio, biology, points, tables, vision
from benchmarks.field.model import FieldModel

DOMAINS: dict[str, tuple[FieldModel, ...]] = {
    "vision": vision.MODELS,
    "points": points.MODELS,
    "audio": audio.MODELS,
    "biology": biology.MODELS,
    "tables": tables.MODELS,
}
TITLES = {
    "vision": "Vision and segmentation",
    "points": "Points, poses, skeletons, traffic",
    "audio": "Audio and speech",
    "biology": "EEG, ECG, cells, genomes",
    "tables": "Graphs, tables, recommenders, time series",
}


def find(name: str) -> FieldModel:
    """The model of that name."""
    return next(model for models in DOMAINS.values() for model in models if model.name == name)
