"""Test packed sequences against a naive implementation: order, resumption, ranks and evaluation."""

import json

import numpy as np
import pytest
import torch

from glassformer.errors import DataError
from glassformer.training.data.packing import IGNORE, PackedBatch, PackedLoader, _mix, packed_eval_batches, permutation
from glassformer.training.data.shards import DocumentIndex, TokenArray

EOS = 0


def make(lengths, *, ordered=False, sizes=None):
    """Return documents whose tokens are all different, so that each identifies its position, with EOS at the end."""
    documents, number = [], 1
    for length in lengths:
        documents.append([*range(number, number + length - 1), EOS])
        number += length - 1
    return DocumentIndex.of(documents, sizes, ordered=ordered), documents


def reference_sequences(stream, context):
    """Yield sequences of a stream of (document number, offset in it, whether the stream starts here, document)."""
    for start in range(0, len(stream) - context + 1, context):
        ids, targets, positions, borders = [], [], [], []
        for column, (_, offset, stream_start, document) in enumerate(stream[start : start + context]):
            begins = column == 0 or offset == 0 or stream_start
            ids.append(document[offset])
            targets.append(document[offset + 1] if offset + 1 < len(document) else IGNORE)
            positions.append(0 if begins else positions[-1] + 1)
            borders.append(0 if column == 0 else borders[-1] + begins)
        yield ids, targets, positions, borders


def stream_of(documents, order, offset):
    stream = [(d, index, documents[d]) for d in order for index in range(len(documents[d]))]
    stream = stream[offset:] + stream[:offset]
    return [(d, index, i == 0, document) for i, (d, index, document) in enumerate(stream)]


def as_tuples(rows: PackedBatch):
    borders = torch.zeros_like(rows.ids) if rows.documents is None else rows.documents
    return list(zip(rows.ids.tolist(), rows.targets.tolist(), rows.positions.tolist(), borders.tolist(), strict=True))


LENGTHS = (5, 9, 2, 31, 1, 14, 3, 3, 8, 40, 7)


@pytest.mark.parametrize("context", [1, 4, 7, 16, 50])
def test_ordered_sequences_equal_the_reference(context):
    view, documents = make(LENGTHS, ordered=True)
    loader = PackedLoader(view, context, batch=2, seed=0)
    stream = stream_of(documents, range(len(documents)), 0)
    expected = list(reference_sequences(stream, context))
    got = [row for _ in range(len(expected) // 2) for row in as_tuples(loader.next())]
    assert got == expected[: len(got)]
    assert len(got) >= 2


def test_shuffled_epochs_equal_the_reference():
    view, documents = make(LENGTHS)
    total, context, epochs = view.n_tokens, 6, 5
    loader = PackedLoader(view, context, batch=1, seed=3)
    orders = [loader._layout(e).documents.tolist() for e in range(epochs + 1)]
    offsets = [loader._layout(e).offset for e in range(epochs + 1)]
    assert all(sorted(o) == list(range(len(documents))) for o in orders)
    assert len({tuple(o) for o in orders}) == epochs + 1
    assert len(set(offsets)) > 2
    assert max(offsets) < context
    stream = [t for o, s in zip(orders, offsets, strict=True) for t in stream_of(documents, o, s)]
    expected = list(reference_sequences(stream, context))
    first = 0
    for epoch in range(epochs):
        last = -(-(epoch + 1) * total // context)
        got = [as_tuples(loader.next())[0] for _ in range(last - first)]
        assert sorted(got) == sorted(expected[first:last])
        assert got != expected[first:last]  # rows, too, are shuffled
        first = last


def test_curriculum_is_shuffled_after_the_first_epoch():
    view, documents = make([10] * 40, ordered=True)
    loader = PackedLoader(view, 20, batch=4, seed=0)
    epochs = [[row for _ in range(5) for row in as_tuples(loader.next())] for _ in range(3)]
    assert epochs[0] == list(reference_sequences(stream_of(documents, range(40), 0), 20))
    assert sorted(epochs[1]) != sorted(epochs[0])
    assert sorted(epochs[2]) != sorted(epochs[1])


def test_sequences_of_one_document_are_shuffled_each_epoch():
    view, _ = make((400,))
    loader = PackedLoader(view, 20, batch=1, seed=0)
    epochs = [[loader.next().ids[0, 10].item() // 20 for _ in range(20)] for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert sum(abs(a - b) > 1 for a, b in zip(epochs[0], epochs[1], strict=True)) > 10
    loader = PackedLoader(view, 20, batch=1, seed=0, shuffle=False)
    epochs = [[loader.next().ids[0, 10].item() // 20 for _ in range(20)] for _ in range(2)]
    assert epochs[0] == sorted(epochs[0])
    assert sum(b < a for a, b in zip(epochs[1], epochs[1][1:], strict=False)) > 5


@pytest.mark.parametrize("context", [5, 8])
def test_each_token_is_an_input_once_an_epoch_and_predicted_once(context):
    view, documents = make(LENGTHS)
    total = view.n_tokens
    loader = PackedLoader(view, context, batch=1, seed=1)
    inputs, targets = [], []
    for _ in range(context * total // context):  # `context` epochs: a whole number of rows
        rows = loader.next()
        inputs += rows.ids.flatten().tolist()
        targets += rows.targets.flatten().tolist()
        assert rows.tokens == int((rows.targets != IGNORE).sum())
    assert loader.epochs == context
    assert loader.epoch == context
    counts = np.bincount(np.array([i for i in inputs if i != EOS]))[1:]
    assert (counts == context).all()
    assert inputs.count(EOS) == context * len(documents)
    first_tokens = {d[0] for d in documents}
    predicted = np.bincount(np.array([t for t in targets if t not in (IGNORE, EOS)]), minlength=len(counts) + 1)
    for token in range(1, len(counts) + 1):
        assert predicted[token] == (0 if token in first_tokens else context)
    assert targets.count(IGNORE) == context * len(documents)


def test_documents_is_none_without_boundaries():
    view, _ = make((200, 150), ordered=True)
    loader = PackedLoader(view, 20, batch=3, seed=0)
    seen = [loader.next() for _ in range(5)]
    # row 9 ends with the last token of document 0, row 17 holds no border: 200 and 350 are multiples of 10
    assert [rows.documents is None for rows in seen] == [True, True, True, True, True]
    view, _ = make((190, 160), ordered=True)
    loader = PackedLoader(view, 20, batch=3, seed=0)
    seen = [loader.next() for _ in range(5)]
    assert [rows.documents is None for rows in seen] == [True, True, True, False, True]
    assert seen[3].documents is not None
    assert seen[3].documents.tolist()[0] == [0] * 10 + [1] * 10
    assert seen[3].positions.tolist()[0] == [*range(10), *range(10)]


@pytest.mark.parametrize("shuffle", [True, False])
def test_resume_at_every_position_is_exact(shuffle):
    view, _ = make(LENGTHS)
    whole = PackedLoader(view, 7, batch=3, seed=5, shuffle=shuffle)
    states, rows = [], []
    for _ in range(25):
        states.append(json.loads(json.dumps(whole.state())))
        rows.append(as_tuples(whole.next()))
    assert whole.epochs > 3
    for at, state in enumerate(states):
        again = PackedLoader(view, 7, batch=3, seed=5, shuffle=shuffle)
        again.load_state(state)
        assert [as_tuples(again.next()) for _ in range(25 - at)] == rows[at:]


def test_state_of_another_corpus_seed_or_context_raises_error():
    view, _ = make(LENGTHS)
    state = PackedLoader(view, 7, 3, seed=5).state()
    for other in (PackedLoader(view, 8, 3, 5), PackedLoader(view, 7, 3, 6), PackedLoader(make((90, 60))[0], 7, 3, 5)):
        with pytest.raises(DataError, match="data position"):
            other.load_state(state)


@pytest.mark.parametrize("world", [2, 3, 6])
def test_ranks_share_the_same_global_batch_without_overlap(world):
    view, _ = make(LENGTHS)
    single = PackedLoader(view, 5, batch=6, seed=2)
    ranks = [PackedLoader(view, 5, batch=6, seed=2, rank=r, world_size=world) for r in range(world)]
    for _ in range(12):
        whole, parts = as_tuples(single.next()), [as_tuples(r.next()) for r in ranks]
        assert [row for group in zip(*parts, strict=True) for row in group] == whole
        assert all(len(p) == 6 // world for p in parts)


def test_micro_batches_have_the_examples_of_one_batch():
    view, _ = make(LENGTHS)
    large, small = PackedLoader(view, 5, batch=6, seed=2), PackedLoader(view, 5, batch=2, seed=2)
    for _ in range(8):
        assert as_tuples(large.next()) == [row for _ in range(3) for row in as_tuples(small.next())]


def test_seed_and_epoch_change_the_order():
    view, _ = make([10] * 50)
    first = as_tuples(PackedLoader(view, 20, 20, seed=0).next())
    assert first == as_tuples(PackedLoader(view, 20, 20, seed=0).next())
    assert first != as_tuples(PackedLoader(view, 20, 20, seed=1).next())


def test_epoch_order_has_a_fixed_hash():
    """A saved position must mean the same sequences in every version of NumPy: the order is fixed here."""
    assert int(_mix(np.zeros(1, np.uint64))[0]) == 0xE220A8397B1DCDAF  # SplitMix64's published first output
    assert permutation(10, 7, 3).tolist() == [8, 5, 0, 4, 9, 6, 1, 2, 3, 7]
    assert sorted(permutation(1000, 1).tolist()) == list(range(1000))


def test_too_small_corpus_error_says_what_to_lower():
    view, _ = make((30, 30))
    with pytest.raises(DataError, match=r"60 tokens.*needs 64.*lower batch to at most 3.*context to at most 15"):
        PackedLoader(view, 16, batch=4, seed=0)
    with pytest.raises(DataError, match=r"needs 128.*: lower context to at most 30"):
        PackedLoader(view, 64, batch=2, seed=0)
    PackedLoader(view, 15, batch=4, seed=0).next()
    with pytest.raises(DataError, match="multiple of the number of processes"):
        PackedLoader(view, 4, batch=3, seed=0, world_size=2)


def test_tokens_in_several_arrays():
    flat = np.arange(100, dtype=np.uint16)
    parts = TokenArray([flat[:40], flat[40:80], flat[80:]], 40)
    index = np.array([[0, 39, 40], [99, 80, 79]])
    assert parts[index].tolist() == index.tolist()


# ---- evaluation


@pytest.mark.parametrize("overlap", [0, 1, 4, 9])
@pytest.mark.parametrize("context", [10, 13, 400])
@pytest.mark.parametrize(("batch", "fill"), [(1, False), (4, False), (4, True)])
def test_evaluation_counts_each_token_once(context, overlap, batch, fill):
    view, documents = make(LENGTHS, sizes=[10 * n for n in LENGTHS])
    expected = sorted(t for d in documents for t in d[1:])
    targets, n_bytes = [], 0.0
    for rows in packed_eval_batches(view, context, batch, overlap=overlap, fill=fill):
        assert len(rows.ids) == batch or not fill
        counted = rows.targets[rows.targets != IGNORE].tolist()
        assert rows.tokens == len(counted)
        targets += counted
        n_bytes += rows.bytes
        for ids, wanted, positions, _ in as_tuples(rows):
            for column, (i, t) in enumerate(zip(ids, wanted, strict=True)):
                assert t in (IGNORE, EOS, i + 1)
                if column and i == ids[column - 1] + 1:
                    assert positions[column] == positions[column - 1] + 1
    assert sorted(targets) == expected
    # each document's bytes over its n - 1 tokens of text, of which the first is not predicted
    assert n_bytes == pytest.approx(sum(10 * n * (n - 2) / (n - 1) for n in LENGTHS if n > 1))


def test_overlap_gives_each_token_that_much_context():
    view, _ = make((300,))
    for rows in packed_eval_batches(view, 20, 3, overlap=12):
        for _, targets, positions, _ in as_tuples(rows):
            counted = [p for p, t in zip(positions, targets, strict=True) if t != IGNORE]
            assert min(counted) >= 12 or targets[0] == 2


def test_evaluation_on_ranks_has_the_same_sequences():
    view, _ = make(LENGTHS)
    parts = [list(packed_eval_batches(view, 10, 4, rank=r, world_size=2)) for r in range(2)]
    assert len(parts[0]) == len(parts[1])
    both = sum(rows.tokens for part in parts for rows in part)
    assert both == sum(rows.tokens for rows in packed_eval_batches(view, 10, 4)) == view.n_tokens - len(LENGTHS)


def test_max_tokens_of_evaluation():
    view, documents = make(LENGTHS)
    flat = [t for d in documents for t in (*d[1:], IGNORE)]
    for most in (1, 12, 60, 10_000):
        targets = [t for rows in packed_eval_batches(view, 10, 2, most) for row in rows.targets.tolist() for t in row]
        assert [t for t in targets if t != IGNORE] == [t for t in flat[:most] if t != IGNORE]


def test_no_targets_to_evaluate_raises_data_error():
    with pytest.raises(DataError, match="nothing to evaluate"):
        list(packed_eval_batches(make((1, 1))[0], 10, 2))
    with pytest.raises(DataError, match="overlap"):
        list(packed_eval_batches(make((10,))[0], 10, 2, overlap=10))


def test_bytes_with_a_start_token():
    view = DocumentIndex.of([[9, 1, 2, 3, EOS], [9, 4, EOS]], [30, 7], begins=True)
    assert sum(rows.bytes for rows in packed_eval_batches(view, 4, 1)) == pytest.approx(37)
