"""Inspect a forward pass: an attention head, one attention cell, and the logit lens."""

import numpy as np

import glassformer

lm = glassformer.load("stories")
t = lm.trace("Once Max got a key. Soon Ann found a shell.\nWhere is Ann?")

probs = np.asarray(t["blocks.1.attn.probs"])  # [heads, queries, keys]
print(f"attention of layer 1: {probs.shape}, rows sum to {probs.sum(-1).min():.4f} to {probs.sum(-1).max():.4f}")

cell = t.cell(layer=1, head=3, query=-1, key=2)
print(f"head {cell.head}: token {cell.query} attends to token {cell.key} with probability {cell.prob:.4f}")
print(f"the same numbers in Python: {cell.receipt.python}")

print("the most probable next token after each block:")
for row in t.lens(top=1).rows:
    (best,) = row.top[-1]  # of the last position
    print(f"{row.name:22} {best.token!r:10} log-probability {best.logprob:.2f}")
