"""in_domain and domains_of: switched, nested, left as found, kept by copies, and stale once norms have changed."""

import copy
import pickle

import pytest
import torch
from snapshots import Snapshot
from torch import nn

import evenkeel as ek


def measured(labels=("a", "b")):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.BatchNorm1d(3))
    model(torch.randn(32, 4))
    batches = [(torch.randn(32, 4) + i, label) for i, label in enumerate(labels)]
    done = ek.reestimate_domains_(model, batches, by=1)
    return model.eval(), done


def test_contexts_nest_and_leave_nothing_also_when_the_body_raises():
    model, done = measured()
    before = Snapshot(model)
    with pytest.raises(KeyError), ek.in_domain(model, "a"):
        with ek.in_domain(model, "b"):
            assert torch.equal(model[2].running_mean, done.domains["b"]["2"]["running_mean"])
        assert torch.equal(model[2].running_mean, done.domains["a"]["2"]["running_mean"])
        assert set(ek.domains_of(model)) == {"a", "b"}
        raise KeyError
    assert before.changes() == []


def test_of_an_unknown_label_the_error_lists_those_there_are():
    model, _ = measured(("north", "south"))
    said = "no domain 'nord': it has 'north', 'south'; did you mean 'north'"
    with pytest.raises(ek.EvenkeelError, match=said), ek.in_domain(model, "nord"):
        pass
    pool = model[2].running_mean.clone()
    with ek.in_domain(model, "nord", unknown="pool"):
        assert torch.equal(model[2].running_mean, pool)


@pytest.mark.parametrize("how", ["training", "another repair", "undo_", "never"])
def test_what_is_stale_is_refused(how):
    model, _ = measured()
    if how == "training":
        model.train()(10 + torch.randn(32, 4))
    elif how == "another repair":
        ek.reestimate_(model, [torch.randn(32, 4)], match="variance")
    elif how == "undo_":
        ek.undo_(model)
    else:
        model = nn.Sequential(nn.BatchNorm1d(3))
    message = "'2' and 0 more store other statistics" if how == "training" else "no statistics of domains"
    with pytest.raises(ek.ModelError, match=message), ek.in_domain(model, "a"):
        pass


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_keep_them(copied):
    model, done = measured()
    other = copied(model)
    with ek.in_domain(other, "b"):
        assert torch.equal(other[2].running_var, done.domains["b"]["2"]["running_var"])


def test_the_mapping_is_read_only():
    model, done = measured()
    for mapping in (ek.domains_of(model), done.domains):
        with pytest.raises(TypeError):
            mapping["c"] = {}
        with pytest.raises(TypeError):
            mapping["a"]["2"]["running_mean"] = torch.zeros(3)


def test_noise_off_repairs_know_what_training_left_inside_too():
    model, _ = measured()
    with ek.noisy(model):
        trained = model[2].running_mean.clone()
    with ek.in_domain(model, "a"), ek.noisy(model):
        assert torch.equal(model[2].running_mean, trained)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("labels", [("a", "b"), (1, 2), (1, "1")])
def test_files_hold_them_and_plain_torch_loads_the_pool(tmp_path, suffix, labels):
    model, done = measured(labels)
    path, fresh = tmp_path / f"net{suffix}", nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.BatchNorm1d(3))
    ek.save(model, path)
    if suffix == ".pt":
        state = torch.load(path, weights_only=True)
    else:
        from safetensors.torch import load_file

        state = load_file(path)
    fresh.load_state_dict(state, strict=True)
    assert torch.equal(fresh[2].running_mean, model[2].running_mean) and ek.domains_of(fresh) == {}
    ek.load_(fresh, path)
    assert list(ek.domains_of(fresh)) == list(labels)
    for label in labels:
        with ek.in_domain(fresh, label):
            assert torch.equal(fresh[2].running_mean, done.domains[label]["2"]["running_mean"])


def test_a_header_that_would_be_too_long_is_refused(tmp_path, monkeypatch):
    from evenkeel.io import marks

    monkeypatch.setattr(marks, "_LONGEST", 100)
    with pytest.raises(ek.EvenkeelError, match=r"2 domains take .* named \.pt"):
        ek.save(measured()[0], tmp_path / "net.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("label", [torch.tensor([1, 2]), None, 1.5, b"a"])
def test_what_is_no_label_is_refused(label):
    model, _ = measured()
    with (
        pytest.raises(ek.EvenkeelError, match="a domain's label is a text or a whole number"),
        ek.in_domain(model, label),
    ):
        pass


def test_what_to_do_with_unknown_labels_is_one_of_two():
    model, _ = measured()
    with pytest.raises(ek.EvenkeelError, match="unknown must be 'raise' or 'pool', not 'all'"):
        ek.in_domain(model, "a", unknown="all").__enter__()


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_files_of_parallel_replicas_keep_domains(tmp_path, suffix):
    model, done = measured()
    path = tmp_path / f"net.{suffix}"
    plain, parallel = copy.deepcopy(model), nn.DataParallel(copy.deepcopy(model))
    for saved in (model, nn.DataParallel(model)):
        ek.save(saved, path)
        for net in (plain, parallel):
            assert set(ek.domains_of(ek.load_(without_marks(net), path))) == {"a", "b"}
        with ek.in_domain(parallel, "b"):
            assert torch.equal(parallel.module[2].running_mean, done.domains["b"]["2"]["running_mean"])
        assert ek.undo_(plain) == ("2",)


def without_marks(net):
    """The network without what is known of repairs."""
    for module in net.modules():
        for name in [name for name in vars(module) if name.startswith("evenkeel")]:
            del module.__dict__[name]
    return net
