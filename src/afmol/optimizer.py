"""Muon: steps of matrices are orthogonal, so that no direction of them is learned much faster than others.

    quantity                                     variable    shape
    momentum M = b M + (1 - b) G                 momentum    that of the weights
    gradient (1 - b) G + b M, flattened          wanted      out, in (the further axes of a convolution too)
    U V^T of its U S V^T, by Newton and Schulz   orthogonal  out, in
    step: rate * 0.2 sqrt(max(out, in)) U V^T                with the root mean square of a step of AdamW, so that one
                                                             learning rate and one decay do for both

Sources: K. Jordan et al., Muon: an optimizer for hidden layers in neural networks (2024), which also gives the
polynomial; J. Liu et al., Muon is scalable for LLM training, arXiv 2502.16982, for the length of a step. Not
torch.optim.Muon, which takes matrices alone and no convolutions.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

MOMENTUM = 0.95
SMALLEST = 32
"""Matrices with a side shorter than this are AdamW's: their few rows say little of one another."""
POLYNOMIAL, ROUNDS = (3.4445, -4.7750, 2.0315), 5
"""a x + b x^3 + c x^5 on the singular values, so often: all from 0.001 to 1 end between 0.7 and 1.2."""


class Muon(torch.optim.AdamW):
    """Muon for the groups of parameters that say `orthogonal`, AdamW for the others."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyrefly: ignore[bad-override]
        """One step; the gradients of orthogonal groups are gone afterwards."""
        for group in self.param_groups:
            for parameter in group["params"] if group["orthogonal"] else ():
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group["lr"], group["weight_decay"])
                    parameter.grad = None  # AdamW passes by what has none
        return super().step(closure)

    def _step(self, weights: nn.Parameter, gradient: Tensor, rate: float, decay: float) -> None:
        state = self.state[weights]
        state.setdefault("step", torch.zeros(())).add_(1)  # AdamW looks for it in whatever is loaded
        momentum = state.setdefault("momentum", torch.zeros_like(weights))
        momentum.lerp_(gradient, 1 - MOMENTUM)
        wanted = gradient.lerp(momentum, MOMENTUM).flatten(1)
        weights.mul_(1 - rate * decay)
        length = 0.2 * max(wanted.shape) ** 0.5
        weights.add_(orthogonal(wanted).view_as(weights), alpha=-rate * length)


def parameter_groups(model: nn.Module, weight_decay: float, *, orthogonal: bool = False) -> list[dict[str, Any]]:
    """The parameters of a model: weights, which decay, biases and norms, which do not; what is frozen is left out.

    For `Muon` (`orthogonal`) the weights that learn by orthogonal steps are a group of their own, before these.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    weights, others = ([p for p in trained if (p.ndim > 1) == many] for many in (True, False))
    decays, stays = {"params": weights, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}
    if not orthogonal:
        return [decays, stays]
    large, small = (
        [p for p in weights if (min(p.flatten(1).shape) >= SMALLEST) == is_large] for is_large in (True, False)
    )
    decays, stays = decays | {"params": small, "orthogonal": False}, stays | {"orthogonal": False}
    return [{"params": large, "weight_decay": weight_decay, "orthogonal": True}, decays, stays]


def orthogonal(matrix: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """Nearly U V^T of the matrix's U S V^T: its singular values become 0.7 to 1.2."""
    a, b, c = POLYNOMIAL
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-12)
    for _ in range(ROUNDS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if tall else x
