"""A decoder in NumPy, float64, one token, head and key at a time, written from the equations without Glassformer.

Weights are given by name, [out, in]. `run` returns the values of every point by name, with T tokens and no batch axis.
"""

import math

import numpy as np

NORMS = {"pre": "norm", "out": "out_norm", "post": "post_norm"}  # parameter names of the norms at each position


def linear(w, name, x):
    """Return W x + b for one vector."""
    y = w[f"{name}.weight"] @ x
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def norm(w, name, config, x):
    """Apply LayerNorm (Ba et al. 2016) or RMSNorm (Zhang & Sennrich 2019) to one vector; None is the identity."""
    if config is None:
        return x
    if config.kind == "layer":
        y = (x - x.mean()) / math.sqrt(((x - x.mean()) ** 2).mean() + config.eps)
        return y if config.scale is None else y * w[f"{name}.weight"] + w.get(f"{name}.bias", 0.0)
    gain = w[f"{name}.weight"] + (1.0 if config.scale == "float32 1+" else 0.0)
    return x / math.sqrt((x**2).mean() + config.eps) * gain


def rotate(rope, x, position):
    """Rotate dimensions i and i + R/2 by position * theta^(-2i/R), for i < R/2 (Su et al. 2021)."""
    size, y = rope.dim or len(x), x.copy()
    half = size // 2
    for i in range(half):
        angle = position * rope.theta ** (-2 * i / size) / getattr(rope.scaling, "factor", 1.0)
        a, b = x[i], x[i + half]
        y[i], y[i + half] = a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle)
    return y


def gelu(x):
    return np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x])


ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": gelu,
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}


def normed_heads(w, name, config, heads):
    """Return the normalized queries or keys of one token, [H, Dh]."""
    if config.qk_norm_over == "width":
        return norm(w, name, config.qk_norm, heads.reshape(-1)).reshape(heads.shape)
    each = config.qk_norm_over == "each"
    return np.array([norm(w, f"{name}.{h}" if each else name, config.qk_norm, head) for h, head in enumerate(heads)])


def attention(w, name, config, x, see, hidden, group_of):
    """Apply multi-head attention to x [T, D] (Vaswani et al. 2017, equation 1, section 3.2.2)."""
    n, size = len(x), config.head_dim
    found = {}
    for part, heads in (("q", config.n_heads), ("k", config.n_kv_heads), ("v", config.n_kv_heads)):
        rows = np.array([linear(w, f"{name}.{part}", row) for row in x])
        rows = rows if config.clip is None else np.clip(rows, -config.clip, config.clip)
        found[part] = see(f"{name}.{part}", rows.reshape(n, heads, size))
    for part in ("q", "k"):
        rows = np.array([normed_heads(w, f"{name}.{part}_norm", config, row) for row in found[part]])
        if config.rope is not None:
            rows = np.array([[rotate(config.rope, head, t) for head in row] for t, row in enumerate(rows)])
        found[part] = see(f"{name}.{part}_rot", rows)
    q, k, v = found["q"], found["k"], found["v"]
    scale = 1 / math.sqrt(size) if config.scale is None else config.scale
    scores = np.full((config.n_heads, n, n), -np.inf)
    for h in range(config.n_heads):
        for t in range(n):
            for s in range(t + 1):
                if (config.window is None or t - s < config.window) and (name, t, s) not in hidden:
                    score = scale * (q[t, h] @ k[s, group_of(h, config)])
                    scores[h, t, s] = config.softcap * math.tanh(score / config.softcap) if config.softcap else score
    scores = see(f"{name}.scores", scores)
    probs = np.zeros_like(scores)
    for h in range(config.n_heads):
        for t in range(n):
            sink = [w[f"{name}.sinks"][h]] if config.sinks else []
            top = max([*scores[h, t], *sink])
            exps = np.exp(scores[h, t] - top)
            probs[h, t] = exps / (exps.sum() + sum(math.exp(one - top) for one in sink))
    probs = see(f"{name}.probs", probs)
    z = np.zeros((n, config.n_heads, size))
    for h in range(config.n_heads):
        for t in range(n):
            for s in range(t + 1):
                z[t, h] += probs[h, t, s] * v[s, group_of(h, config)]
    z = see(f"{name}.z", z)
    o = w[f"{name}.o.weight"]
    heads = np.array([[o[:, h * size : (h + 1) * size] @ row[h] for h in range(config.n_heads)] for row in z])
    heads = see(f"{name}.heads", heads)
    return heads.sum(1) + w.get(f"{name}.o.bias", 0.0)


def feed_forward(w, name, config, x, see):
    """Return down(act(up x)), or gated, down(act(gate x) * up x) (Shazeer 2020), for x [T, D]."""
    act = ACTIVATIONS[config.activation]
    up = see("up", np.array([linear(w, f"{name}.up", row) for row in x]))
    if config.gated:
        gate = see("gate", np.array([linear(w, f"{name}.gate", row) for row in x]))
        hidden = np.array([act(g) * u for g, u in zip(gate, up, strict=True)])
    else:
        hidden = np.array([act(row) for row in up])
    return np.array([linear(w, f"{name}.down", row) for row in see("act", hidden)])


def experts(w, name, layer, x, see):
    """Sum the top k experts of each token, weighted by their probabilities (Shazeer et al. 2017, equation 1)."""
    router = see(f"{name}.router", np.array([linear(w, f"{name}.router", row) for row in x]))
    rows = []
    for row, logits in zip(x, router, strict=True):
        probs = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        best = np.argsort(-probs)[: layer.experts.top_k]
        total = probs[best].sum() if layer.experts.normed else 1.0
        own = [feed_forward(w, f"{name}.experts.{e}", layer.mlp, row[None], lambda _, v: v)[0] for e in best]
        rows.append(sum(probs[e] / total * y for e, y in zip(best, own, strict=True)))
    return np.array(rows)


def run(config, weights, ids, change=None, hidden=(), group_of=lambda h, c: h // (c.n_heads // c.n_kv_heads)):
    """Return the values of every point for one text.

    change: a function of (name, value) that returns the value to continue with. hidden: masked keys, as (name of the
    attention, query, key). group_of: a function of (query head, config) that returns the key head.
    """
    w = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    found = {}

    def see(name, value):
        found[name] = value if change is None else change(name, value.copy())
        return found[name]

    x = see("embed.tokens", np.array([w["embed.weight"][i] for i in ids]))
    x = x * config.embed_scale
    if config.positions == "learned":
        x = x + see("embed.positions", w["positions.weight"][: len(ids)])
    x = see("embed.out", x)
    for i, layer in enumerate(config.layers):
        b = f"blocks.{i}"

        def normed(part, at, rows, b=b, layer=layer):
            which = layer.norm if at in layer.norm_at else None
            return np.array([norm(w, f"{b}.{part}_{NORMS[at]}", which, row) for row in rows])

        def attend(rows, b=b, layer=layer, normed=normed):
            rows = see(f"{b}.attn.x", rows)
            out = see(f"{b}.attn.out", attention(w, f"{b}.attn", layer.attention, rows, see, hidden, group_of))
            return see(f"{b}.attn.add", normed("attn", "out", out))

        def feed(rows, b=b, layer=layer, normed=normed):
            rows = see(f"{b}.mlp.x", rows)
            if layer.experts is None:
                out = feed_forward(w, f"{b}.mlp", layer.mlp, rows, lambda end, v: see(f"{b}.mlp.{end}", v))
            else:
                out = experts(w, f"{b}.mlp", layer, rows, see)
            return see(f"{b}.mlp.add", normed("mlp", "out", see(f"{b}.mlp.out", out)))

        x = see(f"{b}.resid_pre", x)
        read = normed("attn", "pre", x)
        if layer.parallel:
            added = attend(read)
            x = x + added + feed(read if layer.shared_norm else normed("mlp", "pre", x))
        else:
            x = see(f"{b}.resid_mid", normed("attn", "post", x + attend(read)))
            x = normed("mlp", "post", x + feed(normed("mlp", "pre", x)))
        x = see(f"{b}.resid_post", x)
    x = see("final.norm", np.array([norm(w, "norm", config.final_norm, row) for row in x]))
    head = w | {"head.weight": w["embed.weight"]} if config.tied_head else w
    logits = np.array([linear(head, "head", row) for row in x])
    cap = config.logit_softcap
    see("final.logits", logits if cap is None else cap * np.tanh(logits / cap))
    return found
