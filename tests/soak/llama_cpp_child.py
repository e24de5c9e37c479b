"""Print llama.cpp's tokens, generated ids and logits for a GGUF file, as JSON.

test_llama_cpp.py runs this file in an environment that has llama-cpp-python. The request is JSON on standard input.
"""

import json
import sys

import numpy as np
from llama_cpp import Llama

request = json.load(sys.stdin)
if "embed" in request:
    llm = Llama(request["path"], n_ctx=request["context"], n_threads=1, embedding=True, verbose=False)
    result = {"tokens": [llm.tokenize(text.encode(), special=False) for text in request["embed"]]}
    json.dump(result | {"vectors": [llm.embed(text) for text in request["embed"]]}, sys.stdout)
    sys.exit()
# type_k and type_v 0: caches in F32
llm = Llama(request["path"], n_ctx=request["context"], n_threads=1, logits_all=True, verbose=False, type_k=0, type_v=0)
tokens = [llm.tokenize(text.encode(), add_bos=False, special=False) for text in request["texts"]]
generated, logits = [], []
for prompt in request["prompts"]:
    llm.reset()
    out = []
    for token in llm.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0):
        if len(out) == request["length"]:
            break
        out.append(int(token))
    generated.append(out)
    llm.reset()
    llm.eval([*prompt, *out])
    logits.append(np.asarray(llm.scores[: len(prompt) + len(out)]).tolist())
json.dump({"tokens": tokens, "generated": generated, "logits": logits}, sys.stdout)
