"""The options that commands share, as the program's help shows them; nothing here imports torch."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from evenkeel.cli import completion
from evenkeel.io.downloads import SETS

Target = Annotated[
    str,
    typer.Argument(
        help="What makes the model: package.module:callable (a class, a function, or one that returns torch.load of "
        "a whole model), torchvision:NAME or timm:NAME; --arg gives it arguments.",
        metavar="TARGET",
        autocompletion=completion.targets,
    ),
]
DataName = Annotated[
    str | None,
    typer.Option(
        "--data",
        help=f"{', '.join(SETS)}, folder:PATH or package.module:callable; left out: predicted from --input or "
        "--example.",
        metavar="D",
        autocompletion=completion.data_sets,
    ),
]
Input = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        help="Shape of one input without the batch: 3x224x224; of another dtype: int64:128; of whole numbers from 0 to "
        "29999, such as tokens: int64:128:0-29999; by name: mask=bool:128. Repeat it for each input.",
        metavar="SHAPE",
    ),
]
Example = Annotated[
    str | None,
    typer.Option(
        "--example",
        help="package.module:callable, without arguments: returns what the model is called with: a tensor, a tuple of "
        "arguments, or a dict of them by name. In place of --input.",
        metavar="E",
    ),
]
Arg = Annotated[
    list[str] | None, typer.Option("--arg", help="Argument for TARGET, such as num_classes=10; repeatable.")
]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Where data sets are; else the variable EVENKEEL_DATA.")
]
Download = Annotated[bool, typer.Option("--download", help="Download a missing data set.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=2, help="Samples a batch, for data sets named here.")]
MaxBatches = Annotated[
    int | None, typer.Option("--max-batches", min=1, help="How many batches to use; all if left out.")
]
Mean = Annotated[
    str | None,
    typer.Option("--mean", help="What training took off images from 0 to 1, such as 0.485,0.456,0.406.", metavar="M"),
]
Std = Annotated[str | None, typer.Option("--std", help="What it then divided them by.", metavar="S")]
Scale = Annotated[
    str | None, typer.Option("--scale", help="What it multiplied them by first: 255 for pixels to 255.", metavar="K")
]
Transform = Annotated[
    str | None,
    typer.Option("--transform", help="package.module:callable, given batches of these.", metavar="T"),
]
Weights = Annotated[
    Path | None, typer.Option("--weights", help="Checkpoint: .safetensors, or a state dict that torch.load reads.")
]
ToRepair = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        help="Checkpoint to repair: .safetensors, or a state dict that torch.load reads; left out where TARGET "
        "makes a trained model, as one that returns torch.load of a whole one: OUT is then its state dict.",
    ),
]
References = Annotated[
    list[Path] | None,
    typer.Option(
        "--reference",
        help="Checkpoint that --weights was merged from, aligned; repeat it for each. Units of layers without stored "
        "statistics are rescaled to what interpolating those of the references gives.",
    ),
]
Shares = Annotated[
    list[float] | None,
    typer.Option("--share", help="Of a --reference in the merged weights, in order, of sum 1; equal if left out."),
]
Key = Annotated[
    str | None,
    typer.Option("--key", help="Which state dict of --weights, where it holds several, such as state_dict or ema."),
]
Forward = Annotated[
    str | None,
    typer.Option(
        "--forward",
        help="package.module:callable, called as f(model, batch): how a batch of --data is run.",
        metavar="F",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device", help="Where to compute: cpu, cuda, cuda:1, mps; if left out, where TARGET makes the model."
    ),
]
Codes = Annotated[
    list[str] | None,
    typer.Option(
        help="Codes, or beginnings such as EK2, with commas between them; repeatable.", autocompletion=completion.codes
    ),
]
GuidelineName = Annotated[
    str | None,
    typer.Option(
        "--guideline",
        help="hendrycks2016 (traps), li2018, chen2019 or kim2023; all if left out.",
        autocompletion=completion.guidelines,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Unsure(Enum):
    """What `evenkeel repair` does with norms that it is not sure of."""

    leave = "leave"
    write = "write"


class Matching(Enum):
    """What `evenkeel repair` keeps of train mode in eval mode."""

    variance = "variance"
    mean = "mean"


Match = Annotated[
    Matching | None,
    typer.Option(
        help="What eval mode keeps of train mode: variances of norms' outputs, or their means over dropout masks. "
        "If left out: what --held-out says, or else the mean for a regression, and the variance."
    ),
]


class Format(Enum):
    """How findings are printed."""

    text = "text"
    json = "json"
    sarif = "sarif"
