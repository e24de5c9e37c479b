"""Run models of `transformers`."""

import torch


def hf_blocks(hf):
    inner = next(getattr(hf, name) for name in ("model", "transformer", "gpt_neox") if hasattr(hf, name))
    return inner.layers if hasattr(inner, "layers") else inner.h


@torch.no_grad()
def hf_run(hf, ids):
    """Return the logits and the output of every block."""
    outs = []
    hooks = [
        b.register_forward_hook(lambda _m, _a, o: outs.append(o[0] if isinstance(o, tuple) else o))
        for b in hf_blocks(hf)
    ]
    logits = hf.eval()(ids).logits
    for hook in hooks:
        hook.remove()
    return logits, outs


@torch.no_grad()
def hf_random(hf, seed=3):
    """Draw every parameter and saved buffer: matrices with standard deviation 1.5 / sqrt(fan-in), the rest near 1."""
    generator = torch.Generator().manual_seed(seed)
    saved = hf.state_dict()
    for p in [*hf.parameters(), *(b for name, b in hf.named_buffers() if name in saved)]:
        noise = torch.randn(p.shape, generator=generator)
        p.copy_(noise * p.shape[-1] ** -0.5 * 1.5 if p.ndim > 1 else 1 + 0.5 * noise)
    return hf.eval()


class CaptureTap(dict):
    """A tap that stores the values of the tap points whose names end in `end`."""

    def __init__(self, end):
        super().__init__()
        self.end = end

    def wants(self, name):
        return name.endswith(self.end)

    def __call__(self, name, value):
        self[name] = value
        return value
