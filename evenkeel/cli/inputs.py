"""From options to what commands work on: the model, what it is called with, data, and functions by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evenkeel.errors import EvenkeelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from evenkeel.io.datasets import Data

NEEDS_INPUT = (
    "without --data, --input must give the shape of one input, such as 3x224x224 or int64:128:0-29999, "
    "or --example what returns what the model is called with"
)
LINT_NEEDS_INPUT = (
    "--input must give the shape of one input, such as 3x224x224 or int64:128:0-29999, or --example what returns what "
    "the model is called with"
)


@dataclass(frozen=True)
class DataOptions:
    """How data sets are loaded, the same for --data and --held-out."""

    inputs: list[str] | None
    data_dir: Path | None
    download: bool
    batch_size: int
    mean: str | None
    std: str | None
    scale: str | None
    transform: str | None

    @property
    def preprocessing(self) -> dict[str, str | None]:
        """What training did to images, by the options that say so."""
        return {"--mean": self.mean, "--std": self.std, "--scale": self.scale, "--transform": self.transform}

    def load(self, name: str) -> Data:
        """The data set of that name."""
        from evenkeel.io.datasets import load_data
        from evenkeel.io.examples import parse_input
        from evenkeel.io.preprocessing import parse_preprocessing

        specs = [parse_input(text) for text in self.inputs or []]
        return load_data(
            name,
            data_dir=self.data_dir,
            shape=specs[0].shape if len(specs) == 1 and not specs[0].name else None,
            batch_size=self.batch_size,
            download=self.download,
            preprocessing=parse_preprocessing(*self.preprocessing.values()),
        )


def load_model(target: str, arg: list[str] | None, device: str | None = None) -> nn.Module:
    """The model that TARGET names, on the device asked for; initial weights are the same in every run."""
    from evenkeel.io.targets import load_target, parse_arguments
    from evenkeel.model.restoring import seed_all

    seed_all(0)
    model = load_target(target, parse_arguments(arg or []))
    return model if device is None else moved(model, device)


def load_weighted(
    target: str, arg: list[str] | None, weights: Path | None, key: str | None, device: str | None
) -> nn.Module:
    """The same with the weights of a checkpoint, if there is one."""
    from evenkeel.io.checkpoints import Checkpoint

    model = load_model(target, arg)
    if weights is not None:
        Checkpoint.read(weights, key=key).apply_(model)
    elif key is not None:
        raise EvenkeelError(f"--key {key} says which state dict of --weights, and there is no --weights")
    return model if device is None else moved(model, device)


def moved(model: nn.Module, device: str) -> nn.Module:
    """The model on a device.

    Raises:
        EvenkeelError: there is no such device here, or the model does not fit there.
    """
    import torch

    from evenkeel.errors import brief, is_out_of_memory

    found = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    found += ["mps"] if torch.backends.mps.is_available() else []
    try:
        if torch.device(device).type == "meta":
            raise ValueError("it holds no values")
        return model.to(torch.device(device))
    except Exception as error:
        reason = f"{brief(error)}: devices here" if is_out_of_memory(error) else "there is no such device: devices here"
        raise EvenkeelError(f"--device {device}: {reason}: {', '.join(found)}") from error


def is_trained(model: nn.Module) -> bool:
    """Whether any of its norms was ever updated."""
    from evenkeel.model.norms import norms_of
    from evenkeel.statistics.stored_values import is_untrained

    return not all(map(is_untrained, norms_of(model).values()))


def trained(model: nn.Module) -> nn.Module:
    """The model, if it was trained.

    Raises:
        EvenkeelError: none of its norms was ever updated.
    """
    from evenkeel.model.norms import norms_of

    if not is_trained(model):
        raise EvenkeelError(
            f"none of the {len(norms_of(model))} norms was ever updated: name the checkpoint to repair by --weights, "
            "or a TARGET that makes a trained model"
        )
    return model


def load_example(model: nn.Module, inputs: list[str] | None, example: str | None, missing: str) -> Any:
    """What the model is called with; `missing` is the error if nothing says so."""
    from evenkeel.io import examples

    if example is not None:
        if inputs:
            raise EvenkeelError("--example and --input both say what the model is called with: give one of them")
        return examples.load_example(example)
    if not inputs:
        raise EvenkeelError(missing)
    return examples.example_of([examples.parse_input(text) for text in inputs], model)


def load_function(option: str, name: str | None) -> Callable[..., Any] | None:
    """What `package.module:callable` names, for an option; None if it was not given."""
    if name is None:
        return None
    from evenkeel.io.resolving import resolve

    try:
        found = resolve(name)
    except EvenkeelError as error:
        raise EvenkeelError(f"{option} {error}") from error
    if not callable(found):
        raise EvenkeelError(f"{option} {name} is of type {type(found).__name__}: name what can be called")
    return found


def codes_in(options: list[str] | None) -> list[str]:
    """The codes of rules that options hold, with commas between them."""
    return [code for option in options or [] for code in option.split(",")]


def require_name(option: str, path: Path) -> None:
    """Refuse - for a file: what commands print would be mixed with it on standard output.

    Raises:
        EvenkeelError: the path is -.
    """
    if str(path) == "-":
        raise EvenkeelError(f"{option} - is no file, and standard output holds what is printed: name a file")


def refuse_unused(options: dict[str, Any], *, without: str = "--data") -> None:
    """Refuse options that say how to use data where there are none."""
    for name, value in options.items():
        if value is not None:
            raise EvenkeelError(f"{name} says how to use data, and there is no {without}")


def parse_prior(text: str | None) -> float | Literal["auto"]:
    """How many samples the stored statistics count for."""
    if text is None or text == "auto":
        return text or 0
    try:
        return float(text)
    except ValueError:
        raise EvenkeelError(f"--prior is a number of samples, or auto, not {text!r}") from None
