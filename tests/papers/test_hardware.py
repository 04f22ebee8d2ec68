"""Hardware: what a scale sets where nothing else is asked for, and what a record calls the machine."""

import platform
from itertools import count

import pytest
import torch

from evenkeel.papers.lab import hardware
from evenkeel.papers.lab.hardware import Hardware, device_name, hardware_at, has_bf16
from evenkeel.papers.lab.specs import SCALES

CPU = Hardware("cpu")


@pytest.mark.parametrize("scale", [scale for scale in SCALES if scale != "desk"])
def test_other_scales_leave_all_as_it_was(scale):
    assert hardware_at(scale) == Hardware()
    assert hardware_at(scale, "cpu", 2, "bf16-mixed", compile=True, channels_last=True) == Hardware(
        "cpu", 2, "bf16-mixed", compile=True, channels_last=True
    )


@pytest.mark.parametrize(("there", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_desk_scale_is_bfloat16_where_there_is_one_and_channels_last(monkeypatch, there, precision):
    monkeypatch.setattr(hardware, "has_bf16", lambda _: there)
    assert hardware_at("desk", "cpu") == Hardware("cpu", precision=precision, channels_last=True)
    asked = hardware_at("desk", "cpu", precision="32-true", channels_last=False)
    assert asked == Hardware("cpu")


@pytest.mark.parametrize("faster", [True, False])
def test_bfloat16_is_what_the_processor_has_or_does_faster(monkeypatch, faster):
    monkeypatch.setattr(hardware, "_is_faster_in_bf16", lambda: faster)
    for found, expected in (({"amx_bf16": True}, True), ({"avx512_bf16": True}, faster), ({}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found, raising=False)
        assert has_bf16(CPU) == expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not has_bf16(CPU)


@pytest.mark.parametrize(("slowed", "faster"), [(True, False), (False, True)])
def test_bfloat16_is_faster_where_its_passes_take_less_time(monkeypatch, slowed, faster):
    seconds = count()
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: next(seconds))
    plain = hardware.conv2d

    def conv2d(x, weight, **options):
        if torch.is_autocast_enabled("cpu") == slowed:
            next(seconds)
        return plain(x, weight, **options)

    monkeypatch.setattr(hardware, "conv2d", conv2d)
    assert hardware._is_faster_in_bf16.__wrapped__() is faster


def test_a_processor_is_called_by_its_model_or_else_by_its_architecture(monkeypatch, tmp_path):
    table = tmp_path / "cpuinfo"
    monkeypatch.setattr(hardware, "Path", lambda _: table)
    assert device_name(CPU) == (platform.processor() or platform.machine())
    table.write_text("processor\t: 0\nmodel name\t: A Processor @ 2 GHz\n\nmodel name\t: Another\n")
    assert device_name(CPU) == "A Processor @ 2 GHz"
