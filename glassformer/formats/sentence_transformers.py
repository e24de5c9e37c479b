"""Read and write the pooling of a `sentence-transformers` folder: how states become one vector.

modules.json                        the modules, in order, and the folder of each
sentence_bert_config.json           settings of the transformer: max_seq_length, do_lower_case
1_Pooling/config.json               the kinds of pooling
2_Dense/config.json, weights        a dense layer
config_sentence_transformers.json   prompts, similarity measure
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NotRequired, get_args

import torch
from torch import Tensor
from typing_extensions import TypedDict

from glassformer import json_file
from glassformer.atomic import write_text
from glassformer.config import DenseConfig, Pool, PoolingConfig, Similarity
from glassformer.errors import CheckpointError, ConfigError
from glassformer.families.common.family import ConfigFields
from glassformer.formats.reader import TensorReader, read_json
from glassformer.formats.safetensors_file import save_tensors
from glassformer.formats.weight_files import open_weights, weight_files
from glassformer.nn.pooling import Dense, SentencePooling

MODULES, OVERALL = "modules.json", "config_sentence_transformers.json"
TRANSFORMER = re.compile(
    r"sentence_[\w-]+_config\.json"
)  # sentence_bert_config.json; older files are named after the model type
TYPES = "sentence_transformers.models."  # understood by every version of the library
POOL_FLAGS: dict[str, Pool] = {  # the key of each pool, in the order of concatenation
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
ACTIVATIONS = {
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
    "torch.nn.modules.activation.SiLU": "silu",
}
EMBEDDING_NAME = ("sentence_embedding", None)  # input and output of a module after pooling


def transformer_folder(folder: Path) -> Path:
    """Return the transformer's folder of a sentence-transformers folder; any other path itself."""
    return _modules(folder)[0][1] if (folder / MODULES).exists() else folder


def read_pooling(folder: Path, d_model: int) -> SentencePooling:
    """Load the pooling of a folder; the mean of all states if the folder has no modules.json.

    Raises:
        ConfigError: a setting or module is not supported.
        CheckpointError: a file is missing or damaged, or sizes do not fit.
    """
    if not (folder / MODULES).exists():
        return SentencePooling(PoolingConfig()).eval()
    modules = _modules(folder)
    kinds = [kind for kind, _ in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or not set(kinds[2:]) <= {"Dense", "Normalize"}:
        raise ConfigError(
            f"{folder / MODULES}: the modules must be a Transformer, a Pooling, and any Dense and Normalize after "
            f"them, got {', '.join(kinds)}"
        )
    pools, with_prompt = _pooling(modules[1][1] / "config.json", d_model)
    width, after, weights = d_model * len(pools), [], {}
    for i, (kind, path) in enumerate(modules[2:]):
        if kind == "Normalize":
            _normalize(path / "config.json")
            after.append("normalize")
            continue
        dense = _dense(path / "config.json", width)
        after.append(dense)
        width = dense.d_out
        weights |= {f"after.{i}.{name}": value for name, value in _weights(path, dense).items()}
    config = PoolingConfig(
        pools=pools, after=tuple(after), with_prompt=with_prompt, **_transformer(modules[0][1]), **_overall(folder)
    )
    with torch.device("meta"):
        sentence = SentencePooling(config)
    sentence.load_state_dict(weights, assign=True)
    return sentence.requires_grad_(False).eval()


def write_pooling(sentence: SentencePooling, folder: Path, d_model: int) -> None:
    """Write the files that `read_pooling` reads into a model's folder."""
    config, rows = sentence.config, [("", "Transformer"), ("1_Pooling", "Pooling")]
    flags = {flag: pool in config.pools for flag, pool in POOL_FLAGS.items()}
    pooling = {"word_embedding_dimension": d_model, **flags, "include_prompt": config.with_prompt}
    if config.pools != tuple(pool for pool in POOL_FLAGS.values() if pool in config.pools):
        pooling["pooling_mode"] = list(config.pools)  # in another order than that of the flags
    files: dict[str, Any] = {"1_Pooling/config.json": pooling}
    for i, (one, module) in enumerate(zip(config.after, sentence.after, strict=True), 2):
        if isinstance(one, DenseConfig):
            path, names = f"{i}_Dense", {ours: theirs for theirs, ours in ACTIVATIONS.items()}
            files[f"{path}/config.json"] = {
                "in_features": one.d_in, "out_features": one.d_out, "bias": one.bias,
                "activation_function": names[one.activation], **({"use_residual": True} if one.residual else {}),
            }  # fmt: skip
            (folder / path).mkdir(parents=True, exist_ok=True)
            save_tensors(
                {name: value.detach().cpu().contiguous() for name, value in module.named_parameters()},
                folder / path / "model.safetensors",
            )
            rows.append((path, "Dense"))
        else:
            path = f"{i}_Normalize"
            (folder / path).mkdir(parents=True, exist_ok=True)
            rows.append((path, "Normalize"))
    files["sentence_bert_config.json"] = {"max_seq_length": config.max_tokens, "do_lower_case": config.lowercase}
    files[OVERALL] = {
        "prompts": dict(config.prompts), "default_prompt_name": config.prompt, "similarity_fn_name": config.similarity,
        **({"truncate_dim": config.dimensions} if config.dimensions else {}),
    }  # fmt: skip
    files[MODULES] = [
        {"idx": i, "name": str(i), "path": path, "type": TYPES + kind} for i, (path, kind) in enumerate(rows)
    ]
    for name, value in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_text(folder / name, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


class ModuleRow(TypedDict):
    """One entry of modules.json."""

    type: str
    path: str
    kwargs: NotRequired[dict[str, Any] | None]


def _modules(folder: Path) -> list[tuple[str, Path]]:
    """Return the kind and folder of every module."""
    path = folder / MODULES
    rows = json_file.read_json(path, list[ModuleRow])
    modules = [(row["type"], row["path"], row.get("kwargs")) for row in rows]
    for kind, where, kwargs in modules:
        if not kind.startswith("sentence_transformers."):
            raise ConfigError(f"{path}: a module of type {kind!r} is custom code, which is not run")
        if kwargs:
            raise ConfigError(f"{path}: a module's kwargs are not supported, got {kwargs!r:.100}")
        if Path(where).is_absolute() or ".." in Path(where).parts:
            raise ConfigError(f"{path}: a module's path must lie within the folder, got {where!r}")
    if not modules or not modules[0][0].endswith(".Transformer"):
        raise ConfigError(f"{path}: the first module must be a Transformer, got {modules[0][0] if modules else 'none'}")
    return [(kind.rpartition(".")[2], folder / where if where else folder) for kind, where, _ in modules]


def _transformer(folder: Path) -> dict[str, Any]:
    paths = sorted(path for path in folder.glob("sentence_*_config.json") if TRANSFORMER.fullmatch(path.name))
    if not paths:
        return {}
    raw = ConfigFields(read_json(paths[0]), str(paths[0]))
    raw.expect("transformer_task", "feature-extraction")
    raw.expect("module_output_name", "token_embeddings", None)
    kinds = raw.take("modality_config", {"text": {}})
    if not isinstance(kinds, dict) or set(kinds) != {"text"}:
        raise ConfigError(f"{raw.source}: modality_config must have only text, got {kinds!r:.100}")
    raw.take("unpad_inputs", None)  # does not change the result
    for name in ("processing_kwargs", "model_args", "tokenizer_args", "config_args"):
        raw.expect(name, None, {})
    for name in ("query_length", "document_length", "query_expansion"):
        raw.expect(name, None)
    settings = {"max_tokens": raw.optional("max_seq_length"), "lowercase": raw.flag("do_lower_case", False)}
    raw.close()
    return settings


def _pooling(path: Path, d_model: int) -> tuple[tuple[Pool, ...], bool]:
    raw = ConfigFields(read_json(path), str(path))
    size = raw.size("embedding_dimension", raw.size("word_embedding_dimension", d_model))
    if size != d_model:
        raise CheckpointError(f"{path}: the embedding dimension is {size}, but the model's is {d_model}")
    flagged = tuple(pool for flag, pool in POOL_FLAGS.items() if raw.flag(flag, False)) or ("mean",)
    named = raw.take("pooling_mode", flagged)
    pools: Any = tuple(named) if isinstance(named, list | tuple) else (named,)
    if not pools or not all(pool in get_args(Pool) for pool in pools):
        raise ConfigError(
            f"{path}: pooling_mode must be one or more of {', '.join(get_args(Pool))}, got {named!r:.100}"
        )
    with_prompt = raw.flag("include_prompt", True)
    raw.close()
    return pools, with_prompt


def _dense(path: Path, width: int) -> DenseConfig:
    raw = ConfigFields(read_json(path), str(path))
    _check_names(raw)
    name = raw.take("activation_function", next(iter(ACTIVATIONS)))
    if name not in ACTIVATIONS:
        raise ConfigError(f"{path}: activation_function must be one of {', '.join(ACTIVATIONS)}, got {name!r}")
    size = raw.size("in_features")
    if size != width:
        raise CheckpointError(f"{path}: in_features is {size}, but the layer before has {width} outputs")
    activation: Any = ACTIVATIONS[name]
    dense = DenseConfig(
        size, raw.size("out_features"), raw.flag("bias", True), activation, raw.flag("use_residual", False)
    )
    raw.close()
    return dense


def _normalize(path: Path) -> None:
    if path.exists():
        raw = ConfigFields(read_json(path), str(path))
        _check_names(raw)
        raw.close()


def _check_names(raw: ConfigFields) -> None:
    for name in ("module_input_name", "module_output_name"):
        raw.expect(name, *EMBEDDING_NAME)


def _weights(folder: Path, config: DenseConfig) -> dict[str, Tensor]:
    """Read a dense layer's tensors. CheckpointError: lists all problems."""
    path = folder / weight_files(folder)[0]
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    reader, wrong = TensorReader([open_weights(path)]), []
    with torch.device("meta"):
        needed = dict(Dense(config).named_parameters())
    for name, parameter in needed.items():
        if name not in reader:
            wrong.append(f"missing: {name}")
        elif reader.shape(name) != tuple(parameter.shape):
            wrong.append(f"shape: {name} is {list(reader.shape(name))}, the config needs {list(parameter.shape)}")
    wrong += [f"not used: {name}" for name in sorted(set(reader) - set(needed))]
    if wrong:
        raise CheckpointError(f"{path}: the weights do not fit the configuration:\n  " + "\n  ".join(wrong))
    return {name: reader[name].clone() for name in needed}


def _overall(folder: Path) -> dict[str, Any]:
    if not (folder / OVERALL).exists():
        return {}
    raw = ConfigFields(read_json(folder / OVERALL), str(folder / OVERALL))
    raw.take("__version__", None)
    raw.expect("model_type", "SentenceTransformer")
    prompts = raw.take("prompts", None) or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise ConfigError(f"{raw.source}: prompts must map names to texts, got {prompts!r:.100}")
    named, kinds = raw.take("default_prompt_name", None), get_args(Similarity)
    if named is not None and named not in list(prompts):
        raise ConfigError(f"{raw.source}: default_prompt_name {named!r} is not one of the prompts {list(prompts)}")
    raw.expect("similarity_fn_name", None, *kinds)
    settings = {
        "prompts": prompts,
        "prompt": named,
        "similarity": raw.take("similarity_fn_name", None) or kinds[0],
        "dimensions": raw.optional("truncate_dim"),
    }
    raw.close()
    return settings
