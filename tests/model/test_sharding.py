"""gathered: what FSDP2 shards is a plain model for the time of a verb, and as it was afterwards."""

import copy

import pytest
import shards
import torch
from processes import forked
from snapshots import Snapshot
from torch import distributed, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

import evenkeel as ek
from evenkeel.model.evaluation import evaluate
from evenkeel.model.sharding import gathered, groups_of, own_parameter

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
READING = [verb for verb in shards.VERBS if verb not in shards.WRITING]


@pytest.fixture(autouse=True)
def group(tmp_path):
    """This process alone, as a group."""
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def trained(kind="by layers"):
    model = shards.MODELS[kind](shards.build())
    shards.use(model, X)
    shards.whole(model)  # sharded, as it is between two steps
    return model


def test_a_plain_model_stays_as_it_is():
    model = shards.build()
    snapshot = Snapshot(model)
    with gathered(model):
        assert snapshot.changes() == []


def test_inside_it_is_plain_and_outside_sharded():
    model = trained()
    state = shards.whole(model)
    with gathered(model):
        assert type(model) is nn.Sequential and type(model[0]) is nn.Linear
        assert not any(hasattr(parameter, "device_mesh") for parameter in model.parameters())
        assert shards.same(state, dict((*model.named_parameters(), *model.named_buffers())))
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        with gathered(model):
            assert torch.equal(copy.deepcopy(model).eval()(X), model.eval()(X))
    assert shards.is_sharded(model)


def test_what_was_changed_is_written_into_the_shards():
    model = trained()
    versions = [parameter._local_tensor._version for parameter in model.parameters()]
    with gathered(model), torch.no_grad():
        model[0].weight.fill_(2.0)
    changed = [p._local_tensor._version - v for p, v in zip(model.parameters(), versions, strict=True)]
    assert changed == [1, *[0] * (len(versions) - 1)]
    assert (model[0].weight.full_tensor() == 2).all()


def test_an_error_leaves_it_sharded():
    model = trained()
    snapshot = Snapshot(model)
    with pytest.raises(ZeroDivisionError), gathered(model):
        raise ZeroDivisionError
    assert snapshot.changes() == []


@pytest.mark.filterwarnings("ignore::evenkeel.UnappliedWarning")
@pytest.mark.parametrize("verb", READING)
def test_what_only_reads_changes_nothing(verb):
    model = trained()
    snapshot = Snapshot(model)
    shards.VERBS[verb](model, X)
    assert snapshot.changes() == []


@pytest.mark.parametrize("verb", ["predict_shift", "variance_shift", "lint", "trace"])
def test_reports_are_those_of_the_plain_model(verb):
    model, plain = shards.MODELS["by layers"](shards.build()), shards.build()
    assert str(shards.VERBS[verb](model, X)) == str(shards.VERBS[verb](plain, X))


@pytest.mark.parametrize("verb", ["init_", "correct_", "reestimate_"])
def test_what_writes_writes_the_same_into_shards(verb):
    model, plain = shards.MODELS["by layers"](shards.build()), shards.build()
    calls = {"init_": lambda m: ek.init_(m, X[:4], seed=3), "correct_": lambda m: ek.correct_(m, X[:4])}
    for one in (model, plain):
        one(X)
        torch.manual_seed(0)
        calls.get(verb, lambda m: ek.reestimate_(m, [X]))(one)
    statistics = [name for name in shards.whole(plain) if "running" in name]
    of_model, of_plain = shards.whole(model), shards.whole(plain)
    assert all(torch.equal(of_model[n], of_plain[n]) for n in of_plain if n not in statistics or verb == "reestimate_")


def test_a_graph_of_a_sharded_model_stays_valid():
    model = trained()
    graph = ek.trace(model, X[:4])
    model(X).sum().backward()
    assert str(ek.predict_shift(model, graph)) == str(ek.predict_shift(model, X[:4]))
    ek.init_(model, graph, seed=1)
    assert torch.allclose(model[5].weight.full_tensor().norm(dim=1), model[5].weight.full_tensor().norm(dim=1)[0])
    model[1].p = 0.9
    with pytest.raises(ek.TraceError, match="out of date"):
        ek.predict_shift(model, graph)


def test_fix_returns_a_plain_copy():
    model = trained()
    fixed = ek.fix(model, X[:4], guideline="li2018")
    assert type(fixed) is nn.Sequential and not hasattr(fixed[0].weight, "device_mesh")
    assert torch.equal(fixed.eval()(X), model.eval()(X))
    assert shards.same(fixed.state_dict(), copy.deepcopy(fixed).state_dict())


def test_a_score_leaves_it_usable():
    model = trained()
    labels = torch.randint(3, (64,), generator=torch.Generator().manual_seed(0))
    score = evaluate(model, [(X, labels)])
    assert score == evaluate(ek.fix(model, X[:4], guideline="kim2023"), [(X, labels)])
    shards.use(model, X)
    ek.reestimate_(model, [X], held_out=[(X, labels)])
    shards.use(model, X)


def test_mixed_precision_takes_batches_of_either_precision():
    model = shards.build()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.float32)
    for layer in (model[0], model[4], model[5]):
        fully_shard(layer, mp_policy=policy)
    fully_shard(model)
    state = shards.whole(model)
    assert len(ek.variance_shift(model, [X.bfloat16(), X])) == 1
    assert shards.same(state, shards.whole(model))
    shards.use(model, X)


def test_groups_are_those_that_replicate_or_shard():
    assert groups_of(shards.build()) == []
    replica = nn.parallel.DistributedDataParallel(shards.build())
    assert groups_of(replica) == groups_of(torch.compile(replica, backend="eager")) == [replica.process_group]
    model = trained()
    assert len(groups_of(model)) == 1
    with gathered(model):
        assert len(groups_of(model)) == 1


def test_a_whole_parameter_knows_its_shard():
    model = trained()
    shard = model[0].weight
    with gathered(model):
        assert own_parameter(model[0].weight) is shard
    assert own_parameter(shard) is shard and own_parameter(None) is None


def test_shards_without_values_are_refused():
    with torch.device("meta"):
        model = fully_shard(shards.build(), mesh=distributed.init_device_mesh("cpu", (1,)))
    with pytest.raises(ek.ModelError, match="meta device"):
        ek.predict_shift(model, X)


def test_tensor_parallel_shards_are_refused():
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    mesh = distributed.init_device_mesh("cpu", (1, 1), mesh_dim_names=("data", "tensor"))
    model = shards.build()
    parallelize_module(model[0], mesh["tensor"], ColwiseParallel())
    fully_shard(model, mesh=mesh["data"])
    with pytest.raises(ek.ModelError, match="tensor parallelism"):
        ek.lint(model, X)


@pytest.mark.slow
def test_every_verb_in_two_processes(tmp_path):
    for found in forked(shards.examine_all, folder=tmp_path, processes=2):
        assert len(found) == len(shards.MODELS) * len(shards.VERBS)
        assert {case: said for case, said in found.items() if said} == {}
