"""What every process runs in test_sharding.py: each verb on models that they hold together."""

import warnings

import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import evenkeel as ek


def build():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(9, 9), nn.ReLU(), nn.Dropout(0.3))
    return nn.Sequential(
        nn.Linear(8, 9), nn.Dropout(0.4), nn.BatchNorm1d(9, momentum=0.9), nn.ReLU(), block, nn.Linear(9, 3)
    )


def by_layers(model):
    for module in model:
        if any(True for _ in module.parameters()):
            fully_shard(module)
    return fully_shard(model)


def in_groups(model):
    fully_shard([model[4], model[5]])
    return fully_shard(model)


def kept_whole(model):
    return fully_shard(model, reshard_after_forward=False)


def compiled(model):
    return torch.compile(by_layers(model), backend="eager")


MODELS = {
    "whole": fully_shard,
    "by layers": by_layers,
    "in groups": in_groups,
    "kept whole": kept_whole,
    "compiled": compiled,
    "DDP": DistributedDataParallel,
}

VERBS = {
    "trace": lambda model, x: ek.trace(model, x[:4]),
    "variance_shift": lambda model, x: ek.variance_shift(model, [x]),
    "predict_shift": lambda model, x: ek.predict_shift(model, x[:4]),
    "lint": lambda model, x: ek.lint(model, x[:4]),
    "fix": lambda model, x: ek.fix(model, x[:4], guideline="li2018"),
    "check_signals": ek.check_signals,
    "correct_": lambda model, x: ek.correct_(model, x[:4]),
    "reestimate_": lambda model, x: ek.reestimate_(model, [x]),
    "init_": lambda model, x: ek.init_(model, x[:4]),
}
WRITING = ("correct_", "reestimate_", "init_")


def whole(model):
    """All parameters, as one process would hold them, and all buffers."""
    for module in model.modules():
        if hasattr(type(module), "reshard"):
            module.reshard()
    state = (*model.named_parameters(), *model.named_buffers())
    return {name: (t.full_tensor() if hasattr(t, "full_tensor") else t).detach().clone() for name, t in state}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def is_sharded(model):
    return all(hasattr(parameter, "device_mesh") for parameter in model.parameters())


def use(model, x):
    """Train and run it, so that it is known to work."""
    for training in (True, False, True):
        model.train(training)(x).square().sum().backward()
    model.zero_grad()
    with torch.inference_mode():
        assert model(x).isfinite().all()


def examine(kind, verb, x):
    """Use a model, run a verb on it, and use it again; what there is to complain of."""
    model, complaints = MODELS[kind](build()), []
    use(model, x)
    before, random = whole(model), torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = VERBS[verb](model, x)
    after = whole(model)
    if verb not in WRITING and not (same(before, after) and torch.equal(random, torch.get_rng_state())):
        complaints.append("it changed something")
    if verb in WRITING and same(before, after):
        complaints.append("it changed nothing")
    if kind != "DDP" and not is_sharded(model):
        complaints.append("it is no longer sharded")
    if verb == "init_":
        for name, parameter in after.items():
            first = parameter.clone()
            distributed.broadcast(first, 0)
            if not torch.equal(first, parameter) and "running" not in name:
                complaints.append(f"{name} differs between processes")
    if verb in WRITING:
        model.eval()(x)
        done.undo()
        if not same(before, whole(model)):
            complaints.append("undo does not put it back")
    use(model, x)
    return complaints


def examine_all():
    """Every verb on every kind of model; what there is to complain of in each case."""
    torch.manual_seed(1 + distributed.get_rank())
    x = torch.randn(64, 8)
    return {f"{kind}, {verb}": examine(kind, verb, x) for kind in MODELS for verb in VERBS}
