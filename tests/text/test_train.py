"""Tokenizer training: merges, samples, limits, progress, errors, and the end of the worker process."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from glassformer.errors import DataError, TokenizerError
from glassformer.text import bpe as readable
from glassformer.text import train
from glassformer.text import train_worker as worker
from glassformer.text.files.load import load_tokenizer
from glassformer.text.train import train_tokenizer

EOT = "<|endoftext|>"
ROOT = Path(__file__).parents[2]


def train_with_report(documents, **options):
    reports = []
    tokenizer = train_tokenizer(documents, on_report=reports.append, **options)
    (report,) = reports
    return tokenizer, report


def merges(tokenizer):
    return readable.BPE.from_json(tokenizer.backend.json).merges


@pytest.mark.parametrize("name", ["tinyshakespeare.txt", "wagahai-ja.txt"])
def test_merges_equal_the_readable_bpe(shared_file, name):
    """Training in the worker, in blocks and chunks, gives the same merges as training on the complete text."""
    text = shared_file(name).read_text("utf-8")[:60_000]
    tokenizer, report = train_with_report([text], vocab_size=457)
    assert merges(tokenizer) == readable.train([text], 457, special_tokens=[EOT])
    assert (tokenizer.vocab_size, tokenizer.special_tokens, tokenizer.eos_id, tokenizer.bos_id) == (457, {EOT: 0}, 0, 0)
    assert (report.documents, report.bytes_seen, report.bytes_used) == (1, *[len(text.encode())] * 2)
    assert report.because == "all of it"
    assert report.peak_memory > 20e6 or sys.platform != "linux"


def test_qwen2_pattern_can_be_selected(corpus):
    tokenizer = train_tokenizer([corpus], vocab_size=300, pattern="qwen2")
    assert merges(tokenizer) == readable.train([corpus], 300, special_tokens=[EOT], pattern=readable.PATTERNS["qwen2"])
    assert len(tokenizer.encode("1234", bare=True)) == 4


@pytest.mark.parametrize("kind", train.KINDS)
def test_eos_token_is_the_bos_token(kind, corpus, tmp_path):
    """Every text starts with the EOS token, also after saving and in `transformers`."""
    tokenizer = train_tokenizer([corpus], kind=kind, vocab_size=300)
    tokenizer.save(tmp_path)
    auto = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("the cat", ""):
        ids = tokenizer.encode(text)
        assert ids == [tokenizer.eos_id, *tokenizer.encode(text, bare=True)]
        assert auto(text)["input_ids"] == load_tokenizer(tmp_path).encode(text) == ids


def test_no_merge_crosses_documents():
    """Documents "a" and "b" do not form the token "ab"; a generator is consumed once."""
    tokenizer, report = train_with_report((part for part in ["a", "", "b"] * 9), vocab_size=300)
    assert tokenizer.vocab_size == 257
    assert report.documents == 27


def test_words_and_characters_are_ordered_by_frequency():
    word = train_tokenizer(["b b b a a c", "b"], kind="word", vocab_size=5)
    assert [word.token_bytes(i).decode() for i in range(5)] == [EOT, "<|unk|>", " a", " b", "b"]
    char = train_tokenizer(["bbbaac\n\n"], kind="char", vocab_size=5, special_tokens=("<|unk|>",))
    assert [char.token_bytes(i).decode() for i in range(5)] == ["<|unk|>", "b", "\n", "a", "c"]
    assert char.eos_id is None


def test_progress_reports_each_stage(corpus):
    reports = []
    train_tokenizer([corpus] * 5, vocab_size=300, progress=lambda *report: reports.append(report))
    stages = list(dict.fromkeys(stage for *_, stage in reports))
    assert stages == ["reading", "counting words", "splitting words", "counting pairs", "merging"]
    size = 5 * len(corpus.encode())
    assert (size, size, "reading") in reports
    assert (size, size, "counting words") in reports
    assert reports[-1] == (43, 43, "merging")
    assert all(total is None or 0 <= done <= total for done, total, _ in reports)


# ---- samples and limits


def test_sample_depends_on_max_bytes_and_seed():
    documents = [f"w{i} " * 50 for i in range(2000)]
    size = sum(map(len, documents))
    progress = train._throttle(None)
    first, again, other = (train._draw_sample(documents, 40_000, seed, progress) for seed in (1, 1, 2))
    assert first.blocks == again.blocks
    assert first.blocks != other.blocks
    assert (first.seen, first.documents) == (size, 2000)
    assert 30_000 < first.size <= 40_000
    _, report = train_with_report(documents, vocab_size=300, max_bytes=40_000, seed=1)
    assert report.bytes_used == first.size
    assert report.because == "sampled to max_bytes=40000"


def read_blocks(blocks) -> list[bytes]:
    """Return the frames that the worker reads from blocks."""
    with tempfile.TemporaryFile() as pipe:
        pipe.write(b"".join(blocks) + worker.END)
        pipe.seek(0)
        return list(worker.read_frames(pipe))


def test_sample_is_drawn_from_all_documents(monkeypatch):
    """100 of 1000 blocks are sampled uniformly (a fair draw fails this test once in 10^6 runs)."""
    documents = [f"{i:06d}" * 1100 for i in range(1000)]  # 6600 bytes each, so one a block
    monkeypatch.setattr(train, "_BLOCK_SIZE", 6600)
    sample = train._draw_sample(documents, 660_000, 0, train._throttle(None))
    numbers = [int(text[:6]) for text in read_blocks(sample.blocks)]
    assert len(sample.blocks) == 100
    assert len(numbers) == len(set(numbers)) == 100
    assert 25 < sum(number < 500 for number in numbers) < 75


@given(texts=st.lists(st.text(st.sampled_from("ab \n猫é👧,1"), max_size=200), max_size=8), size=st.integers(1, 50))
def test_chunks_and_frames_preserve_the_text(texts, size):
    for text in texts:
        chunks = list(train._split_chunks(text.encode(), size))
        assert "".join(chunk.decode() for chunk in chunks) == text
    sample = train._draw_sample(texts, 10**6, 0, train._throttle(None))
    assert sample.size == sample.seen == sum(len(text.encode()) for text in texts)
    assert b"".join(read_blocks(sample.blocks)) == "".join(texts).encode()


@given(text=st.text(st.sampled_from("ab \n猫1,"), max_size=300), longest=st.integers(1, 9))
def test_splitting_long_runs_preserves_the_text(text, longest):
    parts = worker.split_long_runs(text * 2, longest)
    assert "".join(parts) == text * 2
    if longest == worker.MAX_RUN or len(parts) > 1:
        assert all(len(run) <= longest for part in parts for run in worker._RUN.findall(part))


@pytest.mark.parametrize("text", ["x" * 3_000_000, "猫" * 1_000_000, " " * 3_000_000, "=" * 3_000_000])
def test_megabytes_without_word_boundaries_can_be_trained(text):
    tokenizer, report = train_with_report([text, "and a word"], vocab_size=280)
    assert tokenizer.token_bytes(257) == text.encode()[:2], "the first merge"
    assert max(len(tokenizer.token_bytes(i)) for i in range(257, tokenizer.vocab_size)) <= 256 * len(text[0].encode())
    assert report.bytes_used == len(text.encode()) + 10


def test_distinct_words_are_limited():
    rng = random.Random(0)
    documents = (
        " ".join(f"{rng.getrandbits(40):x}" for _ in range(2000)).translate({48 + i: 103 + i for i in range(10)})
        for _ in range(180)
    )
    _, report = train_with_report(documents, vocab_size=260)
    assert report.bytes_seen > 3_900_000
    assert worker.MAX_DISTINCT_BYTES <= report.bytes_used < worker.MAX_DISTINCT_BYTES * 1.1
    assert "distinct words" in report.because
    assert report.peak_memory - worker.peak_memory() < 450e6, "memory of the worker"


# ---- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "wordpiece"}, "kind must be one of bpe, char, word, got 'wordpiece'"),
        ({"pattern": "gpt4"}, "pattern must be one of gpt2, qwen2, .*, got 'gpt4'"),
        ({"vocab_size": 256}, r"vocab_size must be at least 257 \(1 special tokens and the 256 bytes\), got 256"),
        ({"vocab_size": 257, "special_tokens": ("<|a|>", "<|b|>")}, "at least 258"),
        ({"kind": "char", "vocab_size": 2}, "at least 3"),
        ({"special_tokens": ()}, "special_tokens must be one or more distinct"),
        ({"special_tokens": ("<|a|>", "<|a|>")}, "distinct non-empty strings"),
        ({"special_tokens": ("",)}, "special_tokens must be"),
        ({"special_tokens": ("a",)}, "plain text would become the special token 'a'"),
        ({"kind": "word", "special_tokens": ("END",)}, "plain text would become the special token 'END'"),
        ({"max_bytes": 0}, "max_bytes must be from 1 to 2147483647, got 0"),
        ({"max_bytes": 1 << 31}, "max_bytes must be"),
        ({"documents": "one text"}, "iterable of str, got one str"),
        ({"documents": ["fine", "x\ud800"]}, r"document 1: character 1 is a lone surrogate \(U\+D800\)"),
        ({"documents": (x for x in ["fine", 3])}, "document 1 must be a str, got int"),
    ],
)
def test_invalid_arguments_raise_error(options, message):
    options = {"documents": ["some text"], "vocab_size": 300} | options
    with pytest.raises(TokenizerError, match=message):
        train_tokenizer(options.pop("documents"), **options)


def test_empty_documents_raise_error():
    for documents in ([], ["", ""]):
        with pytest.raises(DataError, match=f"{len(documents)} documents, all of them empty"):
            train_tokenizer(documents, vocab_size=300)


def test_worker_failure_is_reported(monkeypatch):
    monkeypatch.setattr(train.sys, "path", ["/nowhere"])
    before = child_processes()  # other tests may have child processes
    with pytest.raises(TokenizerError, match=r"(?s)ended with status 1: .*ModuleNotFoundError.*glassformer"):
        train_tokenizer(["text"], vocab_size=300)
    assert child_processes() == before


def test_error_in_progress_callback_ends_the_worker(corpus):
    def stop(done, total, stage):
        if stage == "merging":
            raise RuntimeError("enough")

    before = child_processes()
    with pytest.raises(RuntimeError, match="enough"):
        train_tokenizer([corpus], vocab_size=300, progress=stop)
    assert child_processes() == before


# ---- Ctrl-C

SCRIPT = """
import random
from glassformer.text.tokenizer import Tokenizer
from glassformer.text.train import train_tokenizer
rng = random.Random(0)
documents = (" ".join("".join(rng.choices("abcdefghijklmnop", k=8)) for _ in range(1000)) for _ in range(250))
train_tokenizer(documents, vocab_size=30_000, progress=lambda *report: print(report[-1], flush=True))
print("finished")
"""


def child_processes(pid: int | str = "self") -> list[str]:
    """Return the ids of the running child processes of a process, without zombies."""
    pid = os.getpid() if pid == "self" else pid
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [child for child in found if is_running(child)]


def is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="requires /proc")
@pytest.mark.parametrize("stage", ["counting words", "merging"])
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL])
def test_signal_ends_training_and_the_worker(stage, signal_number):
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, text=True
    )
    assert parent.stdout is not None
    for line in parent.stdout:
        if line.strip() == stage:
            break
    (child,) = child_processes(parent.pid)
    os.kill(int(child), signal.SIGSTOP)  # the worker cannot finish before the signal
    parent.send_signal(signal_number)
    out, err = parent.communicate()
    assert "finished" not in out
    assert parent.returncode == -signal_number
    if signal_number == signal.SIGINT:
        assert err.strip().endswith("KeyboardInterrupt")
        assert not is_running(child), "the parent waits for the worker before it exits"
    else:
        os.kill(int(child), signal.SIGCONT)
        while is_running(child):  # the worker exits without its parent
            time.sleep(0.02)


@pytest.mark.parametrize("end", [worker.END, b"", b"\x09"], ids=["while it trains", "between frames", "in a frame"])
def test_worker_without_parent_exits(end, tmp_path):
    """The worker's output is a file, so only the closed input pipe shows that the parent ended."""
    rng = random.Random(0)
    text = " ".join("".join(rng.choices("abcdefghijklmnop", k=8)) for _ in range(200_000)).encode()
    request = {"kind": "bpe", "pattern": "gpt2", "vocab_size": 60_000, "special_tokens": [EOT], "total": 0}
    code = "from glassformer.text.train_worker import main; main()"
    with open(tmp_path / "out", "wb") as out:
        child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=out, stderr=out, cwd=ROOT)
    assert child.stdin is not None
    child.stdin.write(json.dumps(request).encode() + b"\n" + worker.FRAME.pack(len(text)) + text + end)
    child.stdin.close()
    assert child.wait() == 1
    output = (tmp_path / "out").read_text()
    assert "Compute merges" not in output
    assert "Traceback" not in output


def test_importing_loads_no_torch():
    names = "import sys; sys.modules['torch'] = None; import glassformer.text.train, glassformer.text.bpe"
    subprocess.run([sys.executable, "-c", names], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    readable_only = "import sys; import glassformer.text.bpe; assert 'tokenizers' not in sys.modules"
    subprocess.run([sys.executable, "-c", readable_only], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


def test_training_is_deterministic(corpus):
    options = {"vocab_size": 350, "max_bytes": 4_000, "seed": 3}
    first, again = (train_tokenizer([corpus] * 40, **options) for _ in range(2))
    assert json.loads(first.backend.json) == json.loads(again.backend.json)
