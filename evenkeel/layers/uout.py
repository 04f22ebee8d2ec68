"""Uout: dropout's uniform variant, x (1 + r) with r ~ U(-beta, beta), whose noise is small and known exactly."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from evenkeel.errors import EvenkeelError
from evenkeel.graph.kinds import Kind
from evenkeel.theory.li2018 import equal_noise_p


def uout(x: Tensor, beta: float = 0.1, training: bool = True, *, generator: torch.Generator | None = None) -> Tensor:
    """Multiply every element by a factor of its own, uniform around 1: the functional form of `Uout`.

    `x (1 + r)`, r ~ U(-beta, beta), one r an element (Li et al. 2018, section 5); see `Uout` for what it is good for.

    Args:
        x: floating or complex, of any shape; a complex element is scaled by one real factor.
        beta: half width of the noise, 0 to 1; its variance is beta^2 / 3.
        training: if false, x is returned.
        generator: where r is drawn from, on x's device; torch's own, set by `torch.manual_seed`, if None. A compiled
            graph breaks at a generator, as at any that torch is given.

    Returns:
        A tensor of x's shape, dtype and device; x itself if not training or if beta is 0.

    Raises:
        EvenkeelError: beta is not within 0 and 1, or x is not of 16 bits or more, floating or complex.

    >>> x = torch.tensor([0.0, 1.0, -2.0])
    >>> y = uout(x, beta=0.5)
    >>> float(y[0]), bool(0.5 <= y[1] <= 1.5), bool(-3 <= y[2] <= -1)
    (0.0, True, True)
    >>> uout(x, beta=0.5, training=False) is x
    True
    """
    _require_beta(beta)
    if not (x.is_floating_point() or x.is_complex()) or x.dtype.itemsize < 2:
        raise EvenkeelError(
            f"Uout was given a tensor of {x.dtype}, which cannot hold x (1 + r): convert it first, such as by x.float()"
        )
    if not training or beta == 0:
        return x
    # In bfloat16, r would have 256 values and a mean below 0: so x of 16 bits is rounded once, at the end.
    wide = torch.float64 if x.dtype in (torch.float64, torch.complex128) else torch.float32
    if generator is None:
        factor = torch.rand_like(x, dtype=wide)
    else:
        factor = torch.rand(x.shape, generator=generator, dtype=wide, device=x.device)
    factor = factor.mul_(2 * beta).add_(1 - beta)
    return (x * factor).to(x.dtype)


class Uout(nn.Module):
    """Dropout's uniform variant: in training every element is multiplied by 1 + r, r ~ U(-beta, beta); in eval, by 1.

    `X = x + x r` has mean x and second moment `(1 + beta^2 / 3) x^2`, so a norm behind it stores a variance that is
    a little too large: `Var_eval / Var_train = 3 / (3 + beta^2)` for x of mean 0 (Li et al. 2018, section 5, equation
    15), and `v / (v + beta^2 / 3 (c^2 + v))` for mean c and variance v. With mean 0 and beta 0.1 that is 0.9967; with
    dropout of rate 0.1 it is 0.9.

    Much of that is because the noise is weak. Dropout of drop rate p multiplies by noise of variance p / (1 - p), so
    the rate of equal noise is `p = 1 - keep = beta^2 / (3 + beta^2)`, the attribute `p`:

    | beta | p      |
    |------|--------|
    | 0.1  | 0.33 % |
    | 0.3  | 2.9 %  |
    | 0.5  | 7.7 %  |
    | 1    | 25 %   |

    No Uout is as noisy as dropout of more than 25 %. To replace one of rate p <= 1/4 by its equal, take
    `beta = sqrt(3 p / (1 - p))`: at a norm with nothing but weights in between, the variance shift is equal, too.

    Several public implementations are not Uout: they *add* the noise, `x + r`, which does not grow with x, or draw r
    between -beta and -beta, a constant. To check one: `copy(torch.zeros(1000))` has to be all zeros in train mode,
    and `copy(torch.ones(1000))` has to vary, between 1 - beta and 1 + beta.

    Args:
        beta: half width of the noise, 0 to 1; the paper tries 0.1 to 0.5.

    Shape:
        Input and output: any shape, floating or complex; dtype and device are kept.

    Raises:
        EvenkeelError: beta is not within 0 and 1; in use, x is not of 16 bits or more, floating or complex.

    Attributes:
        beta: half width of the noise; may be set, such as by a schedule.

    >>> layer = Uout(0.5)
    >>> layer, round(layer.p, 4)
    (Uout(beta=0.5), 0.0769)
    >>> y = layer(torch.ones(1000))
    >>> bool(y.min() >= 0.5), bool(y.max() <= 1.5), bool(y.std() > 0.2), layer(torch.zeros(1000)).any().item()
    (True, True, True, False)
    >>> torch.equal(layer.eval()(y), y)
    True
    """

    evenkeel_kind = Kind.DROPOUT
    evenkeel_layer = True  # whose source lines are not the model's

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__()
        _require_beta(beta)
        self.beta = beta

    @property
    def p(self) -> float:
        """Drop rate of the dropout of equal noise, `beta^2 / (3 + beta^2)`: p / (1 - p) is the noise's variance."""
        return float(equal_noise_p(self.beta))

    def forward(self, x: Tensor) -> Tensor:
        """Return x (1 + r) in train mode, x in eval mode."""
        return uout(x, self.beta, self.training)

    def extra_repr(self) -> str:
        """What the module's picture shows of it."""
        return f"beta={self.beta:g}"


def _require_beta(beta: float) -> None:
    if not 0 <= beta <= 1:  # not a number is neither
        raise EvenkeelError(
            f"beta is {beta}, but Uout draws r from U(-beta, beta) with 0 <= beta <= 1: give a number in that range, "
            "such as 0.1"
        )
