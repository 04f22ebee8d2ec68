"""Under torch.distributed, all ranks end alike, two of torchrun or four, and like one process that sees all batches."""

import json

import pytest
import torch
from processes import forked, launched
from ranks import batches, build, norms_of, run_all

import evenkeel as ek
from evenkeel.statistics.distributed import Message, Ranks, State
from evenkeel.statistics.population import Statistics

# by number of processes: how batches are shared, which model, what goes wrong
CASES = {
    2: [
        ("in turn", "plain", None),
        ("in turn", "plain", "tolerance"),
        ("unequal", "DDP", None),
        ("one has none", "SyncBatchNorm", None),
        ("unequal", "FSDP2", None),
        ("one has none", "FSDP2", None),
        ("in turn", "plain", "nan"),
        ("unequal", "DDP", "shape"),
        ("in turn", "plain", "early nan"),
        ("in turn", "plain", "early shape"),
        ("in turn", "plain", "scores"),
        ("unequal", "time first", "alike"),
        ("in turn", "refuses", "alike"),
        ("in turn", "plain", None),
        ("in turn", "plain", "mean"),
        ("one has none", "DDP", "mean"),
        ("unequal", "FSDP2", "mean"),
        ("in turn", "plain", "relative"),
        ("in turn", "plain", "mean nan"),
        ("in turn", "plain", "many"),
        ("one has none", "DDP", "many"),
    ],
    4: [
        ("unequal", "plain", "mean"),
        ("unequal", "plain", None),
        ("one has none", "DDP", None),
        ("in turn", "plain", "shape"),
    ],
}


def run(cases, processes, folder):
    """What each rank found, case by case."""
    if processes == 2:
        found = launched("ranks.py", processes, folder, json.dumps(cases))
    else:
        found = forked(run_all, cases, folder=folder, processes=processes)
    return list(zip(*found, strict=True))


def agree(found, expected):
    pairs = zip(found, expected, strict=True)
    return all(torch.allclose(torch.tensor(a), torch.tensor(b), rtol=1e-6, atol=1e-7) for a, b in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("processes", CASES)
def test_ranks_end_alike_and_as_one_process_does(tmp_path, processes):
    alone = build()
    ek.reestimate_(alone, batches())
    found = run(CASES[processes], processes, tmp_path)
    for (_, _, fault), ranks in zip(CASES[processes], found, strict=True):
        assert all(rank["statistics"] == ranks[0]["statistics"] for rank in ranks)  # to the last bit
        if fault in ("mean", "relative"):
            assert ranks[0]["samples"] == 79 and all(rank == ranks[0] for rank in ranks)
            assert ranks[0]["match"] == ("mean" if fault == "mean" else "variance")
            first, second, _ = ranks[0]["slopes"]  # of the third, so few samples tell nothing
            assert set(first) == {1} and set(second) != {1}
        elif fault == "many":
            assert ranks[0]["samples"] < 192 * 64 and all(rank == ranks[0] for rank in ranks)
        elif fault is None:
            assert (ranks[0]["batches"], ranks[0]["samples"]) == (7, 79)
            assert agree(ranks[0]["statistics"], norms_of(alone))
        elif fault == "tolerance":
            assert ranks[0]["error"] <= 0.2 and all(rank == ranks[0] for rank in ranks)
        elif fault == "alike":
            assert ranks[0]["batches"] == 7 and all(rank == ranks[0] for rank in ranks)
        elif fault == "scores":
            assert "the loader is empty" in ranks[0]["raised"] and "rank 0 of 2 failed" in ranks[1]["raised"]
        else:
            assert all(rank["unchanged"] for rank in ranks)
            own = ranks[processes - 2]["raised"]
            assert ("not finite" if "nan" in fault else "raised RuntimeError") in own
            others = [rank["raised"] for rank in ranks if rank["raised"] != own]
            assert len(others) == processes - 1
            assert all(f"rank {processes - 2} of {processes} failed" in message for message in others)


def test_without_a_group_a_process_is_alone():
    message = Message(State.MEASURED, 3, [(1, Statistics(2, torch.ones(1), torch.ones(1)))])
    assert Ranks().exchange(message) == [message]
    assert list(Ranks().rounds([1, 2])) == [1, 2]


def test_a_failure_of_another_rank_is_told():
    with pytest.raises(ek.BatchError, match="rank 1 of 1 failed"):
        Ranks().require([State.DONE, State.FAILED])
