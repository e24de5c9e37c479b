"""AdamW, and Muon for the hidden matrices, over parameters stored as `storage.py` describes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from glassformer.errors import CheckpointError
from glassformer.training.config import OptimConfig
from glassformer.training.optim.storage import ROLES, FlatStorage, ListStorage, Role

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalize(x: Tensor, steps: int = 5) -> Tensor:
    """Approximate U V^T of the singular value decomposition U S V^T of each matrix.

    Newton-Schulz iteration of the odd quintic a s + b s^3 + c s^5 on the singular values, with the coefficients of
    Keller Jordan (2024, "Muon: an optimizer for hidden layers in neural networks"): values from 0 to 1 end between
    about 0.7 and 1.2.

    Args:
        x: [N, m, n]; faster with m <= n. Determines the dtype of the computation.
    """
    a, b, c = NEWTON_SCHULZ
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # no singular value above 1
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        poly = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, poly, x, beta=a)
    return x


def update_scale(shape: Sequence[int], kind: str) -> float:
    """Return the factor of an orthogonalized [..., out, in] update.

    "spectral": sqrt(max(1, out/in)), so that the update's effect on activations does not depend on the shape (Jordan
    2024). "rms": 0.2 sqrt(max(out, in)), so that its entries are about as large as AdamW's (Liu et al. 2025, eq. 4).
    """
    rows, columns = shape[-2], shape[-1]
    return max(1.0, rows / columns) ** 0.5 if kind == "spectral" else 0.2 * max(rows, columns) ** 0.5


class Muon:
    """Momentum, orthogonalized per matrix (Jordan 2024). Equally shaped matrices are iterated as one batch.

        m <- mu m + (1 - mu) g;   u = mu m + (1 - mu) g (Nesterov);   w <- w - lr (scale * orthogonalize(u) + decay w)

    A matrix and its transpose have transposed updates, so matrices with more rows than columns are transposed and
    join the batch of that shape.
    """

    def __init__(self, storage: ListStorage, config: OptimConfig, dtype: torch.dtype):
        self.storage, self.config, self.dtype = storage, config, dtype
        self.momentum = [torch.zeros_like(value) for value in storage.values("hidden")]
        self.update = [torch.zeros_like(value) for value in self.momentum]
        batches: dict[tuple[int, int], list[Tensor]] = {}
        for batch in storage.matrices(self.update):
            rows, columns = batch.shape[-2:]
            batches.setdefault((min(rows, columns), max(rows, columns)), []).append(batch)
        self.batches = list(batches.values())

    def step(self, lr: float) -> None:
        mu, values, grads = self.config.momentum, self.storage.values("hidden"), self.storage.grads("hidden")
        for momentum, update, grad in zip(self.momentum, self.update, grads, strict=True):
            momentum.lerp_(grad, 1 - mu)
            if self.config.nesterov:
                torch.lerp(grad, momentum, mu, out=update)
            else:
                update.copy_(momentum)
        for batches in self.batches:
            full = [_gather(batch).to(self.dtype) for batch in batches]
            wide = [x.mT if x.shape[-2] > x.shape[-1] else x for x in full]
            results = orthogonalize(torch.cat(wide) if len(wide) > 1 else wide[0]).split([len(x) for x in wide])
            for batch, result in zip(batches, results, strict=True):
                rows, columns = batch.shape[-2:]
                result = result.mT if rows > columns else result
                batch.copy_(_shard_like(result.to(batch.dtype), batch)).mul_(
                    update_scale(batch.shape, self.config.muon_scale)
                )
        if self.config.weight_decay:
            _scale(values, 1 - lr * self.config.weight_decay)
        for value, update in zip(values, self.update, strict=True):
            value.add_(update, alpha=-lr)

    def state(self) -> dict[str, Tensor]:
        """Return the momentum by parameter name, as views."""
        return {f"momentum.{n}": t for n, t in self.storage.named("hidden", self.momentum)}


def _scale(tensors: Sequence[Tensor], factor: float | Tensor) -> None:
    for tensor in tensors:
        tensor.mul_(factor)


def _gather(x: Tensor) -> Tensor:
    """Return the complete tensor where `x` is a shard of one (DTensor)."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x  # pyright: ignore[reportAttributeAccessIssue]


def _shard_like(x: Tensor, like: Tensor) -> Tensor:
    """Return `x`, which is complete on every process, sharded as `like` is."""
    if not hasattr(like, "full_tensor"):
        return x
    from torch.distributed.tensor import DTensor, Replicate

    assert isinstance(like, DTensor)
    replicated = DTensor.from_local(x, like.device_mesh, [Replicate()] * like.device_mesh.ndim)
    return replicated.redistribute(placements=like.placements)


class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2): torch's, fused."""

    def __init__(self, storage: ListStorage, roles: Sequence[Role], config: OptimConfig):
        self.storage = storage
        self.parameters: dict[Role, list[nn.Parameter]] = {}
        for role in roles:
            self.parameters[role] = parameters = []
            for value, grad in zip(storage.values(role), storage.grads(role), strict=True):
                parameter = nn.Parameter(value)  # shares the storage of `value`
                parameter.grad = grad
                parameters.append(parameter)
        groups = [
            {"params": parameters, "weight_decay": 0.0 if role == "scalar" else config.weight_decay}
            for role, parameters in self.parameters.items()
        ]
        fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
        self.torch = torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.eps, fused=fused)
        for parameter in (p for parameters in self.parameters.values() for p in parameters):
            self.torch.state[parameter] = {
                "step": torch.zeros((), device=parameter.device if fused else "cpu"),
                "exp_avg": torch.zeros_like(parameter.data),
                "exp_avg_sq": torch.zeros_like(parameter.data),
            }

    def step(self, rates: Mapping[Role, float]) -> None:
        for role, group in zip(self.parameters, self.torch.param_groups, strict=True):
            group["lr"] = rates[role]
        self.torch.step()

    def state(self) -> dict[str, Tensor]:
        """Return both averages by parameter name, as views, and the step count of each role."""
        found: dict[str, Tensor] = {}
        for role, parameters in self.parameters.items():
            states = [self.torch.state[parameter] for parameter in parameters]
            found[f"steps.{role}"] = states[0]["step"]
            for key in ("exp_avg", "exp_avg_sq"):
                found |= {f"{key}.{n}": t for n, t in self.storage.named(role, [state[key] for state in states])}
        return found

    def share_steps(self) -> None:
        """Copy the step count of each role, which `state` returns once, to all its parameters."""
        for parameters in self.parameters.values():
            for parameter in parameters[1:]:
                self.torch.state[parameter]["step"].copy_(self.torch.state[parameters[0]]["step"])


class Optimizer:
    """Muon for the hidden matrices (unless `config.name` is adamw) and AdamW for the other parameters.

    Args:
        flat: store all parameters in one buffer, which is faster for small models. By default wherever it is possible.
    """

    def __init__(
        self,
        model: nn.Module,
        config: OptimConfig,
        *,
        muon_dtype: torch.dtype = torch.float32,
        flat: bool | None = None,
    ):
        self.config = config
        self.storage = FlatStorage(model) if flat or (flat is None and FlatStorage.fits(model)) else ListStorage(model)
        used: list[Role] = [role for role in ROLES if self.storage.parameters[role]]
        with_muon = config.name == "muon" and "hidden" in used
        self.muon = Muon(self.storage, config, muon_dtype) if with_muon else None
        rest: list[Role] = [role for role in used if not (with_muon and role == "hidden")]
        self.adamw = AdamW(self.storage, rest, config) if rest else None

    @property
    def grads(self) -> list[Tensor]:
        """The tensors that together hold all gradients."""
        return self.storage.grads(*ROLES)

    def zero_grad(self) -> None:
        """Set all gradients to 0 in place, so that backward adds to the same tensors."""
        for grad in self.grads:
            grad.zero_()

    def finish_gradient(self, tokens: int) -> Tensor:
        """Divide summed gradients by `tokens` and clip them; return the norm before clipping.

        Args:
            tokens: counted targets of the step, over all micro-batches and processes.
        """
        grads, clip = self.grads, self.config.clip
        norm = _gather(torch.linalg.vector_norm(grads[0]) if len(grads) == 1 else nn.utils.get_total_norm(grads))
        norm = norm / tokens
        if clip == 0:
            _scale(grads, 1 / tokens)
        elif norm.device.type == "cpu":
            _scale(grads, min(1.0, clip / (norm.item() + 1e-6)) / tokens)
        else:  # without waiting for the device
            _scale(grads, (clip / (norm + 1e-6)).clamp(max=1.0) / tokens)
        return norm

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Update all parameters with their peak learning rates times `factor`."""
        config = self.config
        if self.muon is not None:
            self.muon.step(factor * config.peak("hidden"))
        if self.adamw is not None:
            self.adamw.step({role: factor * config.peak(role) for role in ROLES})

    def state_dict(self) -> dict[str, Tensor]:
        """Return all state as tensors named after parameters, whatever the storage."""
        parts = [part.state() for part in (self.muon, self.adamw) if part is not None]
        return {name: tensor for part in parts for name, tensor in part.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy the state into this optimizer.

        Raises CheckpointError that names every tensor which is missing, unknown or of another shape.
        """
        own = self.state_dict()
        problems = [f"missing {n}" for n in own.keys() - state.keys()]
        problems += [f"unknown {n}" for n in state.keys() - own.keys()]
        problems += [
            f"{n} has shape {list(state[n].shape)}, not {list(own[n].shape)}"
            for n in own.keys() & state.keys()
            if state[n].shape != own[n].shape
        ]
        if problems:
            raise CheckpointError("optimizer state does not fit the model: " + "; ".join(sorted(problems)))
        for name, tensor in own.items():
            tensor.copy_(state[name])
        if self.adamw is not None:
            self.adamw.share_steps()
