"""MatchReport: its table, its page and its plain data say the same; it can be stored."""

import json
import pickle

import torch
from mergednets import batches, normed, pair

import evenkeel as ek


def report():
    model, nets = pair(normed)
    return ek.match_(model, nets, batches(4, 32, 3, 7, 7), held_out=[(torch.randn(8, 3, 7, 7), torch.zeros(8).long())])


def test_table_page_and_data(tmp_path):
    done = report()
    found = json.loads(json.dumps(done.to_dict()))
    assert [row["path"] for row in found["rows"]] == ["8"] and len(found["norms"]) == 2
    assert found["rows"][0]["ratio"] == done[0].ratio and found["before"]["samples"] == 8
    text = str(done)
    assert "matched to 2 end points, 128 samples in 4 batches" in text and "2 norms re-estimated" in text
    assert "0 and 1 more: untouched: a norm with stored statistics follows" in text and done.summary in repr(done)
    done.save_html(tmp_path / "page.html")
    assert "128 samples in 4 batches" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<table" in done._repr_html_()


def test_it_is_stored_with_its_rows():
    done = report()
    again = pickle.loads(pickle.dumps(done))
    assert list(again) == list(done) and str(again) == str(done)
