"""docs/integrations/recipes.md: every recipe runs as it is, in at most ten lines, and leaves statistics that hold."""

import os
import re
import sys
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import ROOT, SUPPORT
from smallnet import SmallNet, samples, worst_shift
from torch.ao import quantization
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import evenkeel as ek

PAGE = (Path(__file__).parents[1] / "docs" / "integrations" / "recipes.md").read_text(encoding="utf-8")
RECIPES = dict(re.findall(r"^## (.+?)\n.*?^```python\n(.*?)^```", PAGE, flags=re.M | re.S))
X, Y = samples(96)


class Net(SmallNet):
    """Takes labels and gives a loss where a Trainer asks for it."""

    def forward(self, x, labels=None):
        logits = super().forward(x)
        return logits if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


def train(model, optimizer, loader, after_step=lambda: None):
    model.train()
    for x, y in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        after_step()


def lightning(names, folder):
    from lightning.pytorch import LightningModule

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = names["model"]

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, index):
            return F.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.2)

    return {"module": Module()}


def hugging_face(names, folder):
    from transformers import TrainingArguments

    options = {"num_train_epochs": 1, "report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    return {
        "arguments": TrainingArguments(output_dir=str(folder), **options),
        "dataset": [{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)],
    }


def accelerate(names, folder):
    from accelerate import Accelerator

    return {"accelerator": Accelerator(cpu=True)}


def torchrun(names, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=0, world_size=1)
    return {}


def read(shard):
    """The batches of a tar file."""
    with tarfile.open(shard) as tar:
        for member in tar:
            yield torch.load(tar.extractfile(member), weights_only=True)


def shards(names, folder):
    paths = [str(folder / f"{letter}.tar") for letter in "abc"]
    for path, batches in zip(paths, X.split(32), strict=True):
        with tarfile.open(path, "w") as tar:
            for number, batch in enumerate(batches.split(8)):
                torch.save(batch, folder / f"{number}.pt")
                tar.add(folder / f"{number}.pt", f"{number}.pt")
    return {"shards": paths, "mine": paths, "read": read}


def on_ray(names, folder):
    ray = pytest.importorskip("ray")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(SUPPORT)])  # where workers find the net and `read`
    variables = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    ray.init("local", num_cpus=1, include_dashboard=False, runtime_env={"env_vars": variables})
    return shards(names, folder)


def timm(names, folder):
    from timm.utils import ModelEmaV3

    return {
        "model_ema": ModelEmaV3(names["model"]),
        "loader_train": names["loader"],
        "amp_autocast": partial(torch.autocast, "cpu", torch.bfloat16, enabled=False),
    }


def schedule_free(names, folder):
    from schedulefree import SGDScheduleFree

    optimizer = SGDScheduleFree(names["model"].parameters(), lr=0.2)
    optimizer.train()
    return {"schedule_free": optimizer, "path": folder / "weights.pt"}


def checkpoint(names, folder):
    for _ in range(20):  # till nothing is left of the statistics that norms begin with
        for x, _ in names["loader"]:
            names["model"](x)
    return {"example": torch.zeros(1, 4), "before": worst_shift(names["model"], X)}


def quantized(names, folder):
    model = quantization.fuse_modules_qat(names["model"].train(), [["0", "1"], ["4", "5"]])
    model.qconfig = quantization.get_default_qat_qconfig("x86")
    model = quantization.prepare_qat(model)
    run(model, names["loader"])
    return {"model": model, "run": run}


def run(model, loader):
    with torch.no_grad():
        for x, _ in loader:
            model(x)


def arriving(names, folder):
    names["model"].eval()
    kept = []
    return {"stream": (3 * X).split(32), "kept": kept, "keep": kept.append, "before": names["model"].state_dict()}


def sites(names, folder):
    batches = [{"x": X[::2], "site": ["north"] * 48}, {"x": 3 * X[1::2], "site": "south"}]
    return {"sites": batches, "path": folder / "sites.pt", "x": X[::2]}


def merging(names, folder):
    nets = [torch.nn.Sequential(Net(), torch.nn.ReLU(), torch.nn.Linear(8, 8)) for _ in range(2)]
    for net in nets:
        train(net, torch.optim.SGD(net.parameters(), 0.2), names["loader"])
        net.eval()
    return dict(zip(("model", "other"), nets, strict=True))


def nothing(names, folder):
    return {}


# what a recipe takes for granted beside `world`, and the names of what it leaves with statistics that hold
PLACES: dict[str, tuple[Callable[..., dict[str, Any]], tuple[str, ...]]] = {
    "Lightning": (lightning, ("model",)),
    "Hugging Face Trainer": (hugging_face, ("model",)),
    "accelerate": (accelerate, ("model",)),
    "torchrun and DistributedDataParallel": (torchrun, ("model", "replica")),
    "Shards without a process group": (shards, ()),
    "Ray": (on_ray, ()),
    "timm's train script": (timm, ("model",)),
    "An exponential moving average of the weights": (nothing, ("averaged",)),
    "Stochastic weight averaging": (nothing, ("averaged",)),
    "Schedule-free optimizers": (schedule_free, ()),
    "Merged models": (merging, ("merged",)),
    "Did it help?": (lambda names, _: {"validation": names["loader"]}, ()),
    "Log the shift while training": (nothing, ()),
    "A quiet end": (lambda *_: {"epochs": 25, "steps": 150}, ()),
    "A quiet end in Lightning": (lightning, ()),
    "Norms frozen for the last epoch": (nothing, ()),
    "Another domain": (lambda *_: {"new_domain": [3 * X]}, ()),
    "Pruning": (nothing, ("model",)),
    "Quantization-aware training": (quantized, ()),
    "Batches of another domain, as they come": (arriving, ()),
    "Several sites, subjects or domains": (sites, ()),
    "A checkpoint without its data": (checkpoint, ()),
    "Dropout where a norm follows": (nothing, ()),
}


def is_taken_back(names, folder):
    assert worst_shift(names["model"], X) > 1.1, "to train on"
    names["model"].load_state_dict(torch.load(names["path"]))
    assert worst_shift(names["model"], X) < 1 + 1e-5


def is_averaged(names, folder):
    assert worst_shift(names["model_ema"].module, X) < 1 + 1e-5


def is_kept_if_better(names, folder):
    assert names["done"].kept is (names["done"].after.log_loss < names["done"].before.log_loss)


def is_rounded(names, folder):
    assert worst_shift(names["model"], X) < 1.01
    rounded, plain = (done[1].after for done in (names["done"], ek.reestimate_(names["given"], [X])))
    assert rounded == pytest.approx(plain, rel=0.15)


def is_corrected(names, folder):
    assert names["done"][1].ratio < 0.9 and worst_shift(names["model"], X) < names["before"]


def is_placed(names, folder):
    assert names["noise"].p == pytest.approx(0.25 / 3.25) and names["layer"].dropout.p == 0.05


def is_logged(names, folder):
    assert ek.ShiftHistory.read("shift.csv").steps == (2, 4, 6) and (folder / "shift.svg").stat().st_size > 1000


def is_quiet(names, folder):
    assert names["schedule"].now == 150 and names["model"][3].p == 0.5
    assert worst_shift(names["model"], X) < 1.1, "statistics have forgotten dropout, and follow the weights"


def is_quiet_and_frozen(names, folder):
    (frozen,) = [callback.frozen for callback in names["trainer"].callbacks if hasattr(callback, "frozen")]
    assert frozen.reestimation.samples == 96 and names["model"].train()[1].training
    assert names["quiet"].schedule.now == 12 and names["model"][3].p == 0.5


def was_frozen(names, folder):
    assert names["frozen"].reestimation.samples == 96 and names["model"].train()[1].training


def is_blended(names, folder):
    assert 1.1 < ek.variance_shift(names["model"], [3 * X]).worst < 9 * 2


def is_as_before(names, folder):
    assert [len(outputs) for outputs in names["kept"]] == [32] * 4
    assert torch.allclose(names["kept"][2], names["kept"][3])
    assert not names["model"].training and worst_shift(names["model"], X) > 1.1


def is_of_a_site(names, folder):
    with ek.in_domain(names["model"], "north"):
        assert torch.equal(names["outputs"], names["model"](X[::2]))
        assert worst_shift(names["model"], X[::2]) < 1 + 1e-5


def is_between(names, folder):
    merged, *ends = (names[name](X).detach().std(0) for name in ("merged", "model", "other"))
    torch.testing.assert_close(merged, sum(ends) / 2, rtol=1e-4, atol=1e-5)


def is_near(names, folder):
    assert worst_shift(names["model"], X) < 1.05 and names["done"].samples == len(X)


def is_settled(names, folder):
    assert worst_shift(names["model"], X) < 1.01 and names["done"].is_settled


# what holds afterwards, beside that
CHECKS: dict[str, Callable[..., object]] = {
    "timm's train script": is_averaged,
    "Schedule-free optimizers": is_taken_back,
    "Merged models": is_between,
    "Shards without a process group": is_near,
    "Ray": is_settled,
    "Did it help?": is_kept_if_better,
    "Log the shift while training": is_logged,
    "A quiet end": is_quiet,
    "A quiet end in Lightning": is_quiet_and_frozen,
    "Norms frozen for the last epoch": was_frozen,
    "Another domain": is_blended,
    "Quantization-aware training": is_rounded,
    "Batches of another domain, as they come": is_as_before,
    "Several sites, subjects or domains": is_of_a_site,
    "A checkpoint without its data": is_corrected,
    "Dropout where a norm follows": is_placed,
}


@pytest.fixture
def world():
    """The names that every recipe takes for granted."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.2)
    loader = DataLoader(TensorDataset(X, Y), batch_size=16)
    train(model, optimizer, loader)
    yield {"model": model, "optimizer": optimizer, "loader": loader, "train": train, "torch": torch}
    if (ray := sys.modules.get("ray")) is not None:
        ray.shutdown()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:.*(many workers|reduce_range|torch.ao.quantization|tensorboardX|LeafSpec|logging interval)"
)
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_does_what_it_says(name, world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else workers wait for whatever else runs
    assert worst_shift(world["model"], X) > 1.1
    prepare, repaired = PLACES[name]
    exec(RECIPES[name], names := world | {"given": world["model"]} | prepare(world, tmp_path))
    for model in repaired:
        assert worst_shift(names[model], X) < 1 + 1e-5
    CHECKS.get(name, nothing)(names, tmp_path)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_ten_lines_at_most(name):
    assert sum(bool(line.strip()) for line in RECIPES[name].splitlines()) <= 10


def test_every_recipe_of_the_page_is_tested():
    assert list(RECIPES) == list(PLACES) == re.findall(r"^## (.+)$", PAGE, flags=re.M)
