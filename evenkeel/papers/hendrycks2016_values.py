"""The figures that Hendrycks & Gimpel 2016 print, by arm, and what they say that is not put to the test."""

from __future__ import annotations

# Table 1
SECOND = {"identity": 1, "relu": 0.5, "gelu": 0.425, "tanh": 0.394, "elu": 0.645}
DERIVATIVE = {"identity": 1, "relu": 0.5, "gelu": 0.444, "tanh": 0.216, "elu": 0.671}
MOMENTS = {name: {"second": second, "derivative_second": DERIVATIVE[name]} for name, second in SECOND.items()}

# Figure 4
VGG_ERRORS = {
    "adam-ours": {"test_error": 9.51},
    "adam-he": {"test_error": 10.54},
    "nesterov-ours": {"test_error": 7.41},
    "nesterov-he": {"test_error": 24.65},
}


# Table 2


def _published(*errors: float) -> dict[str, float]:
    return dict(zip(("halfway_error", "halfway_var_error", "final_error", "final_var_error"), errors, strict=True))


DENSENET_ERRORS = {
    "svhn-40-0.8": _published(5.18, 4.19, 1.92, 1.85),
    "cifar10-100-0.8": _published(6.37, 6.07, 5.62, 5.38),
    "cifar100-100-0.7": _published(24.56, 22.48, 23.91, 22.48),
    "cifar100-100-0.8": _published(23.89, 22.86, 22.65, 22.17),
}

LEFT_OUT = (
    "From a worse initialization, it takes the first layer dozens of epochs to get useful gradients (Figure 3).",
    "From He's, the VGG cannot be trained at rates at which it can from the corrected one (section 4.2).",
    "On CIFAR-100, re-estimated variances gain more at keep 0.7 than at 0.8 (Table 2).",
)
