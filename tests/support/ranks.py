"""What every process runs in test_distributed.py: all cases, each on its own share of the batches."""

import json
import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import evenkeel as ek


def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(6, 6, 3),
        nn.BatchNorm2d(6),
        nn.Flatten(),
        nn.Linear(6 * 16, 4),
        nn.BatchNorm1d(4),
    )


def batches():
    torch.manual_seed(1)
    sizes = (4, 16, 9, 16, 2, 16, 16)
    return [torch.randn(n, 1, 1, 1) + torch.randn(n, 3, 8, 8) for n in sizes]


def many():
    """So many batches that not all of them are paired."""
    torch.manual_seed(1)
    return [torch.randn(64, 3, 8, 8) for _ in range(192)]


def synchronized():
    return nn.SyncBatchNorm.convert_sync_batchnorm(build())


def sharded():
    from torch.distributed.fsdp import fully_shard

    model = build()
    for module in model:
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            fully_shard(module)
    return fully_shard(model)


SHARES = {
    "in turn": lambda data, rank, size: data[rank::size],
    "unequal": lambda data, rank, size: data[: 8 - size] if rank == 0 else data[7 - size + rank : 8 - size + rank],
    "one has none": lambda data, rank, size: [] if rank == size - 1 else data[rank :: size - 1],
}


class TimeFirst(nn.Module):
    """Batches of it cannot be merged: time is their first dimension."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.lstm, self.norm = nn.LSTM(64, 6), nn.BatchNorm1d(6)

    def forward(self, x):
        return self.norm(self.lstm(x.flatten(2))[1][0][-1])


class Refuses(nn.Module):
    """Takes no batch of more than 16 samples."""

    def __init__(self):
        super().__init__()
        self.net = build()

    def forward(self, x):
        if len(x) > 16:
            raise ValueError("too many samples")
        return self.net(x)


MODELS = {
    "plain": build,
    "DDP": lambda: DistributedDataParallel(build()),
    "SyncBatchNorm": synchronized,
    "FSDP2": sharded,
    "time first": TimeFirst,
    "refuses": Refuses,
}


FAULTS = {"nan": lambda batch: torch.full_like(batch, float("nan")), "shape": lambda batch: torch.ones(2, 5)}


def norms_of(model):
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return [t.tolist() for norm in norms for t in (norm.running_mean.double(), norm.running_var.double())]


def run(share, kind, fault):
    """What one rank finds in one case."""
    rank, size = distributed.get_rank(), distributed.get_world_size()
    model, data = MODELS[kind](), SHARES[share](many() if fault == "many" else batches(), rank, size)
    when, _, what = (fault or "").rpartition(" ")
    if what in FAULTS and rank == size - 2:
        place = 0 if when == "early" else -1
        data[place] = FAULTS[what](data[place])
    before = norms_of(model)
    try:
        labelled = [(x, torch.zeros(len(x), dtype=torch.long)) for x in data] if rank else []
        options = {
            "tolerance": {"tolerance": 0.2},
            "scores": {"held_out": labelled},
            "mean": {"match": "mean"},
            "many": {"match": "mean"},
            "relative": {"match": "variance", "relative": True},
            "mean nan": {"match": "mean"},
        }
        done = ek.reestimate_(model, data, **options.get(fault, {}))
        found = {"batches": done.batches, "samples": done.samples, "error": done.standard_error}
        found |= {"match": done.match, "slopes": [slope.value.tolist() for slope in done.slopes.values()]}
    except ek.EvenkeelError as error:
        found = {"raised": str(error), "unchanged": norms_of(model) == before}
    return found | {"statistics": norms_of(model)}


def run_all(cases):
    return [run(*case) for case in cases]


def main():
    cases, folder = json.loads(sys.argv[1]), sys.argv[2]
    distributed.init_process_group("gloo")
    Path(folder, f"{distributed.get_rank()}.json").write_text(json.dumps(run_all(cases)))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
