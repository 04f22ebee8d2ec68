"""The papers' nets: published counts, the place that each name stands for, and the same weights under all of them."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import evenkeel as ek
from evenkeel.errors import EvenkeelError
from evenkeel.graph.kinds import Kind
from evenkeel.layers.ic import IC
from evenkeel.papers.lab.nets import NETS, Noise, build

HALF = ["Dropout", 0.5]
HEAD = ["last", "head-before", "head-after"]
POSITIONS = [f"P{i}" for i in range(8)]
ICS = ["relu-ic-conv", "ic-conv-relu", "conv-relu-ic", "relu-norm-conv"]

# Name, arguments, and all places it has.
TINY = {
    "mlp": ("mlp", {"widths": [6, 5], "inputs": 64}, ["hidden", "last"]),
    "mlp norm": ("mlp", {"widths": [6, 5], "inputs": 64, "norm": True, "activation": "selu"}, ["hidden", "last"]),
    "vgg": ("vgg", {"stacks": 3, "width": 1, "size": 8, "channels": 1}, ["hendrycks2016", "last"]),
    "vgg norm": ("vgg", {"stacks": 3, "width": 1, "size": 8, "channels": 1, "norm": True}, ["hendrycks2016", "last"]),
    "resnet": ("resnet", {"depth": 8, "width": 2, "channels": 1}, ["a", "b", *HEAD, *ICS]),
    "resnet bottleneck": (
        "resnet",
        {"depth": 11, "width": 2, "channels": 1, "block": "bottleneck"},
        ["a", "b", *HEAD, *ICS],
    ),
    "preresnet": (
        "preresnet",
        {"depth": 8, "width": 2, "channels": 1, "block": "basic"},
        ["a", "b", *POSITIONS, *HEAD, *ICS],
    ),
    "preresnet bottleneck": (
        "preresnet",
        {"depth": 11, "width": 2, "channels": 1},
        ["a", "b", *POSITIONS, *HEAD, *ICS],
    ),
    "resnext": (
        "resnext",
        {"depth": 11, "cardinality": 2, "base_width": 1, "width": 2, "channels": 1},
        ["a", "b", *HEAD],
    ),
    "wrn": ("wrn", {"depth": 10, "widen": 2, "width": 2, "channels": 1}, ["a", "b", *POSITIONS, *HEAD]),
    "densenet": ("densenet", {"depth": 7, "growth": 2, "channels": 1}, ["a", "b", "conv", *HEAD]),
    "densenet-bc": (
        "densenet",
        {"depth": 10, "growth": 2, "channels": 1, "bottleneck": True},
        ["a", "b", "conv", *HEAD],
    ),
}
EVERY_PLACE = [(net, place) for net, (_, _, places) in TINY.items() for place in places]
DIGITS = torch.linspace(-1, 1, 4 * 64).view(4, 1, 8, 8).sin()


def tiny(net, **arguments):
    name, size, _ = TINY[net]
    return build(name, **size | arguments)


def picture(net, **arguments):
    return str(ek.trace(tiny(net, **arguments), DIGITS))


def fed(net, place):
    """Names of the layers that read a dropout, and the dropouts."""
    graph = ek.trace(tiny(net, places=place, noise=HALF), DIGITS)
    dropouts = graph.of(Kind.DROPOUT)
    return [user.name.rpartition(".")[2] for dropout in dropouts for user in dropout.users], dropouts


@pytest.mark.parametrize(
    ("name", "arguments", "millions", "norms"),
    [
        # li2018, Table 2, and the number of norms in its Figure 4
        ("preresnet", {"depth": 164}, "1.703", 163),
        ("preresnet", {"depth": 164, "classes": 100}, "1.726", 163),
        ("resnext", {}, "34.43", 31),
        ("resnext", {"classes": 100}, "34.52", 31),
        ("wrn", {}, "36.48", 25),
        ("wrn", {"classes": 100}, "36.54", 25),
        ("densenet", {"depth": 100, "bottleneck": True}, "0.77", 99),
        ("densenet", {"depth": 100, "bottleneck": True, "classes": 100}, "0.80", 99),
        # kim2023's, and the same depth of bottlenecks
        ("preresnet", {"depth": 110, "block": "basic"}, "1.731", 109),
        ("preresnet", {"depth": 110}, "1.147", 109),
        # He et al., Huang et al.
        ("resnet", {"depth": 110}, "1.73", 111),
        ("densenet", {"depth": 40}, "1.02", 39),
        # hendrycks2016: 784 -> 7 x 256 -> 10; VGG-16's convolutions, two layers of 512 and the classifier
        ("mlp", {}, f"{(785 * 256 + 6 * 257 * 256 + 257 * 10) / 1e6:.6f}", 0),
        ("vgg", {}, f"{(14_714_688 + 2 * 513 * 512 + 513 * 10) / 1e6:.6f}", 0),
    ],
)
def test_parameters_are_those_published(name, arguments, millions, norms):
    with torch.device("meta"):
        net = build(name, **arguments)
    count = sum(parameter.numel() for parameter in net.parameters())
    digits = len(millions.partition(".")[2])
    assert f"{count / 1e6:.{digits}f}" == millions
    assert sum(isinstance(module, nn.BatchNorm2d) for module in net.modules()) == norms


@pytest.mark.parametrize(
    ("net", "places", "expected"),
    [
        ("mlp", "none", "i . W A W A W o"),
        ("mlp", "hidden", "i . W A D W A D W o"),
        ("mlp", "last", "i . W A W A D W o"),
        ("mlp norm", "hidden", "i . W N A D W N A D W o"),
        ("vgg", "none", "i W A W A P W A W A P W A W A W A P . W A W A W o"),
        ("vgg", "hendrycks2016", "i W A D W A P W A D W A P W A D W A D W A P . D W A D W A D W o"),
        ("resnet", "a", "i W N A W N A W D N + A W N W N A W D N + A W N W N A W D N + A P . W o"),
        ("resnet", "b", "i W N A W N A D W N + A W N W N A D W N + A W N W N A D W N + A P . W o"),
        ("preresnet", "none", "i W N A W N A W + W N A W N A W + W N A W N A W + N A P . W o"),
        ("preresnet", "P0", "i W D N A W N A W + D W N A W N A W + D W N A W N A W + N A P . W o"),
        ("preresnet", "P7", "i W N A W N A W D + W N A W N A W D + W N A W N A W D + N A P . W o"),
        ("preresnet", "head-before", "i W N A W N A W + W N A W N A W + W N A W N A W + N A D P . W o"),
        ("preresnet", "head-after", "i W N A W N A W + W N A W N A W + W N A W N A W + N A P . D W o"),
        ("preresnet", "b+last", "i W N A W N A D W + W N A W N A D W + W N A W N A D W + N A P . D W o"),
        ("preresnet", "relu-ic-conv", "i W A N D W A N D W + W A N D W A N D W + W A N D W A N D W + A N D P . W o"),
        ("preresnet", "ic-conv-relu", "i W A N D W A N D W A + W N D W A N D W A + W N D W A N D W A + N D P . W o"),
        ("preresnet", "conv-relu-ic", "i W A N D W A N D W A N D + W W A N D W A N D + W W A N D W A N D + P . W o"),
        ("preresnet", "relu-norm-conv+b", "i W A N W A N D W + W A N W A N D W + W A N W A N D W + A N P . W o"),
        ("wrn", "b", "i W N A W W N A D W + N A W W N A D W + N A W W N A D W + N A P . W o"),
        ("densenet", "conv", "i W N A W D c N A W D P N A W D c N A W D P N A W D c N A P . W o"),
        ("densenet-bc", "a", "i W N A W D N A W c N A W P N A W D N A W c N A W P N A W D N A W c N A P . W o"),
    ],
)
def test_pictures(net, places, expected):
    assert picture(net, places=places, noise=HALF) == expected


@pytest.mark.parametrize(
    ("net", "last"), [("resnet", 2), ("preresnet bottleneck", 3), ("resnext", 3), ("wrn", 2), ("densenet-bc", 2)]
)
def test_li2018s_places_feed_the_last_norm_and_the_last_weight_of_every_block(net, last):
    before_norm, dropouts = fed(net, "a")
    assert before_norm == [f"norm{last}"] * 3
    assert all(dropout.inputs[0].kind is Kind.WEIGHT for dropout in dropouts)
    before_weight, dropouts = fed(net, "b")
    assert before_weight == [f"conv{last}"] * 3
    assert all(dropout.inputs[0].kind is Kind.ACTIVATION for dropout in dropouts)
    assert fed(net, "last")[0] == ["fc"]


@pytest.mark.parametrize(("net", "weights"), [("preresnet", 2), ("preresnet bottleneck", 3)])
def test_kim2023s_positions_are_around_the_first_and_the_last_norm(net, weights):
    following = ["norm1", "act1", "conv1", f"norm{weights}", f"act{weights}", f"conv{weights}"]
    for position, name in enumerate(following, start=1):
        assert fed(net, f"P{position}")[0] == [name] * 3
    assert fed(net, "P7")[0] == ["add"] * 3
    _, dropouts = fed(net, "P0")
    assert len(dropouts) == 3
    assert all(len(dropout.users) == 2 for dropout in dropouts)  # branch and shortcut


def test_a_wide_blocks_convolutional_shortcut_reads_the_first_activation():
    for position in ("P1", "P2"):
        assert len(fed("wrn", position)[0]) == 3
    reading = fed("wrn", "P3")[0]
    assert reading == ["conv1"] * 3, "the shortcut forks off before"


def test_hendrycks2016s_rates():
    drops = {name: module.p for name, module in build("vgg", width=1).named_modules() if isinstance(module, nn.Dropout)}
    stacks = {f"drop_conv{layer}": 0.4 for layer in (4, 6, 7, 9, 10, 12, 13)}
    assert drops == {"drop_conv2": 0.3} | stacks | dict.fromkeys(["drop_fc1", "drop_fc2", "drop_fc"], 0.5)
    given = tiny("vgg", rates=[0.1, 0.2, 0.3, 0.4])
    assert [m.p for m in given.modules() if isinstance(m, nn.Dropout)] == [0.1, 0.2, 0.3, 0.3, 0.4, 0.4, 0.4]
    assert [m.beta for m in tiny("vgg", noise=["Uout", 0.2]).modules() if isinstance(m, ek.Uout)] == [0.2] * 7


@pytest.mark.parametrize(("net", "place"), EVERY_PLACE)
def test_every_place_of_every_net_trains_and_keeps_the_weights(net, place):
    dropping = "relu-norm-conv+b" if place == "relu-norm-conv" else place
    bare, noisy = tiny(net, places="none"), tiny(net, places=dropping, noise=HALF)
    drops = [module for module in noisy.modules() if isinstance(module, nn.Dropout)]
    assert drops
    assert not any(isinstance(module, nn.Dropout) for module in bare.modules())
    noisy(DIGITS).square().sum().backward()
    assert all(parameter.grad is not None for parameter in noisy.parameters())
    if place in ICS:
        return
    assert list(noisy.state_dict()) == list(bare.state_dict())
    bare.load_state_dict(noisy.state_dict())
    out = bare.eval()(DIGITS)
    assert out.shape == (4, 10)
    assert torch.equal(noisy.eval()(DIGITS), out)


@pytest.mark.parametrize("net", TINY)
def test_a_net_has_the_places_it_is_tested_at(net):
    places = TINY[net][2]
    with pytest.raises(EvenkeelError, match=r"has no place 'nowhere'") as caught:
        tiny(net, places="nowhere", noise=HALF)
    assert set(str(caught.value).partition("one or more of ")[2].split(", ")[:-1]) == set(places)


@pytest.mark.parametrize("noise", [["Dropout", 0.0], ["Dropout2d", 0.3], ["AlphaDropout", 0.3], ["Uout", 0.5]])
def test_every_kind_of_noise_goes_into_blocks_and_ic(noise):
    kind = {"Uout": ek.Uout}.get(noise[0]) or getattr(nn, noise[0])
    for place, count in (("a", 3), ("P0+P6", 6), ("relu-ic-conv", 7)):
        net = tiny("preresnet", places=place, noise=noise)
        assert sum(isinstance(module, kind) for module in net.modules()) == count
        assert net(DIGITS).isfinite().all()


def test_an_order_of_chen2019_is_made_of_ics_whose_keys_do_not_depend_on_the_noise():
    nets = [tiny("preresnet", places="relu-ic-conv", noise=noise) for noise in (["Dropout", 0.05], ["Uout", 0.1])]
    assert sum(isinstance(module, IC) for module in nets[0].modules()) == 7
    assert list(nets[0].state_dict()) == list(nets[1].state_dict())
    both = [str(tiny(net, places="ic-conv-relu", noise=HALF)) for net in ("resnet", "preresnet")]
    assert both[0] == both[1]


def test_a_noise_makes_a_fresh_module_each_time():
    noise = Noise("Dropout", 0.3)
    assert noise() is not noise()
    assert len({id(m) for m in tiny("preresnet", places="b", noise=noise).modules() if isinstance(m, nn.Dropout)}) == 3


def test_convolutions_start_at_hes_normal_by_fan_out():
    net = build("preresnet", depth=8, width=32, block="basic")
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            fan = module.out_channels * module.kernel_size[0] ** 2
            assert float(module.weight.detach().var()) * fan == pytest.approx(2, rel=0.1)
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("net", ["vgg", "preresnet", "densenet"])
def test_a_net_compiles_into_one_graph(net):
    module = tiny(net, **({} if net == "vgg" else {"places": "b", "noise": HALF})).eval()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    assert torch.equal(compiled(DIGITS), module(DIGITS))


def test_arguments_go_through_json():
    for net, (name, size, places) in TINY.items():
        arguments = json.loads(json.dumps(size | {"places": places[0], "noise": ["Dropout", 0.1]}))
        assert str(build(name, **arguments)) == str(tiny(net, places=places[0], noise=Noise("Dropout", 0.1)))


def test_images_may_be_of_any_size():
    for shape in ((2, 3, 32, 32), (2, 3, 9, 13), (2, 3, 4, 4)):
        assert tiny("preresnet", channels=3)(torch.ones(shape)).shape == (2, 10)
        assert tiny("densenet-bc", channels=3)(torch.ones(shape)).shape == (2, 10)
    assert build("vgg", width=1, size=40)(torch.ones(2, 3, 40, 40)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("alexnet", {}, f"no net 'alexnet': give one of {', '.join(NETS)}"),
        ("wrn", {"dept": 16}, "wrn has no argument 'dept': give some of depth, widen, width, classes,"),
        ("preresnet", {}, "preresnet was given no depth: give one, such as depth=20"),
        ("preresnet", {"depth": 21}, "depth is 21, but a preresnet of bottleneck blocks has 9 n .* give 20 or 29"),
        ("preresnet", {"depth": 2}, "depth is 2, .* give 11$"),
        ("preresnet", {"depth": 21, "block": "basic"}, "of basic blocks has 6 n . 2 weight layers: give 20 or 26"),
        ("resnet", {"depth": 20, "block": "wide"}, "block of resnet is 'wide': give 'basic' or 'bottleneck'"),
        ("wrn", {"depth": 20}, "depth is 20, but wrn has 6 n . 4 weight layers: give 16 or 22"),
        ("densenet", {"depth": 41}, "depth is 41, but a densenet has 3 n . 4 weight layers: give 40 or 43"),
        ("densenet", {"depth": 43, "bottleneck": True}, "a densenet of bottlenecks has 6 n .* give 40 or 46"),
        ("densenet", {"depth": 40, "reduction": 1.5}, "reduction is 1.5: give"),
        ("preresnet", {"depth": 20, "places": "a"}, "places='a' of preresnet has no noise: give one"),
        ("resnet", {"depth": 20, "places": "P6", "noise": HALF}, "resnet has no place 'P6' .* one or more of a, b, "),
        ("wrn", {"places": "none+b", "noise": HALF}, "wrn has no place 'none'"),
        ("wrn", {"places": "b+P6", "noise": HALF}, "'b' and 'P6' in places='b.P6' both put noise before conv2 of wrn"),
        ("wrn", {"places": "last+last", "noise": HALF}, "'last' and 'last' .* both put noise before fc of wrn"),
        (
            "preresnet",
            {"depth": 20, "places": "relu-ic-conv+P6", "noise": HALF},
            "preresnet of relu-ic-conv has no place 'P6' .* one or more of relu-ic-conv, last, head-before",
        ),
        ("wrn", {"places": "last", "noise": ["Dropout2d", 0.5]}, "'last' of wrn puts Dropout2d before fc, .* Dropout$"),
        ("mlp", {"places": "hidden", "noise": ["Dropout2d", 0.5]}, "puts Dropout2d before fc2"),
        ("mlp", {"noise": ["Drop", 0.5]}, "noise has the kind 'Drop': give one of Dropout, Dropout2d, AlphaDropout"),
        ("mlp", {"noise": ["Dropout", 1]}, "noise is Dropout of rate 1: give the rate to drop, 0 to below 1"),
        ("mlp", {"noise": ["Uout", 2]}, "noise is Uout of beta 2: give a beta from 0 to 1"),
        ("mlp", {"noise": ["Dropout"]}, r"noise is \['Dropout'\]: give its kind and its amount"),
        ("mlp", {"widths": []}, "widths of mlp is empty"),
        ("mlp", {"widths": [3, 0]}, r"widths\[1\] is 0: give a whole number, 1 or more"),
        ("mlp", {"activation": "step"}, "no activation 'step': give one of relu, elu, gelu, identity"),
        ("wrn", {"widen": 0}, "widen is 0: give a whole number"),
        ("vgg", {"stacks": 6, "size": 64}, "stacks of vgg is 6: give 1 to 5"),
        ("vgg", {"size": 8}, "size of vgg is 8, but 5 stacks halve it 5 times: give 32 or more, or fewer stacks"),
        ("vgg", {"rates": [0.5]}, "rates of vgg has 1 numbers: give 4 rates"),
        ("vgg", {"rates": [0.5] * 4, "noise": HALF}, "vgg was given noise .* and rates .*, both: give one of them"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_sentence(name, arguments, message):
    with torch.device("meta"), pytest.raises(EvenkeelError, match=message):
        build(name, **arguments)
