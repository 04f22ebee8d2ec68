"""A checkpoint is read safely, loaded whole or not at all, and written back with nothing but statistics changed."""

import argparse
import copy
import json
import os
import pickle
import struct
from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file, save_model
from torch import nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel

import evenkeel as ek
from evenkeel.errors import EvenkeelError
from evenkeel.io.checkpoints import Checkpoint
from evenkeel.model.buffers import is_as_written


class Net(nn.Module):
    """A norm, and an embedding whose weights are those of the head."""

    def __init__(self, width=4):
        super().__init__()
        self.embed = nn.Embedding(6, width)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 6)
        self.head.weight = self.embed.weight
        self.register_buffer("scratch", torch.zeros(2), persistent=False)


def trained(seed=1, model=None):
    """A model with weights and statistics of its own."""
    generator = torch.Generator().manual_seed(seed)
    model = model or Net()
    with torch.no_grad():
        for value in [*model.parameters(), model.norm.running_mean, model.norm.running_var]:
            value.copy_(torch.rand(value.shape, generator=generator))
    return model


def snapshot(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def is_same(left, right):
    """Equal in every key, type, dtype and value, in the same order."""
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        same = type(left) is type(right) and list(left) == list(right)
        return same and all(is_same(left[key], right[key]) for key in left)
    return left == right


def load(path):
    return torch.load(path, weights_only=True)


def refusal(action, *args):
    with pytest.raises(EvenkeelError) as caught:
        action(*args)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


WRAPPERS = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"state": {}, "lr": 0.1}},
    "model": lambda state: {"model": state, "scaler": None, "args": ["--lr", "0.1"]},
    "model_state_dict": lambda state: OrderedDict(model_state_dict=state, loss=torch.tensor(0.25)),
    "net": lambda state: {"net": state, "acc": 93.1},
}
PREFIXES = ["", "module.", "_orig_mod.", "module._orig_mod.", "model."]


def prefixed(state, prefix):
    return OrderedDict((prefix + key, value) for key, value in state.items())


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_only_the_statistics_change_on_the_way_through(tmp_path, wrapper, prefix):
    content = WRAPPERS[wrapper](prefixed(trained().state_dict(), prefix))
    torch.save(content, tmp_path / "in.pt")
    checkpoint = Checkpoint.read(tmp_path / "in.pt")
    model = Net()
    checkpoint.apply_(model)
    assert is_same(snapshot(model), dict(trained().state_dict()))

    checkpoint.write(tmp_path / "same.pt", model)
    assert is_same(load(tmp_path / "same.pt"), content)

    model.norm.running_var.mul_(2)
    model.embed.weight.data.mul_(3)  # not a statistic: the file's stays
    checkpoint.write(tmp_path / "out.pt", model)
    written = load(tmp_path / "out.pt")
    state = content if wrapper == "bare" else content[wrapper]
    state[f"{prefix}norm.running_var"] = model.norm.running_var
    assert is_same(written, content)
    assert sorted(os.listdir(tmp_path)) == ["in.pt", "out.pt", "same.pt"]


def test_torch_metadata_of_a_state_dict_is_kept(tmp_path):
    torch.save({"state_dict": trained().state_dict()}, tmp_path / "in.pt")
    checkpoint, model = Checkpoint.read(tmp_path / "in.pt"), Net()
    checkpoint.apply_(model)
    checkpoint.write(tmp_path / "out.pt", model)
    assert load(tmp_path / "out.pt")["state_dict"]._metadata == Net().state_dict()._metadata


@pytest.mark.parametrize("metadata", [None, {"format": "pt", "step": "12"}])
def test_safetensors_keep_their_metadata_and_tied_weights(tmp_path, metadata):
    save_model(trained(), tmp_path / "in.safetensors", metadata)  # leaves out one of the tied weights
    before = load_file(tmp_path / "in.safetensors")
    assert len(before) == len(Net().state_dict()) - 1
    checkpoint, model = Checkpoint.read(tmp_path / "in.safetensors"), Net()
    checkpoint.apply_(model)
    assert is_same(snapshot(model), dict(trained().state_dict()))
    model.norm.running_mean.add_(1)
    checkpoint.write(tmp_path / "out.safetensors", model)
    before["norm.running_mean"] = model.norm.running_mean
    after = load_file(tmp_path / "out.safetensors")
    assert {key: value.tolist() for key, value in after.items()} == {k: v.tolist() for k, v in before.items()}
    with safe_open(tmp_path / "in.safetensors", "pt") as one, safe_open(tmp_path / "out.safetensors", "pt") as other:
        assert one.metadata() == other.metadata()


def test_a_prefix_that_only_the_file_seems_to_have_is_not_taken_off(tmp_path):
    """Of a model with parts `model` and `head`, tied, the file may hold nothing but `model`."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = nn.Linear(3, 3, bias=False)
            self.head = nn.Linear(3, 3, bias=False)
            self.head.weight = self.model.weight

    save_file({"model.weight": torch.eye(3)}, tmp_path / "in.safetensors")
    model = Tied()
    Checkpoint.read(tmp_path / "in.safetensors").apply_(model)
    assert torch.equal(model.head.weight, torch.eye(3))


def test_from_torch_to_safetensors_and_back(tmp_path):
    torch.save({"state_dict": prefixed(trained().state_dict(), "module."), "epoch": 3}, tmp_path / "in.pt")
    checkpoint, model = Checkpoint.read(tmp_path / "in.pt"), Net()
    checkpoint.apply_(model)
    checkpoint.write(tmp_path / "out.safetensors", model)
    written = load_file(tmp_path / "out.safetensors")
    assert written.keys() == load(tmp_path / "in.pt")["state_dict"].keys()
    assert all(torch.equal(value, checkpoint.state[key]) for key, value in written.items())

    back = Checkpoint.read(tmp_path / "out.safetensors")
    back.write(tmp_path / "back.pth", model)
    assert is_same(load(tmp_path / "back.pth"), back.content)


@pytest.mark.parametrize("model_dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("file_dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_entries_keep_the_dtype_of_the_file_and_change_only_if_the_buffer_did(tmp_path, file_dtype, model_dtype):
    torch.save(trained(model=Net().to(file_dtype)).state_dict(), tmp_path / "in.pt")
    checkpoint, model = Checkpoint.read(tmp_path / "in.pt"), Net().to(model_dtype)
    checkpoint.apply_(model)
    checkpoint.write(tmp_path / "same.pt", model)
    assert is_same(load(tmp_path / "same.pt"), load(tmp_path / "in.pt"))
    model.norm.running_var.fill_(2)
    checkpoint.write(tmp_path / "out.pt", model)
    assert torch.equal(load(tmp_path / "out.pt")["norm.running_var"], torch.full((4,), 2, dtype=file_dtype))


@given(st.lists(st.floats(width=32), min_size=4, max_size=4), st.lists(st.booleans(), min_size=4, max_size=4))
def test_any_statistics_come_through_bit_by_bit(tmp_path_factory, values, changes):
    folder = tmp_path_factory.mktemp("weights")
    model = trained()
    model.norm.running_var.copy_(torch.tensor(values))
    torch.save(model.state_dict(), folder / "in.pt")
    checkpoint, model = Checkpoint.read(folder / "in.pt"), Net()
    checkpoint.apply_(model)
    model.norm.running_var[torch.tensor(changes)] = 0.5
    checkpoint.write(folder / "out.pt", model)
    written = load(folder / "out.pt")["norm.running_var"]
    assert torch.equal(written.view(torch.int32), model.norm.running_var.view(torch.int32))


def bare(model):
    return model


def parallel(model):
    """What DistributedDataParallel does to the keys."""
    return nn.Sequential(OrderedDict(module=model))


@pytest.mark.parametrize("wrap_in_file", [bare, parallel, AveragedModel])
@pytest.mark.parametrize("wrap", [bare, parallel])
def test_wrapped_models_meet_files_of_wrapped_models(tmp_path, wrap, wrap_in_file):
    torch.save(wrap_in_file(trained()).state_dict(), tmp_path / "in.pt")
    net = Net()
    model = wrap(net)
    checkpoint = Checkpoint.read(tmp_path / "in.pt")
    checkpoint.apply_(model)
    assert is_same(snapshot(net), dict(trained().state_dict()))
    net.norm.running_var.fill_(7)
    checkpoint.write(tmp_path / "out.pt", model)
    before, after = load(tmp_path / "in.pt"), load(tmp_path / "out.pt")
    assert list(before) == list(after)
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    assert [key.removeprefix("module.") for key in changed] == ["norm.running_var"]


def test_an_averaged_model_meets_its_own_file_only(tmp_path):
    torch.save(AveragedModel(trained()).state_dict(), tmp_path / "averaged.pt")
    torch.save(trained().state_dict(), tmp_path / "bare.pt")
    model = AveragedModel(Net())
    Checkpoint.read(tmp_path / "averaged.pt").apply_(model)
    assert is_same(snapshot(model.module), dict(trained().state_dict()))
    assert "1 missing (n_averaged)" in refusal(Checkpoint.read(tmp_path / "bare.pt").apply_, model)


def test_a_part_that_was_compiled_is_met(tmp_path):
    state = {key.replace("norm.", "norm._orig_mod."): value for key, value in trained().state_dict().items()}
    torch.save(state, tmp_path / "in.pt")
    model = Net()
    Checkpoint.read(tmp_path / "in.pt").apply_(model)
    assert is_same(snapshot(model), dict(trained().state_dict()))


def test_files_from_before_norms_counted_batches_are_read(tmp_path):
    state = {key: value for key, value in trained().state_dict().items() if "num_batches" not in key}
    torch.save(state, tmp_path / "in.pt")
    checkpoint, model = Checkpoint.read(tmp_path / "in.pt"), Net()
    checkpoint.apply_(model)
    checkpoint.write(tmp_path / "out.pt", model)
    assert is_same(load(tmp_path / "out.pt"), state)


def test_extra_state_is_kept_and_has_no_place_in_safetensors(tmp_path):
    class Counting(Net):
        count = 0

        def get_extra_state(self):
            return {"count": self.count}

        def set_extra_state(self, state):
            self.count = state["count"]

    source = trained(model=Counting())
    source.count = 5
    torch.save(source.state_dict(), tmp_path / "in.pt")
    checkpoint, model = Checkpoint.read(tmp_path / "in.pt"), Counting()
    checkpoint.apply_(model)
    assert model.count == 5
    checkpoint.write(tmp_path / "out.pt", model)
    assert is_same(load(tmp_path / "out.pt"), load(tmp_path / "in.pt"))
    message = refusal(checkpoint.write, tmp_path / "out.safetensors", model)
    assert "'_extra_state' is a dict, and safetensors holds tensors only" in message
    assert sorted(os.listdir(tmp_path)) == ["in.pt", "out.pt"]


def without(*keys):
    return lambda state: {key: value for key, value in state.items() if key not in keys}


MISFITS = {
    "missing": (without("norm.weight", "norm.bias"), ["2 missing (norm.weight, norm.bias)"]),
    "tied both missing": (without("embed.weight", "head.weight"), ["2 missing (embed.weight, head.weight)"]),
    "unexpected": (
        lambda state: {**state, **{f"extra.{i}": torch.ones(1) for i in range(5)}},
        ["5 unexpected (extra.0, extra.1, extra.2, ...)"],
    ),
    "shape": (
        lambda state: {**state, "head.bias": torch.ones(9)},
        ["1 of another shape (head.bias [9] in the file, [6] in the model)"],
    ),
    "all at once": (
        lambda state: {**without("norm.bias")(state), "head.bias": torch.ones(9), "x": torch.ones(1)},
        ["1 missing (norm.bias), 1 unexpected (x), 1 of another shape (head.bias"],
    ),
    "prefixed": (
        lambda state: prefixed({**without("norm.bias")(state), "x": torch.ones(1)}, "module."),
        ["1 missing (norm.bias), 1 unexpected (x)"],
    ),
    "another model": (lambda state: nn.Conv2d(3, 4, 3).state_dict(), ["missing", "2 unexpected (weight, bias)"]),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_told_and_leaves_the_model_as_it_was(tmp_path, case):
    change, parts = MISFITS[case]
    torch.save(change(trained().state_dict()), tmp_path / "in.pt")
    model = trained(seed=2)
    before, identities = snapshot(model), [id(value) for value in [*model.parameters(), *model.buffers()]]
    message = refusal(Checkpoint.read(tmp_path / "in.pt").apply_, model)
    assert [part for part in ["in.pt does not fit the model Net", *parts] if part not in message] == []
    assert is_same(snapshot(model), before)
    assert [id(value) for value in [*model.parameters(), *model.buffers()]] == identities


def test_a_model_whose_loading_fails_is_as_it_was(tmp_path):
    class Stubborn(Net):
        count = 5

        def get_extra_state(self):
            return self.count

        def set_extra_state(self, state):
            self.count = state

        def _load_from_state_dict(self, *args):
            self.norm.running_var.zero_()
            self.count = 0
            raise ValueError("not today\nnor tomorrow")

    torch.save(trained(model=Stubborn()).state_dict(), tmp_path / "in.pt")
    model = trained(seed=2, model=Stubborn())
    before = copy.deepcopy(model.state_dict())
    message = refusal(Checkpoint.read(tmp_path / "in.pt").apply_, model)
    assert "does not fit the model Stubborn: ValueError: not today nor tomorrow" in message
    assert is_same(model.state_dict(), before)


def test_a_checkpoint_is_written_for_the_model_it_was_read_for(tmp_path):
    torch.save(nn.Sequential(nn.Linear(2, 2)).state_dict(), tmp_path / "in.pt")
    checkpoint = Checkpoint.read(tmp_path / "in.pt")
    assert "no entry for 'norm.running_mean'" in refusal(checkpoint.write, tmp_path / "out.pt", Net())
    torch.save(Net(width=5).state_dict(), tmp_path / "wide.pt")
    checkpoint = Checkpoint.read(tmp_path / "wide.pt")
    assert "[5] in the file, [4] in the model" in refusal(checkpoint.write, tmp_path / "out.pt", Net())
    assert not (tmp_path / "out.pt").exists()


class Evil:
    def __reduce__(self):
        return os.system, ("exit 1",)


def _write_header(path, header, size):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))


def _cut(path, state, save):
    save(state, path)
    path.write_bytes(path.read_bytes()[:-40])


STATE = {"a": torch.ones(100)}
UNREADABLE = {
    "absent.pt": (lambda path: None, ["does not exist"]),
    "absent.safetensors": (lambda path: None, ["does not exist"]),
    "folder.pt": (lambda path: path.mkdir(), ["is a folder, not a weights file"]),
    "pipe.pt": (os.mkfifo, ["is a pipe or a device, not a weights file"]),
    "empty.pt": (lambda path: path.touch(), ["of 0 bytes is damaged or no weights file"]),
    "text.pt": (lambda path: path.write_text("version 1\noid sha256"), ["of 20 bytes is damaged", "download it again"]),
    "cut.pt": (lambda path: _cut(path, STATE, torch.save), ["is damaged or no weights file"]),
    "evil.pt": (
        lambda path: torch.save({**STATE, "b": Evil()}, path),
        [f"more than tensors ({os.system.__module__}.system)"],
    ),
    "evil.pkl": (lambda path: path.write_bytes(pickle.dumps(Evil())), ["evil.pkl"]),
    "model.pt": (lambda path: torch.save(Net(), path), ["more than tensors (", "save model.state_dict()"]),
    "list.pt": (lambda path: torch.save([1, 2], path), ["holds a list, no state dict"]),
    "number.pt": (lambda path: torch.save(3, path), ["holds a int", "no state dict"]),
    "nothing.pt": (lambda path: torch.save({}, path), ["holds a dict, no state dict"]),
    "log.pt": (lambda path: torch.save({"epoch": 3, 4: "a"}, path), ["a dict with 2 entries (epoch, 4), no state"]),
    "pickle.pt": (lambda path: path.write_bytes(pickle.dumps({"a": 1}, protocol=4)), ["damaged or no weights file"]),
    "two.pt": (lambda path: torch.save({"a": STATE, "b": STATE}, path), ["holds 2 state dicts: a ("]),
    "empty.safetensors": (lambda path: path.touch(), ["of 0 bytes is damaged or no safetensors file"]),
    "cut.safetensors": (lambda path: _cut(path, STATE, save_file), ["is damaged or no safetensors file"]),
    "pickle.safetensors": (lambda path: torch.save(STATE, path), ["damaged or no safetensors file"]),
    "header.safetensors": (lambda path: _write_header(path, {"a": 1}, 4), ["damaged or no safetensors file"]),
    "nothing.safetensors": (lambda path: save_file({}, path), ["holds a dict, no state dict"]),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_no_weights_file_is_told_in_one_line(tmp_path, name):
    make, parts = UNREADABLE[name]
    make(tmp_path / name)
    message = refusal(Checkpoint.read, tmp_path / name)
    assert [part for part in [str(tmp_path / name), *parts] if part not in message] == []


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_nothing_is_left_behind_where_writing_fails(tmp_path, monkeypatch, suffix):
    torch.save(trained().state_dict(), tmp_path / "in.pt")
    checkpoint, model = Checkpoint.read(tmp_path / "in.pt"), Net()
    checkpoint.apply_(model)
    assert "there is no folder" in refusal(checkpoint.write, tmp_path / "absent" / f"out{suffix}", model)
    (tmp_path / f"folder{suffix}").mkdir()
    assert "is a folder" in refusal(checkpoint.write, tmp_path / f"folder{suffix}", model)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    message = refusal(checkpoint.write, tmp_path / f"out{suffix}", model)
    assert "cannot be written: OSError: [Errno 28] No space left on device; nothing was written" in message
    assert sorted(os.listdir(tmp_path)) == sorted([f"folder{suffix}", "in.pt"])


def test_a_file_may_be_written_over_itself(tmp_path):
    for path, save in ((tmp_path / "a.pt", torch.save), (tmp_path / "a.safetensors", save_file)):
        save({key: value.clone() for key, value in trained().state_dict().items()}, path)
        checkpoint, model = Checkpoint.read(path), Net()
        checkpoint.apply_(model)
        model.norm.running_var.fill_(3)
        checkpoint.write(path, model)
        again = copy.deepcopy(Net())
        Checkpoint.read(path).apply_(again)
        assert is_same(snapshot(again), snapshot(model))


@pytest.mark.parametrize("text", ["no JSON", "[1]", '"0.1"', "null", '{"norm": 3}', '{"norm": {"running_var": "x"}}'])
def test_what_others_keep_under_the_same_name_marks_nothing(tmp_path, text):
    state = {key: value.clone() for key, value in trained().state_dict().items()}
    save_file(state, tmp_path / "a.safetensors", {"evenkeel": text})
    model = Net()
    Checkpoint.read(tmp_path / "a.safetensors").apply_(model)
    assert not is_as_written(model.norm)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_file_keeps_which_statistics_were_repaired_and_any_loader_reads_it(tmp_path, suffix, wrapped, prefix):
    def build():
        return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.BatchNorm1d(8))

    torch.manual_seed(0)
    model, x = build(), torch.randn(200, 4)
    state = OrderedDict((prefix + key, value) for key, value in model.state_dict().items())
    if suffix == ".pt":
        torch.save({"state_dict": state, "epoch": 3} if wrapped else dict(state), tmp_path / "old.pt")
    else:
        save_file(dict(state), tmp_path / "old.safetensors")
    checkpoint = Checkpoint.read(tmp_path / f"old{suffix}")
    checkpoint.apply_(model)
    ek.reestimate_(model, [x])
    checkpoint.write(tmp_path / f"new{suffix}", model)

    loaded = build()
    again = Checkpoint.read(tmp_path / f"new{suffix}")
    again.apply_(loaded)
    assert is_as_written(loaded[2]) and is_as_written(loaded[4])
    with pytest.raises(ek.ModelError, match="nothing is left to correct"):
        ek.correct_(loaded, x[:2])
    for _ in range(60):
        loaded(x)  # trained on, its statistics are those of training again
    again.write(tmp_path / f"trained{suffix}", loaded)
    fresh = build()
    Checkpoint.read(tmp_path / f"trained{suffix}").apply_(fresh)
    assert not is_as_written(fresh[2]) and not is_as_written(fresh[4])

    content = torch.load(tmp_path / "new.pt", weights_only=True) if suffix == ".pt" else load_file(again.path)
    content = content["state_dict"] if wrapped and suffix == ".pt" else content
    plain = build()
    plain.load_state_dict({key.removeprefix(prefix): value for key, value in content.items()}, strict=True)
    assert torch.equal(plain[2].running_var, model[2].running_var)


def test_several_nets_in_a_file_are_listed_and_one_is_asked_for(tmp_path):
    content = {"state_dict": trained(1).state_dict(), "ema": trained(2).state_dict(), "epoch": 3}
    torch.save(content, tmp_path / "two.pt")
    message = refusal(Checkpoint.read, tmp_path / "two.pt")
    size = len(Net().state_dict())
    assert f"holds 2 state dicts: state_dict ({size} entries), ema ({size} entries)" in message
    assert "--key state_dict" in message and "key='state_dict'" in message
    for key, seed in (("state_dict", 1), ("ema", 2)):
        model, checkpoint = Net(), Checkpoint.read(tmp_path / "two.pt", key=key)
        checkpoint.apply_(model)
        assert is_same(snapshot(model), snapshot(trained(seed)))
        model.norm.running_var.fill_(7)
        checkpoint.write(tmp_path / "out.pt", model)
        written = load(tmp_path / "out.pt")
        assert written[key]["norm.running_var"].eq(7).all()
        other = next(name for name in ("state_dict", "ema") if name != key)
        assert is_same(written[other], content[other])


def test_a_key_that_is_not_there_is_told_with_those_that_are(tmp_path):
    torch.save({"model": trained().state_dict(), "ema": trained().state_dict()}, tmp_path / "two.pt")
    assert "has no state dict 'best': its state dicts are model (" in refusal(
        lambda: Checkpoint.read(tmp_path / "two.pt", key="best")
    )
    torch.save(trained().state_dict(), tmp_path / "one.pt")
    assert "it is a state dict itself" in refusal(lambda: Checkpoint.read(tmp_path / "one.pt", key="ema"))


def test_tensors_beside_the_net_are_no_second_net(tmp_path):
    torch.save({"model": trained().state_dict(), "scales": {"a": torch.ones(2)}}, tmp_path / "one.pt")
    assert Checkpoint.read(tmp_path / "one.pt").wrapper == "model"


def test_a_namespace_in_a_file_is_refused_with_the_way_to_allow_it(tmp_path):
    torch.save({"state_dict": trained().state_dict(), "args": argparse.Namespace(lr=0.1)}, tmp_path / "args.pt")
    message = refusal(Checkpoint.read, tmp_path / "args.pt")
    assert "argparse.Namespace" in message and "torch.serialization.add_safe_globals([argparse.Namespace])" in message
    with torch.serialization.safe_globals([argparse.Namespace]):
        checkpoint, model = Checkpoint.read(tmp_path / "args.pt"), Net()
        checkpoint.apply_(model)
        model.norm.running_var.fill_(7)
        checkpoint.write(tmp_path / "out.pt", model)
        assert load(tmp_path / "out.pt")["args"].lr == 0.1


def test_load_is_what_the_program_does_with_weights(tmp_path):
    torch.save({"state_dict": prefixed(trained().state_dict(), "module.")}, tmp_path / "in.pt")
    model = Net()
    assert ek.load_(model, tmp_path / "in.pt") is model and is_same(snapshot(model), snapshot(trained()))


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_pruned_by_masks_is_met_by_a_model_that_is_not(tmp_path, suffix, prefix):
    pruned, plain = (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(2))
    prune.l1_unstructured(pruned[0], "weight", 0.5)
    prune.l1_unstructured(pruned[0], "bias", 0.5)
    state = {prefix + key: value for key, value in pruned.state_dict().items()}
    old, new = tmp_path / f"old{suffix}", tmp_path / f"new{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, old)
    checkpoint = Checkpoint.read(old)
    checkpoint.apply_(plain)
    assert torch.equal(plain[0].weight, pruned[0].weight) and torch.equal(plain[0].bias, pruned[0].bias)
    plain[1].running_var.fill_(2.0)
    checkpoint.write(new, plain)
    written = load_file(new) if suffix == ".safetensors" else torch.load(new)
    assert written.keys() == state.keys()
    assert {key for key in state if not torch.equal(written[key], state[key])} == {f"{prefix}1.running_var"}


def test_half_of_a_mask_is_no_weight(tmp_path):
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    prune.identity(net[0], "weight")
    state = net.state_dict()
    del state["0.weight_mask"]
    torch.save(state, tmp_path / "half.pt")
    with pytest.raises(EvenkeelError, match=r"1 missing \(0.weight\), 1 unexpected \(0.weight_orig\)"):
        Checkpoint.read(tmp_path / "half.pt").apply_(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))


def test_several_nets_in_one_state_dict_are_counted(tmp_path):
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    state = {f"{name}.{key}": value for name in ("student", "teacher") for key, value in net.state_dict().items()}
    torch.save(state, tmp_path / "both.pt")
    with pytest.raises(EvenkeelError, match=r"several nets, by how keys begin, student \(7\), teacher \(7\)"):
        Checkpoint.read(tmp_path / "both.pt").apply_(net)
