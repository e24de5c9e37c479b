"""The training loss, without storing the logits of a whole batch."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from glassformer.kernels.packed_linear import PACKED
from glassformer.nn.model import Decoder
from glassformer.nn.step import Step

IGNORED = -100
CHUNK_VALUES = 1 << 22  # logits stored at a time: 16 MB in float32
CHUNK_ROWS = 256  # tokens; no chunk has fewer, because each reads W and adds to dW once
Reduction = Literal["sum", "none"]


class LinearCrossEntropy(torch.autograd.Function):
    """Sum of -log softmax(x W^T)[target], in nats; computes the gradients chunk by chunk in the forward pass.

    The logits [B, T, V] are the largest tensor of a training step, and are reduced to one number: the softmax of a
    chunk becomes the gradient of its logits, is used for dx and dW, and is dropped. `smoothing` moves that share of the
    target probability to all tokens equally.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, smoothing: float) -> Tensor:
        needs_grad = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        w = weight.to(dtype)
        dx = torch.zeros_like(x) if needs_grad else None
        dw = torch.zeros_like(weight, dtype=torch.float32) if needs_grad else None
        total = torch.zeros((), dtype=torch.float32, device=x.device)
        for part in chunks(len(x), len(weight)):
            xs, ts = x[part].to(dtype), targets[part]
            counted = ts != IGNORED
            at = ts.clamp(min=0).unsqueeze(-1)
            logits = (xs @ w.T).float()  # [n, V]
            grad = logits.softmax(-1)
            log_z = logits.amax(-1) - grad.amax(-1).log()  # softmax = exp(logit) / Z, at the largest: one exp for both
            target_logits = logits.gather(-1, at).squeeze(-1)
            if smoothing:
                target_logits = torch.lerp(target_logits, logits.mean(-1), smoothing)
            total += torch.where(counted, log_z - target_logits, 0.0).sum()
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


def chunks(n: int, vocab_size: int) -> list[slice]:
    """Split `n` tokens into chunks of at most `CHUNK_VALUES` logits."""
    size = max(CHUNK_ROWS, CHUNK_VALUES // vocab_size)
    return [slice(begin, begin + size) for begin in range(0, n, size)]


def token_losses(
    x: Float[Tensor, "N D"], weight: Float[Tensor, "V D"], targets: Int[Tensor, "N"], smoothing: float
) -> Float[Tensor, "N"]:
    """Return the loss of each token, 0 for ignored targets. The backward pass recomputes the logits of each chunk."""

    def losses(xs: Tensor, ts: Tensor) -> Tensor:
        logits = (xs @ weight.T).float()
        return F.cross_entropy(logits, ts, reduction="none", ignore_index=IGNORED, label_smoothing=smoothing)

    parts = [checkpoint(losses, x[part], targets[part], use_reentrant=False) for part in chunks(len(x), len(weight))]
    return torch.cat(parts) if parts else x.new_zeros(0, dtype=torch.float32)  # pyright: ignore


def linear_cross_entropy(
    x: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, "N"],
    dtype: torch.dtype | None = None,
    smoothing: float = 0.0,
    reduction: Reduction = "sum",
) -> Float[Tensor, "*N"]:
    """Return F.cross_entropy(x @ weight.T, targets, reduction=reduction), in nats.

    Args:
        targets: token ids; -100 is ignored.
        dtype: of the matrix products; x's own by default.
        smoothing: from 0 to 1, mixes the target with the uniform distribution ("Rethinking the Inception Architecture
            for Computer Vision", Szegedy et al. 2016, section 7; 0.1 in Vaswani et al. 2017).
        reduction: "sum", or "none" for one loss per token.

    Raises:
        ValueError: smoothing is out of range.
    """
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing must be a number from 0 to 1, got {smoothing!r}")
    dtype = dtype or x.dtype
    with torch.autocast(x.device.type, enabled=False):
        if reduction == "none":
            return token_losses(x.to(dtype), weight.to(dtype), targets, smoothing)
        return LinearCrossEntropy.apply(x, weight, targets, dtype, smoothing)  # pyright: ignore[reportReturnType]


def next_token_loss(
    model: Decoder,
    ids: Int[Tensor, "B T"],
    targets: Int[Tensor, "B T"],
    step: Step,
    dtype: torch.dtype | None = None,
    smoothing: float = 0.0,
    reduction: Reduction = "sum",
) -> Float[Tensor, "*B"]:
    """Return -log p(target) in nats: the sum over all targets but -100, or [B, T] with reduction "none".

    An encoder-decoder's source is that of `step`. Other arguments as in `linear_cross_entropy`.
    """
    hidden = model.hidden(ids, step).flatten(0, 1)
    loss = head_loss(model, hidden, targets.flatten(), step, dtype, smoothing, reduction)
    return loss if reduction == "sum" else loss.view_as(targets)


def head_loss(
    model: Decoder,
    hidden: Float[Tensor, "N D"],
    targets: Int[Tensor, "N"],
    step: Step,
    dtype: torch.dtype | None = None,
    smoothing: float = 0.0,
    reduction: Reduction = "sum",
) -> Float[Tensor, "*N"]:
    """Return the loss from the input of the head.

    Stores all logits only if the head has a bias, a softcap or a packed matrix, whose product quantizes activations.
    """
    packed = isinstance(model.head, PACKED)
    if not packed and not model.config.head_bias and model.config.logit_softcap is None:
        x = model.scaled(hidden)
        return linear_cross_entropy(x, model.head.weight, targets, dtype, smoothing, reduction)
    logits = model.logits(hidden, step).float()
    return F.cross_entropy(logits, targets, reduction=reduction, ignore_index=IGNORED, label_smoothing=smoothing)
