"""Run by test_llama_cpp.py in an environment that has llama-cpp-python: what it makes of a GGUF file, as JSON."""

import json
import sys

import numpy as np
from llama_cpp import Llama

asked = json.load(sys.stdin)
if "embed" in asked:
    llm = Llama(asked["path"], n_ctx=asked["context"], n_threads=1, embedding=True, verbose=False)
    found = {"tokens": [llm.tokenize(text.encode(), special=False) for text in asked["embed"]]}
    json.dump(found | {"vectors": [llm.embed(text) for text in asked["embed"]]}, sys.stdout)
    sys.exit()
# caches in F32
llm = Llama(asked["path"], n_ctx=asked["context"], n_threads=1, logits_all=True, verbose=False, type_k=0, type_v=0)
tokens = [llm.tokenize(text.encode(), add_bos=False, special=False) for text in asked["texts"]]
written, logits = [], []
for prompt in asked["prompts"]:
    llm.reset()
    out = []
    for token in llm.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0):
        if len(out) == asked["length"]:
            break
        out.append(int(token))
    written.append(out)
    llm.reset()
    llm.eval([*prompt, *out])
    logits.append(np.asarray(llm.scores[: len(prompt) + len(out)]).tolist())
json.dump({"tokens": tokens, "written": written, "logits": logits}, sys.stdout)
