"""Embed texts and fill masks, compared with `transformers` and with formulas."""

import json
import math
from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import assert_near, randomise_sharp, tiny
from tiny_encoders import CONFIGS, bytes_of_roberta, wordpieces

import glassformer
from glassformer.config import DenseConfig, PoolingConfig
from glassformer.errors import CapacityError, CheckpointError, ConfigError, RequestError, TokenizerError
from glassformer.formats import save_model
from glassformer.formats.sentence_transformers import read_pooling, transformer_folder, write_pooling
from glassformer.models.embedder import Embedder
from glassformer.nn.encoder import TextEncoder
from glassformer.nn.pooling import SentencePooling
from glassformer.text.tokenizer import Tokenizer

TEXTS = ["the cat sat on the mat.", "a dog", "the kittens ate the hat, the cat sat on it. a dog?", "", "query: a hat"]
WORDS = {"bert": wordpieces, "roberta": bytes_of_roberta, "distilbert": wordpieces}
POOLS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
FLAGS = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


def make_model(family):
    """Return a model without pooler and next-sentence head, so that a class of `transformers` has the same parts."""
    config = replace(CONFIGS[family], pooler=False, next_sentence=False)
    if family == "roberta":  # the id of <pad> in its tokenizer is 1
        config = replace(config, vocab_size=263, position_offset=2)
    return randomise_sharp(TextEncoder(config))


MODELS = {family: make_model(family) for family in WORDS}
FAMILIES = pytest.mark.parametrize("family", WORDS)


@pytest.fixture(scope="module", params=WORDS)
def folder(request, tmp_path_factory):
    """A saved model and tokenizer without a pooling configuration."""
    path = tmp_path_factory.mktemp(request.param)
    save_model(MODELS[request.param], path)
    WORDS[request.param]().save(path)
    return path


@torch.no_grad()
def hf_states(folder, texts, limit=None):
    """Return the states [S, D] of each text from `transformers`, without batching."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    rows = [tokenizer(text, return_tensors="pt", truncation=limit is not None, max_length=limit) for text in texts]
    return [model(row["input_ids"]).last_hidden_state[0] for row in rows]


def pool_by_formula(how, states):
    """Return one text's states [S, D], pooled by a literal formula."""
    n = len(states)
    match how:
        case "cls":
            return states[0]
        case "lasttoken":
            return states[-1]
        case "max":
            return torch.stack([max(column) for column in states.T.unbind()])
        case "mean":
            return sum(states) / n
        case "mean_sqrt_len_tokens":
            return sum(states) / math.sqrt(n)
        case "weightedmean":
            return sum((i + 1) * state for i, state in enumerate(states)) / sum(range(1, n + 1))


def sentence_folder(folder, to, files, modules, weights=None):
    """Copy a model folder and add the files of sentence-transformers."""
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    rows = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(modules)]
    for name, content in ({"modules.json": rows} | files).items():
        (to / name).parent.mkdir(exist_ok=True)
        (to / name).write_text(json.dumps(content))
    for name, tensors in (weights or {}).items():
        save_file(tensors, to / name)
    return to


OLD = "sentence_transformers.models."
PLAIN = [("", OLD + "Transformer"), ("1_Pooling", OLD + "Pooling")]


def pooling(*flags, **more):
    names = {f"pooling_mode_{flag}": flag in flags for flag in FLAGS}
    return {"1_Pooling/config.json": {"word_embedding_dimension": 48, **names, **more}}


# ---- embedding


def test_folder_without_pooling_config_uses_mean(folder):
    embedder = Embedder.load(folder)
    found = embedder.embed(TEXTS)
    assert found.dtype == torch.float32
    for vector, states in zip(found, hf_states(folder, TEXTS), strict=True):
        assert_near(vector, pool_by_formula("mean", states))
    assert embedder.dimensions == 48
    assert_near(embedder.embed(TEXTS[0]), found[:1])
    assert embedder.embed([]).shape == (0, 48)


@pytest.mark.parametrize(("how", "flag"), list(zip(POOLS, FLAGS, strict=True)))
def test_pooling_mode_equals_formula(folder, how, flag, tmp_path):
    """The mode is stored as flags in older folders, and as a name in newer ones."""
    old = sentence_folder(folder, tmp_path / "old", pooling(flag), PLAIN)
    named = {"1_Pooling/config.json": {"embedding_dimension": 48, "pooling_mode": how, "include_prompt": True}}
    types = [
        ("", "sentence_transformers.base.modules.transformer.Transformer"),
        ("1_Pooling", "sentence_transformers.sentence_transformer.modules.pooling.Pooling"),
    ]
    new = sentence_folder(folder, tmp_path / "new", named, types)
    found = Embedder.load(old).embed(TEXTS)
    assert torch.equal(Embedder.load(new).embed(TEXTS), found)
    for vector, states in zip(found, hf_states(folder, TEXTS), strict=True):
        assert_near(vector, pool_by_formula(how, states))


def test_several_pools_dense_and_normalize(folder, tmp_path):
    """The order of pools is that of sentence-transformers; saving and loading preserves everything."""
    g = torch.Generator().manual_seed(4)
    w, b, w2 = (torch.randn(*shape, generator=g) / 7 for shape in ((20, 144), (20,), (9, 20)))
    files = pooling("lasttoken", "cls_token", "mean_tokens") | {
        "2_Dense/config.json": {
            "in_features": 144, "out_features": 20, "bias": True,
            "activation_function": "torch.nn.modules.activation.Tanh",
        },
        "4_Dense/config.json": {
            "in_features": 20, "out_features": 9, "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
            "module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding",
        },
        "config_sentence_transformers.json": {
            "__version__": {"sentence_transformers": "5.0.0"}, "similarity_fn_name": "dot", "truncate_dim": 7,
            "prompts": {"query": "query: ", "document": ""}, "default_prompt_name": None,
            "model_type": "SentenceTransformer",
        },
        "sentence_bert_config.json": {"max_seq_length": 30, "do_lower_case": False},
    }  # fmt: skip
    modules = [*PLAIN, ("2_Dense", OLD + "Dense"), ("3_Normalize", OLD + "Normalize"), ("4_Dense", OLD + "Dense")]
    weights = {"2_Dense/model.safetensors": {"linear.weight": w, "linear.bias": b}}
    weights["4_Dense/model.safetensors"] = {"linear.weight": w2}
    path = sentence_folder(folder, tmp_path / "model", files, modules, weights)
    embedder = Embedder.load(path)
    texts = [TEXTS[1], TEXTS[4]]
    found = embedder.embed(texts)
    for vector, states in zip(found, hf_states(folder, texts), strict=True):
        pooled = torch.cat([pool_by_formula(how, states) for how in ("cls", "mean", "lasttoken")])
        activated = torch.tanh(w @ pooled + b)
        assert_near(vector, (w2 @ (activated / activated.norm()))[:7])
    assert embedder.dimensions == 7
    assert embedder.max_tokens == 30
    assert embedder.sentence.config.similarity == "dot"

    embedder.save(tmp_path / "saved")
    again = Embedder.load(tmp_path / "saved")
    assert again.sentence.config == embedder.sentence.config
    assert again.config == embedder.config
    assert torch.equal(again.embed(texts), found)
    same = load_file(tmp_path / "saved/2_Dense/model.safetensors")
    assert torch.equal(same["linear.weight"], w)
    kinds = [row["type"] for row in json.loads((tmp_path / "saved/modules.json").read_text())]
    assert kinds == [kind for _, kind in modules]


@pytest.mark.parametrize("sizes", [(48, 48), (48, 10)])
def test_dense_layer_with_residual(folder, sizes, tmp_path):
    g = torch.Generator().manual_seed(4)
    d_in, d_out = sizes
    w, b, turn = (torch.randn(*shape, generator=g) / 7 for shape in ((d_out, d_in), (d_out,), (d_out, d_in)))
    layer = {"in_features": d_in, "out_features": d_out, "bias": True, "use_residual": True}
    layer["activation_function"] = "torch.nn.modules.activation.ReLU"
    tensors = {"linear.weight": w, "linear.bias": b} | ({} if d_in == d_out else {"residual.weight": turn})
    path = sentence_folder(
        folder, tmp_path / "model", pooling("mean_tokens") | {"2_Dense/config.json": layer},
        [*PLAIN, ("2_Dense", OLD + "Dense")], {"2_Dense/model.safetensors": tensors},
    )  # fmt: skip
    (states,), found = hf_states(folder, TEXTS[:1]), Embedder.load(path).embed(TEXTS[:1])
    x = pool_by_formula("mean", states)
    assert_near(found[0], torch.relu(w @ x + b) + (x if d_in == d_out else turn @ x))


@FAMILIES
def test_batch_does_not_change_vectors(family, monkeypatch):
    sentence = SentencePooling(PoolingConfig(pools=POOLS))
    embedder = Embedder(MODELS[family], WORDS[family](), sentence)
    together = embedder.embed(TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        assert_near(embedder.embed(text)[0], vector)
    monkeypatch.setattr("glassformer.models.embedder.BATCH_TOKENS", 40)
    calls = []
    assert_near(embedder.embed(TEXTS, progress=lambda done, n: calls.append((done, n))), together)
    assert len(calls) > 1
    assert calls[-1] == (5, 5)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_prompts_precede_the_text(folder, tmp_path):
    """A prompt is selected by name or by default; its tokens are pooled only if `include_prompt` is true."""
    overall = {"prompts": {"query": "query: a ", "document": ""}, "default_prompt_name": "query"}
    files = {"config_sentence_transformers.json": overall}
    counted = Embedder.load(sentence_folder(folder, tmp_path / "with", files | pooling("mean_tokens"), PLAIN))
    left = files | pooling("mean_tokens", "cls_token", include_prompt=False)
    not_counted = Embedder.load(sentence_folder(folder, tmp_path / "without", left, PLAIN))
    states, bare = hf_states(folder, ["query: a cat"]), hf_states(folder, ["cat"])
    skipped = len(counted.tokenizer.encode("query: a ")) - 1  # includes the prefix token, excludes the suffix token
    assert_near(counted.embed("cat")[0], pool_by_formula("mean", states[0]))
    assert_near(counted.embed("cat", prompt="query")[0], pool_by_formula("mean", states[0]))
    assert_near(counted.embed("cat", prompt="document")[0], pool_by_formula("mean", bare[0]))
    rest = states[0][skipped:]
    assert_near(not_counted.embed("cat")[0], torch.cat([rest[0], pool_by_formula("mean", rest)]))
    assert_near(
        not_counted.embed("cat", prompt="document")[0], torch.cat([bare[0][0], pool_by_formula("mean", bare[0])])
    )
    with pytest.raises(RequestError, match="no prompt 'passage'; it has: query, document"):
        counted.embed("cat", prompt="passage")
    with pytest.raises(RequestError, match="it has: none"):
        Embedder.load(folder).embed("cat", prompt="query")


def test_long_texts_raise_or_are_truncated(folder, tmp_path):
    files = pooling("mean_tokens") | {"sentence_bert_config.json": {"max_seq_length": 8, "do_lower_case": False}}
    embedder, long = (
        Embedder.load(sentence_folder(folder, tmp_path / "model", files, PLAIN)),
        "the cat sat on the mat. " * 3,
    )
    with pytest.raises(
        CapacityError, match=r"^text 2 of 2: the text has \d+ tokens, and the model processes at most 8"
    ):
        embedder.embed(["a", long])
    with pytest.raises(CapacityError, match=r"^the text has"):
        embedder.embed(long)
    (states,) = hf_states(folder, [long], limit=8)
    assert len(states) == 8
    assert_near(embedder.embed(long, truncate=True)[0], pool_by_formula("mean", states))
    assert embedder.tokenizer.encode(long)[-1:] == embedder.tokenizer.suffix_ids
    unlimited = Embedder.load(folder)
    assert unlimited.max_tokens == 64, "the context length of the model"
    with pytest.raises(CapacityError, match="at most 64"):
        unlimited.embed("a " * 90)


def test_tokenizer_limit_applies_without_pooling_limit(tmp_path):
    words = wordpieces()
    for limit, want in ((30, 30), (512, 64), (10**30, 64)):
        words.config["model_max_length"] = limit
        assert Embedder(MODELS["bert"], words).max_tokens == want
    made = SentencePooling(PoolingConfig(max_tokens=40))
    words.config["model_max_length"] = 30
    assert Embedder(MODELS["bert"], words, made).max_tokens == 40


def test_lowercase_option(folder, tmp_path):
    files = pooling("mean_tokens") | {"sentence_bert_config.json": {"max_seq_length": None, "do_lower_case": True}}
    embedder = Embedder.load(sentence_folder(folder, tmp_path / "model", files, PLAIN))
    assert_near(embedder.embed("The CAT"), Embedder.load(folder).embed("the cat"))
    if "RobertaModel" in str(type(transformers.AutoModel.from_pretrained(folder))):
        assert not torch.allclose(Embedder.load(folder).embed("The CAT"), embedder.embed("The CAT"))


def test_text_never_becomes_a_control_token(folder):
    embedder = Embedder.load(folder)
    sep, mask = embedder.tokenizer.suffix_ids[0], embedder.tokenizer.mask_id
    for name, index in embedder.tokenizer.special_tokens.items():
        if name == "[UNK]":  # the token of unknown text, which any text may produce
            continue
        (row,) = embedder._encode_batch([f"a {name} b"], "", False)
        assert row.count(index) == (1 if index in (row[0], sep) else 0), name
    assert mask in embedder.tokenizer.special_tokens.values()


def test_similarity_uses_the_configured_measure():
    a, b = torch.randn(3, 5), torch.randn(2, 5)
    how = {
        "cosine": lambda x, y: (x @ y) / (x.norm() * y.norm()),
        "dot": lambda x, y: x @ y,
        "euclidean": lambda x, y: -((x - y) ** 2).sum().sqrt(),
        "manhattan": lambda x, y: -(x - y).abs().sum(),
    }
    for name, one in how.items():
        embedder = Embedder(MODELS["bert"], wordpieces(), SentencePooling(PoolingConfig(similarity=name)))
        assert_near(embedder.similarity(a, b), torch.stack([torch.stack([one(x, y) for y in b]) for x in a]))


# ---- states, two texts, masks


def test_states_of_one_text_and_of_two_texts(folder):
    embedder = Embedder.load(folder)
    assert_near(embedder.states(TEXTS[0]), hf_states(folder, TEXTS[:1])[0])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    hf_model = transformers.AutoModel.from_pretrained(folder).eval()
    row = tokenizer(
        "the cat", "a dog sat", return_tensors="pt", return_token_type_ids=embedder.config.n_token_types > 1
    )
    with torch.no_grad():
        assert_near(embedder.states("the cat", "a dog sat"), hf_model(**row).last_hidden_state[0])
    with pytest.raises(CapacityError, match="context holds 64"):
        embedder.states("a " * 40, "b " * 40)


def test_next_sentence_probability_equals_transformers(tmp_path):
    config = replace(CONFIGS["bert"], n_token_types=2)
    embedder = Embedder(randomise_sharp(TextEncoder(config)), wordpieces())
    embedder.save(tmp_path)
    hf_model = transformers.BertForPreTraining.from_pretrained(tmp_path).eval()
    row = transformers.AutoTokenizer.from_pretrained(tmp_path)(
        "the cat", "sat.", return_tensors="pt", return_token_type_ids=True
    )
    with torch.no_grad():
        want = hf_model(**row).seq_relationship_logits.softmax(-1)[0, 0].item()
    assert embedder.follows("the cat", "sat.") == pytest.approx(want, rel=1e-4)
    with pytest.raises(RequestError, match="no head for next-sentence prediction"):
        Embedder(MODELS["bert"], wordpieces()).follows("a", "b")


def test_fill_equals_transformers(folder):
    embedder = Embedder.load(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    hf_model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    text = f"the {tokenizer.mask_token} sat on the {tokenizer.mask_token}."
    row = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        probs = hf_model(row["input_ids"]).logits[0].softmax(-1)
    positions = (row["input_ids"][0] == tokenizer.mask_token_id).nonzero()[:, 0]
    found = embedder.fill(text, top=4)
    assert len(found) == len(positions) == 2
    for candidates, at in zip(found, positions, strict=True):
        best = probs[at].topk(4)
        assert [candidate.id for candidate in candidates] == best.indices.tolist()
        assert [candidate.probability for candidate in candidates] == pytest.approx(best.values.tolist(), rel=1e-4)
        for candidate in candidates:
            spelled = tokenizer.convert_ids_to_tokens(candidate.id)
            assert spelled is None or candidate.text.strip() in (
                "",
                spelled.removeprefix("##").removeprefix("Ġ"),
                "\ufffd",
            )


def test_invalid_fill_requests_raise():
    embedder = Embedder(MODELS["bert"], wordpieces())
    with pytest.raises(RequestError, match=r"the text has no mask token: put \[MASK\] where"):
        embedder.fill("the cat")
    for top in (0, 98, True):
        with pytest.raises(RequestError, match="top must be from 1 to 97"):
            embedder.fill("the [MASK]", top=top)
    with pytest.raises(CapacityError, match="context holds 64"):
        embedder.fill("a " * 80 + "[MASK]")
    bare = TextEncoder(replace(MODELS["bert"].config, head=None))
    with pytest.raises(RequestError, match="no head for masked language modelling"):
        Embedder(bare, wordpieces()).fill("the [MASK]")


# ---- folders


def test_transformers_opens_a_saved_folder(folder, tmp_path):
    embedder = Embedder.load(folder)
    embedder.save(tmp_path)
    for text, states in zip(TEXTS, hf_states(tmp_path, TEXTS), strict=True):
        assert_near(embedder.embed(text)[0], pool_by_formula("mean", states))
    assert "Embedder(" in repr(embedder)
    assert glassformer.Embedder is Embedder


def test_transformer_in_a_subfolder(folder, tmp_path):
    """Early folders of sentence-transformers have this layout."""
    path = sentence_folder(
        folder, tmp_path / "model", pooling("cls_token"), [("0_Transformer", OLD + "Transformer"), PLAIN[1]]
    )
    (path / "0_Transformer").mkdir()
    for file in folder.iterdir():
        (path / file.name).rename(path / "0_Transformer" / file.name)
    (path / "0_Transformer/sentence_distilbert_config.json").write_text(
        '{"max_seq_length": 20, "do_lower_case": false}'
    )
    assert transformer_folder(path) == path / "0_Transformer"
    embedder = Embedder.load(path)
    assert embedder.max_tokens == 20
    assert_near(embedder.embed(TEXTS[1])[0], pool_by_formula("cls", hf_states(folder, TEXTS[1:2])[0]))


def test_order_of_pools_is_preserved(tmp_path):
    made = SentencePooling(
        PoolingConfig(pools=("mean", "cls"), after=("normalize", DenseConfig(96, 3, activation="gelu")))
    )
    write_pooling(made, tmp_path, 48)
    again = read_pooling(tmp_path, 48)
    assert again.config == made.config
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), made.parameters(), strict=True))


POOL, BERT, OVERALL = "1_Pooling/config.json", "sentence_bert_config.json", "config_sentence_transformers.json"
LAYER = {"in_features": 48, "out_features": 5, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}
DENSE = [*PLAIN, ("2", OLD + "Dense")]


@pytest.mark.parametrize(
    ("changed", "modules", "error", "message"),
    [
        ({POOL: {"word_embedding_dimension": 40}}, None, CheckpointError, "dimension is 40, but the model's is 48"),
        ({POOL: {"pooling_mode": "middle"}}, None, ConfigError, "pooling_mode must be .*'middle'"),
        ({POOL: {"pooling_mode_odd": True}}, None, ConfigError, "not understand: pooling_mode_odd"),
        ({POOL: [1]}, None, CheckpointError, "must hold a JSON object"),
        ({BERT: {"max_seq_length": 0}}, None, ConfigError, "max_seq_length .* at least 1, got 0"),
        ({BERT: {"odd": 0}}, None, ConfigError, "not understand: odd"),
        ({BERT: {"transformer_task": "fill-mask"}}, None, ConfigError, "transformer_task = 'fill-mask'"),
        ({BERT: {"modality_config": {"image": {}}}}, None, ConfigError, "must have only text"),
        ({OVERALL: {"prompts": [1]}}, None, ConfigError, "prompts must map names to texts"),
        ({OVERALL: {"default_prompt_name": "x"}}, None, ConfigError, "'x' is not one of"),
        ({OVERALL: {"similarity_fn_name": "odd"}}, None, ConfigError, "similarity_fn_name = 'odd'"),
        ({OVERALL: {"model_type": "SparseEncoder"}}, None, ConfigError, "'SparseEncoder'"),
        ({}, [*PLAIN, ("2", OLD + "LSTM")], ConfigError, "any Dense and Normalize after them, got .*LSTM"),
        ({}, [PLAIN[0]], ConfigError, "a Pooling"),
        ({}, [("", "my.own.Transformer")], ConfigError, "'my.own.Transformer' is custom code, which is not run"),
        ({}, [("../x", OLD + "Transformer")], ConfigError, "must lie within the folder"),
        ({}, [], ConfigError, "the first module must be a Transformer, got none"),
        ({"modules.json": {"a": 1}}, None, CheckpointError, "modules.json: input should be a valid list"),
        ({"modules.json": [{"type": "a", "path": 3}]}, None, CheckpointError, r"\[0\].path: input should be"),
        ({"modules.json": [{"type": "a"}]}, None, CheckpointError, r"\[0\].path: field required"),
        ({"2/config.json": LAYER}, DENSE, CheckpointError, r"model\.safetensors is missing"),
        ({"2/config.json": LAYER | {"in_features": 4}}, DENSE, CheckpointError, "in_features is 4, .* 48"),
        ({"2/config.json": LAYER | {"activation_function": "os.system"}}, DENSE, ConfigError, "got 'os.system'"),
        ({"2/config.json": LAYER | {"module_input_name": "odd"}}, DENSE, ConfigError, "module_input_name = 'odd'"),
        ({"2/config.json": {"module_input_name": "x"}}, [*PLAIN, ("2", OLD + "Normalize")], ConfigError, "'x'"),
    ],
)  # fmt: skip
def test_invalid_sentence_folders_raise(tmp_path, changed, modules, error, message):
    rows = PLAIN if modules is None else modules
    files = {"modules.json": [{"path": path, "type": kind} for path, kind in rows]} | pooling("mean_tokens") | changed
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(error, match=message):
        read_pooling(tmp_path, 48)


def test_all_errors_of_a_dense_layer_are_in_one_message(tmp_path):
    made = SentencePooling(PoolingConfig(after=(DenseConfig(48, 5),)))
    write_pooling(made, tmp_path, 48)
    save_file({"linear.weight": torch.zeros(5, 4), "odd": torch.zeros(1)}, tmp_path / "2_Dense/model.safetensors")
    with pytest.raises(CheckpointError) as error:
        read_pooling(tmp_path, 48)
    for line in ("shape: linear.weight is [5, 4]", "missing: linear.bias", "not used: odd"):
        assert line in str(error.value)


def test_load_rejects_folders_of_other_kinds(tmp_path):
    save_model(MODELS["bert"], tmp_path / "bare")
    with pytest.raises(CheckpointError, match="has no tokenizer, which an embedder needs"):
        Embedder.load(tmp_path / "bare")
    save_model(tiny("gpt2"), tmp_path / "decoder")
    with pytest.raises(CheckpointError, match=r"is a decoder-only language model: use `glassformer generate`"):
        Embedder.load(tmp_path / "decoder")
    with pytest.raises(TokenizerError, match="has 263 tokens, and the model 97"):
        Embedder(MODELS["bert"], bytes_of_roberta())
    with pytest.raises(CheckpointError, match="is not a folder"):
        Embedder.load(tmp_path / "nowhere")


def test_empty_text_without_special_tokens_raises():
    layout = json.loads(wordpieces().backend.json) | {"post_processor": None}
    embedder = Embedder(MODELS["bert"], Tokenizer(json.dumps(layout), {}))
    assert embedder.embed("a").shape == (1, 48)
    with pytest.raises(RequestError, match=r"^text 2 of 2: the text is empty"):
        embedder.embed(["a", ""])
    with pytest.raises(RequestError, match="the text is empty"):
        embedder.states("")


def test_bfloat16_pools_in_float32():
    """Sums over many tokens would lose precision in bfloat16."""
    states = torch.randn(2, 60, 48, generator=torch.Generator().manual_seed(0)).bfloat16()
    counted = torch.ones(2, 60, dtype=torch.bool)
    for how in ("mean", "mean_sqrt_len_tokens", "weightedmean"):
        got = SentencePooling(PoolingConfig(pools=(how,)))(states, counted)
        want = torch.stack([pool_by_formula(how, row.double()) for row in states]).bfloat16()
        assert got.dtype == torch.bfloat16
        assert (got.float() - want.float()).abs().max() <= want.float().abs().max() * 2**-8
