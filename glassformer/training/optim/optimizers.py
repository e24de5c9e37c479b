"""AdamW, and Muon for the hidden matrices, over parameters that lie side by side in one buffer.

A small model's step is bound by the number of operations, not by their size. So all parameters become views of one
flat tensor and all gradients views of another, sorted so that what is treated alike lies together:

    values  [ hidden matrices: 8 x [128,128] | 12 x [128,352] | ... | embeddings | head | norms and biases ]
    grads   [ the same, view for view                                                                      ]
              `------------------ Muon -----------------------------'`------------ AdamW ----------------'

The norm of all gradients, their scaling, their sum over processes and the momentum of all matrices are then one
operation each, whatever the number of layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from glassformer.errors import CheckpointError
from glassformer.training.config import OptimConfig

Role = Literal["hidden", "embed", "head", "scalar"]
ROLES: tuple[Role, ...] = ("hidden", "embed", "head", "scalar")
ALIGN = 16  # values: 64 bytes in float32, a cache line and the widest vector register
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def role_of(name: str, parameter: Tensor) -> Role:
    """What a parameter is to the optimizer, by its place in the model and its number of axes.

    What is looked up (tokens, positions; an encoder's too) is "embed"; what is multiplied is "hidden", but the head.
    """
    if parameter.ndim < 2:
        return "scalar"
    if name.startswith("head."):
        return "head"
    return "embed" if name.rpartition(".")[0].endswith(("embed", "positions")) else "hidden"


@dataclass(frozen=True)
class ParameterStack:
    """`count` parameters of one role and shape, `stride` values apart, from `begin` in the flat buffer."""

    role: Role
    shape: torch.Size
    names: tuple[str, ...]
    begin: int
    stride: int

    @property
    def end(self) -> int:
        return self.begin + self.stride * len(self.names)

    def view(self, flat: Tensor) -> Tensor:
        """[count, *shape] over a buffer laid out like the parameters."""
        strides = torch.empty(self.shape, device="meta").stride()
        return flat.as_strided(
            (len(self.names), *self.shape), (self.stride, *strides), flat.storage_offset() + self.begin
        )

    def items(self, flat: Tensor) -> Iterable[tuple[str, Tensor]]:
        """Each parameter's own part of such a buffer."""
        return zip(self.names, self.view(flat).unbind(0), strict=True)


class FlatParameters:
    """Makes every trainable parameter of `model` a view of `values`, and its `.grad` the same view of `grads`."""

    values: Tensor
    grads: Tensor

    def __init__(self, model: nn.Module):
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.parameters = named
        self.stacks: list[ParameterStack] = []
        begin = 0
        for role in ROLES:
            shapes: dict[torch.Size, list[str]] = {}
            for name, parameter in named.items():
                if role_of(name, parameter) == role:
                    shapes.setdefault(parameter.shape, []).append(name)
            for shape, names in shapes.items():
                stride = -(-shape.numel() // ALIGN) * ALIGN
                self.stacks.append(ParameterStack(role, shape, tuple(names), begin, stride))
                begin = self.stacks[-1].end
        device = next(iter(named.values())).device
        self.values = torch.zeros(begin, dtype=torch.float32, device=device)
        self.grads = torch.zeros_like(self.values)
        for stack in self.stacks:
            for (name, value), (_, grad) in zip(stack.items(self.values), stack.items(self.grads), strict=True):
                parameter = named[name]
                value.copy_(parameter.detach())
                parameter.data, parameter.grad = value, grad

    def stacks_of(self, *roles: Role) -> list[ParameterStack]:
        """The stacks of these roles; neighbours in the buffer."""
        return [stack for stack in self.stacks if stack.role in roles]

    def zero_grad(self) -> None:
        """Gradients to 0, in place: backward adds to these very views."""
        self.grads.zero_()


def orthogonalize(x: Tensor, steps: int = 5) -> Tensor:
    """For each [m, n] matrix of x [N, m, n], nearly U V^T of its singular value decomposition U S V^T.

    Newton-Schulz iteration of the odd quintic a s + b s^3 + c s^5 on the singular values, with the coefficients of
    Keller Jordan (2024, "Muon: an optimizer for hidden layers in neural networks"): values from 0 to 1 end between
    about 0.7 and 1.2. Give matrices that are wider than high, for speed. Computes in x's dtype.
    """
    a, b, c = NEWTON_SCHULZ
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # no singular value above 1
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        poly = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, poly, x, beta=a)
    return x


def update_scale(shape: torch.Size, kind: str) -> float:
    """What an orthogonalized [out, in] update is multiplied by.

    "spectral": sqrt(max(1, out/in)), so that the update's effect on activations does not depend on the shape (Jordan
    2024). "rms": 0.2 sqrt(max(out, in)), so that its entries are about as large as AdamW's (Liu et al. 2025, eq. 4).
    """
    rows, columns = shape[-2], shape[-1]
    return max(1.0, rows / columns) ** 0.5 if kind == "spectral" else 0.2 * max(rows, columns) ** 0.5


class Muon:
    """Momentum, orthogonalized per matrix (Jordan 2024). Same-shaped matrices are iterated as one batch.

        m <- mu m + (1 - mu) g;   u = mu m + (1 - mu) g (Nesterov);   w <- w - lr (scale * orthogonalize(u) + decay w)

    A matrix and its transpose have transposed updates, so those higher than wide join the stack of their transposes.
    """

    def __init__(self, flat: FlatParameters, config: OptimConfig, dtype: torch.dtype):
        self.stacks, self.config, self.dtype = flat.stacks_of("hidden"), config, dtype
        self.begin, self.end = self.stacks[0].begin, self.stacks[-1].end
        self.values, self.grads = flat.values[: self.end], flat.grads[: self.end]
        self.momentum = torch.zeros_like(self.values)
        self.update = torch.zeros_like(self.values)
        groups: dict[tuple[int, int], list[tuple[Tensor, float]]] = {}
        for stack in self.stacks:
            view = stack.view(self.update).flatten(0, -3)
            rows, columns = view.shape[-2:]
            entry = (view.mT if rows > columns else view, update_scale(stack.shape, config.muon_scale))
            groups.setdefault((min(rows, columns), max(rows, columns)), []).append(entry)
        self.groups = list(groups.values())

    def step(self, lr: float) -> None:
        mu = self.config.momentum
        self.momentum.lerp_(self.grads, 1 - mu)
        if self.config.nesterov:
            torch.lerp(self.grads, self.momentum, mu, out=self.update)
        else:
            self.update.copy_(self.momentum)
        for group in self.groups:
            wide = (
                torch.cat([view.to(self.dtype) for view, _ in group]) if len(group) > 1 else group[0][0].to(self.dtype)
            )
            done = orthogonalize(wide).split([len(view) for view, _ in group])
            for (view, scale), result in zip(group, done, strict=True):
                torch.mul(result, scale, out=view) if result.dtype == view.dtype else view.copy_(result).mul_(scale)
        if self.config.weight_decay:
            self.values.mul_(1 - lr * self.config.weight_decay)
        self.values.add_(self.update, alpha=-lr)

    def state(self) -> dict[str, Tensor]:
        """Momentum by parameter name; views, not copies."""
        return {f"momentum.{n}": t for stack in self.stacks for n, t in stack.items(self.momentum)}


class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2): torch's, fused, on flat segments."""

    def __init__(self, flat: FlatParameters, roles: Sequence[Role], config: OptimConfig):
        self.stacks = flat.stacks_of(*roles)
        self.segments: list[tuple[Role, nn.Parameter]] = []
        self.begins: list[int] = []
        for role in roles:
            stacks = flat.stacks_of(role)
            part = slice(stacks[0].begin, stacks[-1].end)
            segment = nn.Parameter(flat.values[part])
            segment.data, segment.grad = flat.values[part], flat.grads[part]
            self.segments.append((role, segment))
            self.begins.append(part.start)
        groups = [
            {"params": [p], "weight_decay": 0.0 if role == "scalar" else config.weight_decay}
            for role, p in self.segments
        ]
        fused = flat.values.device.type in ("cpu", "cuda")
        self.torch = torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.eps, fused=fused)
        for _, segment in self.segments:
            self.torch.state[segment] = {
                "step": torch.zeros((), device=segment.device if fused else "cpu"),
                "exp_avg": torch.zeros_like(segment.data),
                "exp_avg_sq": torch.zeros_like(segment.data),
            }

    def step(self, rates: Mapping[Role, float]) -> None:
        for (role, _), group in zip(self.segments, self.torch.param_groups, strict=True):
            group["lr"] = rates[role]
        self.torch.step()

    def state(self) -> dict[str, Tensor]:
        """Both averages by parameter name (views), and the number of steps that the bias correction counts."""
        found: dict[str, Tensor] = {}
        for (role, segment), begin in zip(self.segments, self.begins, strict=True):
            state = self.torch.state[segment]
            found[f"steps.{role}"] = state["step"]
            for stack in (s for s in self.stacks if s.role == role):
                here = replace(stack, begin=stack.begin - begin)
                for key in ("exp_avg", "exp_avg_sq"):
                    found |= {f"{key}.{n}": t for n, t in here.items(state[key])}
        return found


class Optimizer:
    """The two together: Muon for the blocks' matrices (or none), AdamW for the rest. Owns the parameters' storage."""

    def __init__(self, model: nn.Module, config: OptimConfig, *, muon_dtype: torch.dtype = torch.float32):
        self.config = config
        self.flat = FlatParameters(model)
        with_muon = config.name == "muon" and bool(self.flat.stacks_of("hidden"))
        self.muon = Muon(self.flat, config, muon_dtype) if with_muon else None
        roles: list[Role] = [
            role for role in ROLES if self.flat.stacks_of(role) and not (with_muon and role == "hidden")
        ]
        self.adamw = AdamW(self.flat, roles, config) if roles else None

    def zero_grad(self) -> None:
        self.flat.zero_grad()

    def finish_gradient(self, tokens: int) -> Tensor:
        """Turns summed gradients into the gradient of the mean loss, clipped; returns the norm before clipping.

        `tokens`: counted targets of the whole step, over all micro-batches and processes.
        """
        grads, clip = self.flat.grads, self.config.clip
        norm = torch.linalg.vector_norm(grads) / tokens
        if clip == 0:
            grads.mul_(1 / tokens)
        elif norm.device.type == "cpu":
            grads.mul_(min(1.0, clip / (norm.item() + 1e-6)) / tokens)
        else:  # no wait for the device
            grads.mul_((clip / (norm + 1e-6)).clamp(max=1.0) / tokens)
        return norm

    def step(self, factor: float) -> None:
        """One update with every peak rate times `factor`."""
        config = self.config
        if self.muon is not None:
            self.muon.step(factor * config.peak("hidden"))
        if self.adamw is not None:
            self.adamw.step({role: factor * config.peak(role) for role in ROLES})

    def state_dict(self) -> dict[str, Tensor]:
        """All state as named tensors, per parameter, so that it does not depend on how the buffer is laid out."""
        parts = [part.state() for part in (self.muon, self.adamw) if part is not None]
        return {name: tensor for part in parts for name, tensor in part.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Raises CheckpointError naming every tensor that is missing, extra or of another shape."""
        own = self.state_dict()
        problems = [f"missing {n}" for n in own.keys() - state.keys()] + [
            f"unknown {n}" for n in state.keys() - own.keys()
        ]
        problems += [
            f"{n} has shape {list(state[n].shape)}, not {list(own[n].shape)}"
            for n in own.keys() & state.keys()
            if state[n].shape != own[n].shape
        ]
        if problems:
            raise CheckpointError("optimizer state does not fit: " + "; ".join(sorted(problems)))
        for name, tensor in own.items():
            tensor.copy_(state[name])
