"""Run a GGUF file in llama.cpp, in an interpreter that has llama-cpp-python; `llama_cpp_process.py` starts it.

Both streams carry one JSON object per line. The first request opens the file, the others run prompts:

    {"path": "a.gguf", "threads": 2, "clock": "wall"} -> {"version": "0.3.36", "system": "CPU : AVX2 = 1 ..."}
    {"prompts": [[1, 2], [3, 4]], "new_tokens": 8}    -> {"prefill": 0.1, "decode": 0.5, "ids": [[...], [...]],
                                                          "memory": bytes}
"""

import json
import sys
import time

import llama_cpp as lib  # pyright: ignore[reportMissingImports], of another environment
import numpy as np

CONTEXT_MULTIPLE = 256  # llama.cpp rounds the context of a sequence up to a multiple of it


def resident_bytes():
    """Return the bytes of this process in memory, or 0. (This interpreter need not have Glassformer's function.)"""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS:"))
    except OSError:
        return 0


class Runner:
    """A model, and a context for the number and length of the last prompts, which is replaced when they change."""

    def __init__(self, path, threads, clock):
        lib.llama_backend_init()
        self.threads, self.clock, self.shape, self.context = threads, clock, None, None
        self.before = resident_bytes()
        self.model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
        if not self.model:
            sys.exit(f"llama.cpp cannot load {path}")
        self.vocab_size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))

    def open_context(self, sequences, tokens):
        """Make a context for `sequences` sequences of `tokens` tokens."""
        if self.shape == (sequences, tokens):
            return
        if self.context:
            lib.llama_batch_free(self.batch)
            lib.llama_free(self.context)
        parameters = lib.llama_context_default_params()
        parameters.n_ctx = sequences * -(-tokens // CONTEXT_MULTIPLE) * CONTEXT_MULTIPLE
        parameters.n_batch = max(parameters.n_batch, sequences * tokens)
        parameters.n_seq_max = sequences
        parameters.n_threads = parameters.n_threads_batch = self.threads
        self.context = lib.llama_init_from_model(self.model, parameters)
        if not self.context:
            sys.exit(f"llama.cpp cannot make a context for {sequences} sequences of {tokens} tokens")
        self.batch = lib.llama_batch_init(parameters.n_batch, 0, 1)
        self.shape = (sequences, tokens)

    def decode(self, sequences, position):
        """Process the token ids of each sequence, from `position` on; return the most likely next ids."""
        i, last = 0, []
        for sequence, ids in enumerate(sequences):
            for j, token in enumerate(ids):
                self.batch.token[i], self.batch.pos[i] = token, position + j
                self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, sequence
                self.batch.logits[i] = j == len(ids) - 1
                i += 1
            last.append(i - 1)
        self.batch.n_tokens = i
        if status := lib.llama_decode(self.context, self.batch):
            sys.exit(f"llama_decode returned {status}")
        logits = [lib.llama_get_logits_ith(self.context, at) for at in last]
        return [int(np.ctypeslib.as_array(one, (self.vocab_size,)).argmax()) for one in logits]

    def run(self, prompts, new_tokens):
        """Generate greedily, and return the answer. Prefill, in seconds, ends with the first token of each prompt."""
        self.open_context(len(prompts), len(prompts[0]) + new_tokens)
        lib.llama_memory_clear(lib.llama_get_memory(self.context), False)
        now = time.process_time if self.clock == "cpu" else time.perf_counter
        begin = now()
        last = self.decode(prompts, 0)
        first = now()
        steps = [last]
        for position in range(len(prompts[0]), len(prompts[0]) + new_tokens):
            last = self.decode([[token] for token in last], position)
            steps.append(last)
        end = now()
        ids = [list(column) for column in zip(*steps)]  # noqa: B905
        return {"prefill": first - begin, "decode": end - first, "ids": ids, "memory": resident_bytes() - self.before}


def reply(value):
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def main():
    runner = Runner(**json.loads(sys.stdin.readline()))
    system = lib.llama_print_system_info().decode()
    reply({"version": lib.__version__, "system": system})
    for line in sys.stdin:
        reply(runner.run(**json.loads(line)))


if __name__ == "__main__":
    main()
