"""MergedParts: what the report says of rounds."""

import math

import torch
from parted import images, plain, rounds

DATA = images(128).split(16)


def test_the_report_names_parts_and_rounds():
    done, _ = rounds(plain(3), [DATA[:3], DATA[3:]], DATA)
    assert done.parts == ("0", "1") and done.round == done.passes == 1 and done.samples == 128 and done.batches == 8
    assert done.notes[0].startswith("round 1, from 2 parts: what was stored was off by up to ")
    plainly = done.to_dict()
    assert plainly["parts"] == ["0", "1"] and plainly["round"] == 1 and set(plainly["changed"]) == {"1", "5", "9"}
    assert [row.path for row in done] == ["1", "5", "9"] and math.isfinite(done.standard_error)
    assert "round 1" in str(done) and done.doubts["1"] == 0


def test_norms_read_by_others_are_unsure():
    class Fused(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(3)

        def forward(self, x):
            return self.norm(x) * (1 + self.norm.running_var.log1p())

    done, _ = rounds(Fused(), [torch.randn(4, 16, 3)], None)
    assert "read by other layers" in done.unsure["norm"]
