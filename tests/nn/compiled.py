"""Run by test_compile.py in a separate process without runtime shape checks. Prints JSON."""

import json
from dataclasses import replace

import torch
from tiny import encode_source, encoder_decoder_config, random_ids, randomise_sharp, run, tiny, tiny_config

from glassformer.cache.dense import DenseCache
from glassformer.config import change
from glassformer.nn.model import Decoder, EncoderDecoder
from glassformer.nn.step import LayerStep, Step


def compiled(model):
    """Compile each block to a full graph; return the list that collects the graphs."""
    graphs = []

    def backend(module, _):
        graphs.append(module)
        return module.forward

    torch._dynamo.reset()
    for block in model.blocks:
        block.compile(backend=backend, fullgraph=True)
    return graphs


def plain():
    """Six equal layers: one graph, whose code is the same as without `see`."""
    full = tiny("llama")
    model = randomise_sharp(Decoder(replace(full.config, layers=full.config.layers * 2)))
    ids = random_ids(model.config, 2, 16)
    want, graphs = run(model, ids), compiled(model)
    got = run(model, ids)
    run(model, random_ids(model.config, 2, 16, seed=4))
    out = {"layers": model.config.n_layers, "graphs": len(graphs), "off": (got - want).abs().max().item()}
    code, see = graphs[0].code, LayerStep.see
    LayerStep.see = lambda self, name, value: value
    graphs = compiled(model)
    run(model, ids)
    LayerStep.see = see
    out |= {"traceless": graphs[0].code == code, "operations": len(list(graphs[0].graph.nodes))}

    class Double:
        def wants(self, name):
            return name.endswith("attn.z")

        def __call__(self, name, value):
            return value * 2

    graphs = compiled(model)
    run(model, ids, tap=Double())
    return out | {"tap changes graph": graphs[0].code != code}


def training():
    """Forward passes with gradients, several steps, with full and packed sequences."""
    model = tiny("llama")
    graphs, found = compiled(model), []
    positions = torch.tensor([[*range(7), *range(9)]])
    documents = torch.tensor([[0] * 7 + [1] * 9])
    for step in ({"documents": None}, {"documents": documents.expand(2, -1)}):
        for seed in range(3):
            ids = random_ids(model.config, 2, 16, seed)
            at = positions if step["documents"] is not None else torch.arange(16)[None]
            model(ids, Step(at, **step)).square().mean().backward()
        found.append(len(graphs))
    return {
        "full sequences": found[0],
        "packed": found[1],
        "gradient": all(p.grad is not None for p in model.parameters()),
    }


def windows(window):
    """Return a configuration of three layers, the second with a window."""
    config = tiny_config("qwen3")
    for i in range(3):
        config = change(config, f"layers.{i}.attention.window", window if i == 1 else None)
    return config


def latents():
    """Return a configuration with latent attention and no experts, which do not compile to one graph."""
    config = tiny_config("deepseek_v2")
    return replace(config, layers=config.layers[:1] * 3)


def decoding(config, uneven=False):
    """Run a prefill and 120 decoding steps with a cache that grows twice; return the number of graphs after each."""
    config = change(config, "context_length", 256)
    model = randomise_sharp(Decoder(config))
    ids, counts = random_ids(config, 2, 132), []
    want, graphs, cache, parts = run(model, ids), compiled(model), DenseCache.of(config, 2, 140), []
    begins = [12, 9] if uneven else [12, 12]
    with torch.no_grad():
        parts.append(model(ids[:, :12], Step(cache.extend(begins), cache=cache)))
        counts.append(len(graphs))
        at = list(begins)
        for _ in range(120):
            new = torch.stack([row[a : a + 1] for row, a in zip(ids, at, strict=True)])
            parts.append(model(new, Step(cache.extend([1, 1]), cache=cache)))
            counts.append(len(graphs))
            at = [a + 1 for a in at]
    off = (torch.cat([p[0] for p in parts]) - want[0]).abs().max().item()
    return {"graphs": counts, "off": off}


def with_source():
    """Run four equal decoder layers with a padded source: a prefill and 20 decoding steps with a cache."""
    config = encoder_decoder_config("post")
    model = randomise_sharp(EncoderDecoder(replace(config, layers=config.layers * 2)))
    sources, ids = random_ids(config.encoder, 3, 9), random_ids(config, 3, 24)
    source = encode_source(model, sources, (9, 4, 1))
    want, graphs, counts, parts = run(model, ids, source=source), compiled(model), [], []
    cache = DenseCache.of(model.config, 3, 30, source=source)
    with torch.no_grad():
        for part in ids.split([4] + [1] * 20, 1):
            parts.append(model(part, Step(cache.extend([part.shape[1]] * 3), cache=cache)))
            counts.append(len(graphs))
    return {"graphs": counts, "off": (torch.cat(parts, 1) - want).abs().max().item()}


torch.set_num_threads(1)
print(json.dumps({
    "plain": plain(), "training": training(), "full": decoding(windows(None)),
    "windows": decoding(windows(5)), "uneven": decoding(windows(None), True), "source": with_source(),
    "latents": decoding(latents()),
}))  # fmt: skip
