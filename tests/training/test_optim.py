"""The optimizer compared with slow references: torch's AdamW per parameter, Muon one matrix at a time."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import SHAPE
from torch import nn

from glassformer.errors import CheckpointError, ConfigError
from glassformer.families import find_family
from glassformer.nn.model import Decoder
from glassformer.training.config import OptimConfig
from glassformer.training.init import init_weights
from glassformer.training.optim.optimizers import Optimizer, orthogonalize, update_scale
from glassformer.training.optim.storage import FlatStorage, role_of


class Small(nn.Module):
    """Square, wide and tall matrices, several of a shape, sizes that are no multiple of 16, and vectors."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {"q": nn.Linear(5, 5), "up": nn.Linear(5, 13, bias=False), "down": nn.Linear(13, 5, bias=False)}
            )
            for _ in range(3)
        )
        self.head = nn.Linear(5, 7, bias=False)


def small(seed: int = 0) -> Small:
    torch.manual_seed(seed)
    return Small()


def fill_grads(model: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Add random gradients in place, as backward does; return copies."""
    generator = torch.Generator().manual_seed(seed)
    grads = {n: torch.randn(p.shape, generator=generator) for n, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            parameter.grad = grads[name].clone()
        else:
            local = parameter.grad
            (local.to_local() if hasattr(local, "to_local") else local).add_(grads[name])
    return grads


def run_steps(optimizer: Optimizer, model: nn.Module, seeds) -> None:
    for seed in seeds:
        optimizer.zero_grad()
        fill_grads(model, seed)
        optimizer.finish_gradient(3)
        optimizer.step(1.0)


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_flat_storage_holds_the_parameters_as_views():
    model = small()
    before = values(model)
    flat = FlatStorage(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.untyped_storage().data_ptr() == flat.flat_values.untyped_storage().data_ptr()
        assert parameter.grad.untyped_storage().data_ptr() == flat.flat_grads.untyped_storage().data_ptr()
        assert parameter.data_ptr() % 64 == flat.flat_values.data_ptr() % 64
        assert parameter.is_contiguous()
    pointers = [p.data_ptr() for p in model.parameters()]
    assert len(set(pointers)) == len(pointers)
    model.head(model.embed(torch.tensor([1, 2]))).sum().backward()
    assert flat.flat_grads.abs().sum() > 0  # backward adds into the buffer


@pytest.mark.parametrize("clip", [0.0, 0.5])
@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_flat_and_list_storage_give_equal_updates(name, clip):
    """Up to rounding: the clipped norm is summed in another order, and kernels round tensor ends differently."""
    config = OptimConfig(name=name, clip=clip, weight_decay=0.1)
    models, optimizers = [small(), small()], []
    pointers = [p.data_ptr() for p in models[1].parameters()]
    for model, flat in zip(models, (True, False), strict=True):
        optimizers.append(Optimizer(model, config, flat=flat))
        run_steps(optimizers[-1], model, range(4))
    assert pointers == [p.data_ptr() for p in models[1].parameters()], "list storage moves no parameter"
    states = [optimizer.state_dict() for optimizer in optimizers]
    assert states[0].keys() == states[1].keys()
    tolerance = {"rtol": 2e-6, "atol": 1e-7} if clip == 0 else {"rtol": 2e-5, "atol": 2e-6}
    for found, expected in (states, [values(model) for model in models]):
        for key in expected:
            torch.testing.assert_close(found[key], expected[key], **tolerance, msg=key)


def test_optimizer_state_moves_between_storages():
    model, other = small(), small()
    optimizer = Optimizer(model, OptimConfig(clip=0.0), flat=True)
    run_steps(optimizer, model, range(3))
    other.load_state_dict(model.state_dict())
    listed = Optimizer(other, OptimConfig(clip=0.0), flat=False)
    listed.load_state_dict(optimizer.state_dict())
    for one, its_model in ((optimizer, model), (listed, other)):
        run_steps(one, its_model, range(3, 5))
    for key, value in values(model).items():
        torch.testing.assert_close(value, values(other)[key], rtol=2e-6, atol=1e-7, msg=key)


def test_parameters_that_cannot_be_flat_use_list_storage():
    model = small()
    model.blocks[0]["up"].to(torch.bfloat16)
    assert not isinstance(Optimizer(model, OptimConfig()).storage, FlatStorage)
    assert isinstance(Optimizer(small(), OptimConfig()).storage, FlatStorage)


def test_sharded_parameters_give_the_updates_of_plain_ones(tmp_path):
    """One process, whose shards are the complete parameters: FSDP2 without communication."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        sharded, plain = small(), small()
        fully_shard(sharded, mesh=dist.init_device_mesh("cpu", (1,)) if hasattr(dist, "init_device_mesh") else None)
        for model in (sharded, plain):
            optimizer = Optimizer(model, OptimConfig(weight_decay=0.1))
            assert isinstance(optimizer.storage, FlatStorage) == (model is plain)
            run_steps(optimizer, model, range(3))
        for key, value in sharded.named_parameters():
            torch.testing.assert_close(value.full_tensor(), values(plain)[key], rtol=2e-5, atol=2e-6, msg=key)
    finally:
        dist.destroy_process_group()


def test_roles():
    model = Decoder(find_family("qwen3").shape(SHAPE.fill(11)))
    roles = {name: role_of(name, p) for name, p in model.named_parameters()}
    assert roles["embed.weight"] == "embed"
    assert sum(role == "hidden" for role in roles.values()) == 7 * SHAPE.n_layers
    assert all((role == "scalar") == (dict(model.named_parameters())[n].ndim == 1) for n, role in roles.items())


def test_adamw_equals_torch():
    config = OptimConfig(
        name="adamw", lr=1e-2, embed_lr=3e-2, scalar_lr=2e-3, weight_decay=0.1, betas=(0.9, 0.95), clip=0.0
    )
    ours, theirs = small(), small()
    optimizer = Optimizer(ours, config)
    rates = {"hidden": 1e-2, "embed": 3e-2, "head": 3e-2, "scalar": 2e-3}
    groups = [
        {"params": [p], "lr": rates[role_of(n, p)], "weight_decay": 0.0 if p.ndim < 2 else 0.1}
        for n, p in theirs.named_parameters()
    ]
    reference = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, foreach=False, fused=False)
    for step in range(6):
        factor = 1.0 if step < 3 else 0.5
        for group, (n, p) in zip(reference.param_groups, theirs.named_parameters(), strict=True):
            group["lr"] = rates[role_of(n, p)] * factor
        optimizer.zero_grad()
        reference.zero_grad()
        fill_grads(ours, step)
        fill_grads(theirs, step)
        optimizer.finish_gradient(1)
        optimizer.step(factor)
        reference.step()
    for name, value in values(ours).items():
        torch.testing.assert_close(value, values(theirs)[name], rtol=1e-5, atol=1e-7, msg=name)


def muon_by_definition(w, g, m, lr, config):
    """Muon by its definition, one matrix at a time."""
    m = config.momentum * m + (1 - config.momentum) * g
    u = config.momentum * m + (1 - config.momentum) * g if config.nesterov else m
    x = u / (u.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    rows, columns = w.shape
    scale = (
        math.sqrt(max(1, rows / columns)) if config.muon_scale == "spectral" else 0.2 * math.sqrt(max(rows, columns))
    )
    return w * (1 - lr * config.weight_decay) - lr * scale * x, m


@pytest.mark.parametrize("kind", ["spectral", "rms"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_equals_one_matrix_at_a_time(kind, nesterov):
    config = OptimConfig(lr=0.05, muon_scale=kind, nesterov=nesterov, weight_decay=0.1, clip=0.0)
    model = small()
    hidden = {n: p for n, p in model.named_parameters() if role_of(n, p) == "hidden"}
    weights = {n: p.detach().double() for n, p in hidden.items()}
    momenta = {n: torch.zeros_like(w) for n, w in weights.items()}
    optimizer = Optimizer(model, config, muon_dtype=torch.float32)
    for step in range(4):
        optimizer.zero_grad()
        grads = fill_grads(model, step)
        optimizer.finish_gradient(1)
        optimizer.step(1.0)
        for n in weights:
            weights[n], momenta[n] = muon_by_definition(weights[n], grads[n].double(), momenta[n], 0.05, config)
    for n, p in hidden.items():
        torch.testing.assert_close(p.detach().double(), weights[n], rtol=1e-4, atol=2e-5, msg=n)


def test_orthogonalize_brings_singular_values_near_one():
    x = torch.randn(3, 24, 60, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.bfloat16):
        s = torch.linalg.svdvals(orthogonalize(x.to(dtype)).float())
        assert s.min() > 0.6
        assert s.max() < 1.25
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    assert torch.cosine_similarity(orthogonalize(x).flatten(1), (u @ vh).flatten(1)).min() > 0.97


def test_muon_scale():
    assert update_scale(torch.Size([16, 4]), "spectral") == 2.0
    assert update_scale(torch.Size([4, 16]), "spectral") == 1.0
    assert update_scale(torch.Size([4, 16]), "rms") == pytest.approx(0.8)


def test_gradient_is_divided_then_clipped():
    model = small()
    optimizer = Optimizer(model, OptimConfig(clip=0.5))
    grads = fill_grads(model, 0)
    norm = torch.cat([g.flatten() for g in grads.values()]).norm() / 10
    assert norm > 0.5
    torch.testing.assert_close(optimizer.finish_gradient(10), norm)
    assert optimizer.storage.flat_grads.norm().item() == pytest.approx(0.5, rel=1e-4)
    optimizer.zero_grad()
    model.embed.weight.grad[0, 0] = 1.0
    optimizer.finish_gradient(10)
    assert model.embed.weight.grad[0, 0].item() == pytest.approx(0.1)  # below the clip: only divided


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_saved_state_continues_bit_for_bit(name, tmp_path):
    config = OptimConfig(name=name)
    expected = small()
    expected_optimizer = Optimizer(expected, config)
    run_steps(expected_optimizer, expected, range(5))

    first = small()
    optimizer = Optimizer(first, config)
    run_steps(optimizer, first, range(3))
    state = optimizer.state_dict()
    named = dict(first.named_parameters())
    assert {n.split(".", 1)[1] for n in state if not n.startswith("steps.")} == named.keys()
    save_file({n: t.contiguous() for n, t in state.items()}, tmp_path / "optimizer.safetensors")
    second = small(seed=9)
    second.load_state_dict(first.state_dict())
    resumed = Optimizer(second, config)
    resumed.load_state_dict(load_file(tmp_path / "optimizer.safetensors"))
    run_steps(resumed, second, range(3, 5))
    for n, value in values(expected).items():
        assert torch.equal(value, values(second)[n]), n
    for n, value in expected_optimizer.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[n]), n


def test_state_that_does_not_fit_raises_checkpoint_error():
    optimizer = Optimizer(small(), OptimConfig())
    state = {n: t.clone() for n, t in optimizer.state_dict().items()}
    state["momentum.unknown"] = state.pop("momentum.blocks.0.q.weight")
    state["exp_avg.embed.weight"] = torch.zeros(2, 2)
    with pytest.raises(CheckpointError) as caught:
        optimizer.load_state_dict(state)
    for part in (
        "missing momentum.blocks.0.q.weight",
        "unknown momentum.unknown",
        "exp_avg.embed.weight has shape [2, 2]",
    ):
        assert part in str(caught.value)


def test_decoder_learns_with_muon_and_adamw():
    for name in ("muon", "adamw"):
        model = init_weights(Decoder(find_family("qwen3").shape(SHAPE.fill(11))), 0)
        optimizer = Optimizer(model, OptimConfig(name=name))
        from glassformer.kernels.cross_entropy import next_token_loss
        from glassformer.nn.step import Step

        ids = torch.randint(0, 11, (4, 16), generator=torch.Generator().manual_seed(0))
        seen = []
        for _ in range(30):
            optimizer.zero_grad()
            loss = next_token_loss(model, ids[:, :-1], ids[:, 1:], Step.of(ids[:, :-1]))
            loss.backward()
            optimizer.finish_gradient(60)
            optimizer.step(1.0)
            seen.append(loss.item() / 60)
        assert seen[0] == pytest.approx(math.log(11), rel=0.05)
        assert seen[-1] < 0.85 * seen[0], name


def test_invalid_optimizer_options_raise_config_error():
    for wrong in ({"lr": 0.0}, {"betas": (0.9, 1.0)}, {"clip": -1.0}):
        with pytest.raises(ConfigError, match=f"optim.{next(iter(wrong))}"):
            OptimConfig(**wrong)
    assert OptimConfig(name="adamw", lr=0.5).peak("embed") == 0.5
    assert OptimConfig(embed_lr=0.3).peak("head") == 0.3
