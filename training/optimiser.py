"""Muon for matrices, AdamW for the rest.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) replaces the momentum of a weight matrix by the
nearest matrix whose singular values are all one. A convolution [out, in, h, w] counts as a matrix [out, in * h * w];
torch's own Muon takes two-dimensional weights only.
"""

from typing import Any

import torch
from torch import Tensor, nn

LARGEST_BLOCK = 128
"""Matrices are made orthogonal in blocks of at most so many rows: the cost grows with the rows, not so the benefit."""


def parameter_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(matrices for Muon, the rest for AdamW): embeddings, biases, norms, first and last layers are the rest."""
    embedded = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_edge = any(edge in name for edge in ("conv_in", "conv_out", "quant_conv"))
        is_matrix = parameter.ndim >= 2 and not is_edge and id(parameter) not in embedded
        (matrices if is_matrix else rest).append(parameter)
    return matrices, rest


class Muon:
    """Both optimisers behind one `step(rate)`.

    The rate is AdamW's: an orthogonal update is scaled by 0.2 * sqrt(larger side), the usual size of AdamW's
    (Liu et al. 2025, arXiv:2502.16982, section 2.2).
    """

    def __init__(
        self, groups: tuple[list[nn.Parameter], list[nn.Parameter]], dtype: torch.dtype = torch.float32
    ) -> None:
        """`dtype` is what updates are made orthogonal in: bfloat16 is enough, where the hardware multiplies it fast."""
        self.matrices, rest = groups
        self.dtype = dtype
        self.momenta = [torch.zeros_like(p) for p in self.matrices]
        self.adam = torch.optim.AdamW(rest, betas=(0.9, 0.99), weight_decay=0.0)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One step with the gradients that are there; parameters without one stay."""
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        for weight, momentum in zip(self.matrices, self.momenta, strict=True):
            if weight.grad is None:
                continue
            momentum.lerp_(weight.grad, 0.05)
            matrix = weight.grad.lerp(momentum, 0.95).flatten(1)  # [out, in * h * w]
            scale = 0.2 * max(matrix.shape) ** 0.5
            weight.add_(orthogonal(matrix, self.dtype).view_as(weight), alpha=-rate * scale)

    def zero_grad(self) -> None:
        self.adam.zero_grad()
        for weight in self.matrices:
            weight.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {"momenta": self.momenta, "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for mine, saved in zip(self.momenta, state["momenta"], strict=True):
            mine.copy_(saved)
        self.adam.load_state_dict(state["adam"])


def orthogonal(matrix: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """`matrix` [rows, columns], in blocks along its smaller side, with singular values pushed to about one.

    Five quintic Newton-Schulz steps in `dtype` with Jordan's coefficients; values end between about 0.7 and 1.2.
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.T if is_tall else matrix
    x = wide.reshape(_blocks(wide.shape[0]), -1, wide.shape[1])  # [blocks, rows, columns]
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(dtype)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    x = x.reshape(wide.shape).to(matrix.dtype)
    return x.T.contiguous() if is_tall else x


def _blocks(rows: int) -> int:
    """The fewest equal blocks of at most LARGEST_BLOCK rows."""
    return next(count for count in range(1, rows + 1) if rows % count == 0 and rows // count <= LARGEST_BLOCK)
