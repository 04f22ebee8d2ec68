"""The networks of the papers, by name, with dropout's place as an argument."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from evenkeel.errors import EvenkeelError
from evenkeel.papers.lab.nets.densenets import densenet
from evenkeel.papers.lab.nets.mlps import mlp
from evenkeel.papers.lab.nets.noises import Noise
from evenkeel.papers.lab.nets.resnets import preresnet, resnet, resnext, wrn
from evenkeel.papers.lab.nets.vggs import vgg

__all__ = ["NETS", "Noise", "build"]

NETS: dict[str, Callable[..., nn.Sequential]] = {
    "mlp": mlp,
    "vgg": vgg,
    "resnet": resnet,
    "preresnet": preresnet,
    "resnext": resnext,
    "wrn": wrn,
    "densenet": densenet,
}


def build(name: str, **arguments: Any) -> nn.Sequential:
    """Build a net by its name in `NETS`, from arguments that JSON can hold.

    Args:
        name: such as "preresnet".
        arguments: of the net's function, by name. Its noise may be a list of kind and amount.

    Raises:
        EvenkeelError: there is no such net, or it does not take such arguments.

    >>> net = build("preresnet", depth=8, width=4, block="basic", places="b", noise=["Dropout", 0.5])
    >>> net.stage1[0].branch.drop_conv2
    Dropout(p=0.5, inplace=False)
    """
    if name not in NETS:
        raise EvenkeelError(f"there is no net {name!r}: give one of {', '.join(NETS)}")
    parameters = inspect.signature(NETS[name]).parameters
    unknown = [argument for argument in arguments if argument not in parameters]
    if unknown:
        raise EvenkeelError(f"{name} has no argument {unknown[0]!r}: give some of {', '.join(parameters)}")
    missing = [p.name for p in parameters.values() if p.default is p.empty and p.name not in arguments]
    if missing:
        raise EvenkeelError(f"{name} was given no {missing[0]}: give one, such as {missing[0]}=20")
    noise = arguments.get("noise")
    if isinstance(noise, list | tuple):
        if len(noise) != 2:  # type: ignore[arg-type]
            raise EvenkeelError(f"noise is {noise!r}: give its kind and its amount, such as ['Dropout', 0.5]")
        arguments["noise"] = Noise(*noise)
    return NETS[name](**arguments)
