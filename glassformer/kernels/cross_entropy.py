"""The training loss, without ever holding the logits of a whole batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from glassformer.nn.model import Decoder
from glassformer.nn.step import Step

IGNORED = -100
CHUNK_VALUES = 1 << 22  # logits held at a time: 16 MB in float32
CHUNK_ROWS = 256  # but no fewer rows than this: each chunk reads W and adds to dW once, however few its rows are


class LinearCrossEntropy(torch.autograd.Function):
    """Sum of -log softmax(x W^T)[target], in nats, chunk by chunk, gradients made on the way forward.

    A [B, T, V] tensor of logits is the largest of a training step, and is read only to be reduced to one number: a
    chunk's softmax is made into the gradient of its logits, used for dx and dW, and dropped. `smoothing` moves that
    part of the target to all words alike.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, smoothing: float) -> Tensor:
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        w = weight.to(dtype)
        dx = torch.zeros_like(x) if wanted else None
        dw = torch.zeros_like(weight, dtype=torch.float32) if wanted else None
        total = torch.zeros((), dtype=torch.float32, device=x.device)
        rows = max(CHUNK_ROWS, CHUNK_VALUES // weight.shape[0])
        for begin in range(0, x.shape[0], rows):
            part = slice(begin, begin + rows)
            xs, ts = x[part].to(dtype), targets[part]
            counted = ts != IGNORED
            at = ts.clamp(min=0).unsqueeze(-1)
            logits = (xs @ w.T).float()  # [n, V]
            grad = logits.softmax(-1)
            log_z = logits.amax(-1) - grad.amax(-1).log()  # softmax = exp(logit) / Z, at the largest: one exp for both
            told = logits.gather(-1, at).squeeze(-1)  # the targets' logits
            if smoothing:
                told = torch.lerp(told, logits.mean(-1), smoothing)
            total += torch.where(counted, log_z - told, 0.0).sum()
            if dx is not None and dw is not None:
                grad.scatter_add_(-1, at, torch.full_like(at, smoothing - 1, dtype=grad.dtype))
                if smoothing:
                    grad.sub_(smoothing / weight.shape[0])
                grad.mul_(counted.unsqueeze(-1))
                grad = grad.to(dtype)
                dx[part] = grad @ w
                dw += grad.T @ xs
        ctx.save_for_backward(dx, dw)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        dx, dw = ctx.saved_tensors
        return dx * grad_output, dw * grad_output, None, None, None


def linear_cross_entropy(
    x: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, "N"],
    dtype: torch.dtype | None = None,
    smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """F.cross_entropy(x @ weight.T, targets, reduction="sum"), products in `dtype` (x's own by default).

    `smoothing`, from 0 to 1, mixes the target with the uniform distribution ("Rethinking the Inception Architecture for
    Computer Vision", Szegedy et al. 2016, section 7; 0.1 in Vaswani et al. 2017). ValueError where it is neither.
    """
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing must be a number from 0 to 1, got {smoothing!r}")
    with torch.autocast(x.device.type, enabled=False):
        return LinearCrossEntropy.apply(x, weight, targets, dtype or x.dtype, smoothing)  # pyright: ignore[reportReturnType]


def next_token_loss(
    model: Decoder,
    ids: Int[Tensor, "B T"],
    targets: Int[Tensor, "B T"],
    step: Step,
    dtype: torch.dtype | None = None,
    smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Sum over all counted targets of -log p(target), in nats. A target of -100 is not counted.

    Of an encoder-decoder too: its source is the step's. `smoothing` as in `linear_cross_entropy`.
    """
    return head_loss(model, model.hidden(ids, step).flatten(0, 1), targets.flatten(), step, dtype, smoothing)


def head_loss(
    model: Decoder,
    hidden: Float[Tensor, "N D"],
    targets: Int[Tensor, "N"],
    step: Step,
    dtype: torch.dtype | None = None,
    smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """`next_token_loss` of what the head reads. Whole logits are held only where the head is more than a product."""
    if not model.config.head_bias and model.config.logit_softcap is None:
        return linear_cross_entropy(model.scaled(hidden), model.head.weight, targets, dtype, smoothing)
    logits = model.logits(hidden, step).float()
    return F.cross_entropy(logits, targets, reduction="sum", ignore_index=IGNORED, label_smoothing=smoothing)
