"""Networks, data and rounds for the tests of parts."""

import copy

import torch
from torch import nn

import evenkeel as ek


def plain(depth=12, width=8, dtype=torch.float32):
    """Convolutions, each with its norm, on statistics of training with dropout."""
    torch.manual_seed(0)
    layers = [
        (nn.Conv2d(width if i else 3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.2))
        for i in range(depth)
    ]
    model = nn.Sequential(*(layer for block in layers for layer in block)).to(dtype)
    for batch in images(640, dtype=dtype).split(32):
        model(batch)
    return model


def images(count, size=4, dtype=torch.float32):
    """Images that differ by a level of their own, which small batches show only between them."""
    torch.manual_seed(1)
    return (torch.randn(count, 3, 1, 1) + 0.5 * torch.randn(count, 3, size, size)).to(dtype)


def rounds(model, shards, probe, count=1, **options):
    """The last merge of so many rounds, and all that was changed in each."""
    start, done, changed = None, None, []
    for _ in range(count):
        if done is not None:
            start = done.start
            done.undo()
        parts = [ek.measure_part(model, shard, name=f"{i}", start=start) for i, shard in enumerate(shards)]
        done = ek.merge_parts_(model, parts, probe, **options)
        changed.append(max(done.changed.values()))
    return done, changed


def settled_in_order(model, data):
    """The slow and obvious way: norm after norm stores the mean and variance of its input, of all data at once."""
    model = copy.deepcopy(model).eval()
    for norm in (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
        held = []
        hook = norm.register_forward_pre_hook(lambda _, args, held=held: held.append(args[0]))
        with torch.no_grad():
            model(data)
        hook.remove()
        rows = held[0].transpose(0, 1).flatten(1)
        norm.running_mean.copy_(rows.mean(1))
        norm.running_var.copy_(rows.var(1))
    return model


def statistics(model):
    return {name: t.clone() for name, t in model.state_dict().items() if "running" in name}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def save_part(first, last, path):
    """What a machine that holds some of the batches does."""
    ek.measure_part(plain(5), images(320).split(16)[first:last], name=path).save(path)
