"""Training: one network by one recipe, to the same bits whether or not it was killed in between."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evenkeel.errors import EvenkeelError, brief
from evenkeel.init.initialization import init_
from evenkeel.io.datasets import Batches
from evenkeel.io.readers import LabelledImages
from evenkeel.model.evaluation import Score, evaluate
from evenkeel.output.files import atomic_write
from evenkeel.output.progress import Bar
from evenkeel.papers.lab.hardware import Hardware
from evenkeel.papers.lab.images import Images, augment, batches
from evenkeel.papers.lab.nets import build
from evenkeel.papers.lab.specs import Recipe, Training, digest, plain

History = list[dict[str, float]]


@dataclass(frozen=True)
class Trained:
    """A network as its training left it.

    Attributes:
        training: what was asked for.
        history: one dictionary of figures an epoch. `train_loss` and `train_error` are of the batches trained on, in
            train mode, while weights move; with the names of splits before them, scores in eval mode after the epoch.
        seconds: spent on it, over all starts.
        weights: state dicts by number of epochs done, the last one's among them.
    """

    training: Training
    history: History
    seconds: float
    weights: dict[int, dict[str, Tensor]]

    def model(self, images: Images, epoch: int | None = None) -> nn.Module:
        """The network on the images' device, in train mode, as it was after so many epochs; after all if None.

        Its weights are channels last if they were trained so.
        """
        net, weights = build_net(self.training, images), self.weights[max(self.weights) if epoch is None else epoch]
        if any(map(_is_channels_last, weights.values())):
            net.to(memory_format=torch.channels_last)  # type: ignore
        net.load_state_dict(weights)
        return net.to(images.mean.device).train()


def train(
    training: Training,
    seed: int,
    images: Images,
    *,
    folder: Path,
    hardware: Hardware | None = None,
    progress: bool = False,
    anew: str | None = None,
) -> Trained:
    """Train a network, from where an earlier process left it.

    After every epoch a checkpoint is written under a name made of all that decides the outcome; a training that is
    found half done goes on from there, one that is found done is read. Every epoch draws its order, its crops and
    its masks from a seed of its own, so that the result is the same to the bit.

    Args:
        training: what to train, on what, how.
        seed: of weights, order, crops and masks.
        images: those that `training.source` names.
        folder: where checkpoints are kept; made if there is none.
        hardware: on what; the first device found if None.
        progress: show a bar on the terminal.
        anew: a name of one's own, to train from the beginning: only what was begun under this name is gone on with.
            What an earlier training left is replaced when this one is complete, and not before.

    Raises:
        EvenkeelError: lightning-fabric is missing, or the checkpoint cannot be read or written.
    """
    hardware = hardware or Hardware()
    path = checkpoint_path(folder, training, seed, hardware)
    place = _place(path, training.recipe, anew)
    if not _is_done(found := _read(place, anew), training.recipe):
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f".{path.stem}.*.tmp"):  # by a process that was killed while it wrote
            left.unlink(missing_ok=True)
        # Bound, since Fabric walks through arguments and refuses frozen ones.
        _fabric(hardware).launch(
            partial(
                _train,
                training=training,
                seed=seed,
                images=images,
                path=place,
                hardware=hardware,
                progress=progress,
                anew=anew,
            )
        )
        found = _read(place, anew)
    if place == path:
        _successor(path).unlink(missing_ok=True)  # begun by a call that was stopped
    else:
        os.replace(place, path)
    return Trained(training, found["history"], found["seconds"], found["weights"])


def checkpoint_path(folder: Path, training: Training, seed: int, hardware: Hardware) -> Path:
    """Where the checkpoint of a training lies: its name holds all that decides the outcome."""
    return folder / f"{training.net.name}-{seed}-{digest(plain(training), seed, plain(hardware.resolved()))}.pt"


def epochs_done(folder: Path, training: Training, seed: int, hardware: Hardware) -> int:
    """How many epochs of a training lie in its checkpoint; a damaged one counts for none."""
    path = checkpoint_path(folder, training, seed, hardware)
    found = 0
    for place in (path, _successor(path)):
        with suppress(EvenkeelError):
            found = max(found, len(_read(place).get("history", ())))
    return found


def build_net(training: Training, images: Images) -> nn.Module:
    """The network for these images, not initialized in any particular way."""
    sizes = {"inputs": math.prod(images.shape)} if training.net.name == "mlp" else {"channels": images.shape[0]}
    return build(training.net.name, **{**sizes, "classes": images.classes, **training.net.arguments})


def initialize_(net: nn.Module, init: str, example: Tensor) -> None:
    """Initialize a network as `Training.init` says, from torch's own generator."""
    if init == "given":
        return
    if init not in ("xavier", "he"):
        init_(net, example, mode=init)  # type: ignore[arg-type]
        return
    for module in net.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            fill = nn.init.xavier_uniform_ if init == "xavier" else nn.init.kaiming_normal_
            fill(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def score(net: nn.Module, images: Images, split: LabelledImages, count: int | None = None, size: int = 500) -> Score:
    """Error and log loss in eval mode on the first images of a split; all of them if count is None."""
    return evaluate(net, batches_of(images, split, count, size))


def batches_of(images: Images, split: LabelledImages, count: int | None = None, size: int = 128) -> Batches:
    """A split's first images, standardized, in a fixed order; all of them if count is None."""
    count = min(count or len(split.labels), len(split.labels))
    labels = split.labels[:count]
    return Batches(
        split.images.__getitem__, labels, images.mean, images.deviation, count=count, batch_size=min(size, count)
    )


def _train(
    fabric: Any,
    training: Training,
    seed: int,
    images: Images,
    path: Path,
    hardware: Hardware,
    progress: bool,
    anew: str | None,
) -> None:
    """Train on one of the devices; the first one writes the checkpoints."""
    with deterministic(hardware.threads):
        _train_on(fabric, training, seed, images, path, hardware, progress, anew)


def _train_on(
    fabric: Any,
    training: Training,
    seed: int,
    images: Images,
    path: Path,
    hardware: Hardware,
    progress: bool,
    anew: str | None,
) -> None:
    recipe = training.recipe
    images = images.to(fabric.device)
    torch.manual_seed(seed)
    net = build_net(training, images)
    initialize_(net, training.init, images.standardize(images.train.images[:2]).cpu())
    net.to(fabric.device)
    if hardware.channels_last:
        net.to(memory_format=torch.channels_last)  # type: ignore
    optimizer = _optimizer(net, recipe)
    state = _read(path, anew)
    if state:
        net.load_state_dict(state["model"])
    model, wrapped = fabric.setup(torch.compile(net) if hardware.compile else net, optimizer)
    if state:
        optimizer.load_state_dict(state["optimizer"])
    history: History = state.get("history", [])
    weights: dict[int, dict[str, Tensor]] = state.get("weights", {})
    spent, began = state.get("seconds", 0.0), time.perf_counter()
    epochs = range(len(history), recipe.epochs)
    shown = progress and fabric.is_global_zero
    for epoch in Bar(epochs, f"training {training.net.name}") if shown else epochs:
        torch.manual_seed(_mixed(seed, epoch, fabric.global_rank))
        if recipe.reset_momentum and epoch and epoch % recipe.reset_momentum == 0:
            optimizer.state.clear()
        figures = _train_epoch(fabric, model, wrapped, images, recipe, seed, epoch)
        over = epoch + 1 == recipe.epochs or not math.isfinite(figures["train_loss"])  # what is no number stays none
        if fabric.is_global_zero:
            history.append({"epoch": epoch + 1, "lr": recipe.lr_at(epoch), **figures, **_watch(net, images, recipe)})
            for kept in recipe.kept():
                if kept == epoch + 1 or (over and kept > epoch):
                    weights[kept] = _copied(net)
            state = {"history": history, "weights": weights, "seconds": spent + time.perf_counter() - began}
            if anew is not None:
                state["anew"] = anew
            if not over:
                state |= {"model": net.state_dict(), "optimizer": optimizer.state_dict()}
            with atomic_write(path) as temporary:
                torch.save(state, temporary)
        fabric.barrier()
        if over:
            break


def _train_epoch(
    fabric: Any, model: nn.Module, optimizer: Any, images: Images, recipe: Recipe, seed: int, epoch: int
) -> dict[str, float]:
    """One pass over the training images; each device takes its share of every batch."""
    generator = torch.Generator().manual_seed(_mixed(seed, epoch))  # of the order, the same on every device
    crops = torch.Generator(fabric.device).manual_seed(_mixed(seed, epoch))
    model.train()
    loss_sum = torch.zeros((), device=fabric.device, dtype=torch.float64)
    wrong, count = torch.zeros((), device=fabric.device, dtype=torch.int64), 0
    orders = list(batches(len(images.train.labels), recipe.batch, generator))
    for step, order in enumerate(orders):
        _set_rate(optimizer.optimizer, recipe.lr_at(epoch + step / len(orders)))
        chosen = order[: len(order) // fabric.world_size * fabric.world_size].to(fabric.device)  # shares of one size
        if not len(chosen):
            continue
        inputs = images.standardize(images.train.images[chosen])
        if recipe.augment:
            inputs = augment(inputs, crops, pad=images.shape[-1] // 8)
        mine = slice(fabric.global_rank, None, fabric.world_size)
        labels = images.train.labels[chosen][mine]
        optimizer.zero_grad()
        logits = model(inputs[mine])
        loss = F.cross_entropy(logits, labels)
        fabric.backward(loss)
        optimizer.step()
        loss_sum += loss.detach().double() * len(labels)
        wrong += (logits.detach().argmax(1) != labels).sum()
        count += len(labels)
    sums = fabric.all_reduce(torch.stack([loss_sum, wrong.double(), loss_sum.new_tensor(count)]), reduce_op="sum")
    return {"train_loss": float(sums[0] / sums[2]), "train_error": float(sums[1] / sums[2])}


def _watch(net: nn.Module, images: Images, recipe: Recipe) -> dict[str, float]:
    """Scores in eval mode after an epoch."""
    splits = {"train": images.train, "validation": images.validation, "test": images.test}
    if images.validation is not None:
        del splits["test"]  # what is tuned must not be seen
    found: dict[str, float] = {}
    for name, split in splits.items():
        if recipe.watched and split is not None:
            result = score(net, images, split, recipe.watched)
            assert result.error is not None
            found |= {f"{name}_eval_loss": result.loss, f"{name}_eval_error": result.error}
    return found


def _optimizer(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    return torch.optim.SGD(
        parameters,
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.optimizer == "nesterov",
        fused=True,
    )


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


@contextmanager
def deterministic(threads: int) -> Generator[None]:
    """Compute to the same bits every time on so many threads of a CPU; on a GPU, as far as cuDNN's kernels go."""
    found = torch.get_num_threads(), torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.set_num_threads(threads)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.set_num_threads(found[0])
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = found[1:]


def device_of(hardware: Hardware) -> torch.device:
    """The device to measure on: the first of those to train on."""
    return _fabric(hardware).device


def _fabric(hardware: Hardware) -> Any:
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise EvenkeelError('training needs lightning-fabric: pip install "evenkeel[papers]"') from error
    return Fabric(
        accelerator=hardware.resolved().accelerator,
        devices=hardware.devices,
        precision=hardware.precision,  # type: ignore[arg-type]
        strategy="auto" if hardware.devices == 1 else "ddp_spawn",
    )


def _successor(path: Path) -> Path:
    """Where a training is kept that is to take the place of an earlier one's checkpoint once it is complete."""
    return path.with_suffix(".new.pt")


def _place(path: Path, recipe: Recipe, anew: str | None) -> Path:
    """Where to train: at the path, or beside what an earlier training left there; with no name, where most is done."""
    if anew is not None:
        return _successor(path) if path.exists() and not _read(path, anew) else path
    found = _read(path)
    if _is_done(found, recipe):
        return path
    return max(path, _successor(path), key=lambda place: len(_read(place).get("history", ())))


def _read(path: Path, anew: str | None = None) -> dict[str, Any]:
    """What a checkpoint holds; nothing if there is none, or if it is damaged or another's and a name is given."""
    if not path.exists():
        return {}
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if anew is not None:
            return {}
        raise EvenkeelError(f"{path} cannot be read ({brief(error)}): remove it to train anew") from error
    return state if anew is None or state.get("anew") == anew else {}


def _is_done(state: dict[str, Any], recipe: Recipe) -> bool:
    return recipe.epochs in state.get("weights", {})


def _is_channels_last(weight: Tensor) -> bool:
    is_an_images = weight.ndim == 4 and not weight.is_contiguous()
    return is_an_images and weight.is_contiguous(memory_format=torch.channels_last)


def _copied(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in net.state_dict().items()}


def _mixed(*numbers: int) -> int:
    """One seed made of several numbers."""
    return int(digest(*numbers), 16) % 2**63
