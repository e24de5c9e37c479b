"""Models by their name on the Hugging Face hub: `owner/name` or `owner/name@revision`, downloaded once and kept.

The work is `huggingface_hub`'s: its cache, its resuming, its progress bar, its environment (HF_HOME, HF_ENDPOINT,
HF_TOKEN, HF_HUB_OFFLINE).
"""

from __future__ import annotations

import re
from pathlib import Path

from glassformer.errors import CheckpointError

NAME = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")
BESIDE = (".json", ".jinja", ".model", ".txt", ".tiktoken")  # what lies beside the weights: config, tokenizer, template
INSIDE = re.compile(r"\d+_\w+/(config\.json|model\.safetensors|pytorch_model\.bin)")  # and in folders of its own


def is_hub_name(name: str) -> bool:
    """Whether a name has the form of one on the hub."""
    return NAME.fullmatch(name) is not None


def fetch(name: str, *, offline: bool = False) -> Path:
    """The folder that holds a model of the hub: from the cache if `offline`, else as the hub has it now.

    Where the hub cannot be reached, what the cache has is taken. CheckpointError where there is no such model, or where
    it is not in the cache.
    """
    import huggingface_hub as hub
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    match = NAME.fullmatch(name)
    assert match is not None, f"{name} is no name on the hub"
    repo, revision = match["repo"], match["revision"]
    wanted, why = None, "offline"
    if not (offline or hub.is_offline_mode()):
        try:
            files = [file.rfilename for file in hub.HfApi().model_info(repo, revision=revision).siblings or []]
            wanted = choose_files(files, name)
        except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError) as error:
            raise CheckpointError(f"{name} cannot be had from the hub: {_first_line(error)}") from None
        except CheckpointError:
            raise
        except Exception as error:  # whatever the network does
            why = f"the hub cannot be reached ({_first_line(error)})"
    cached = wanted is None  # then its other files are looked at when they are opened
    try:
        folder = hub.snapshot_download(
            repo, revision=revision, allow_patterns=wanted or ["config.json"], local_files_only=cached
        )
    except Exception as error:
        if cached:
            message = f"{name} is neither a folder nor a file here, and is not in the hub's cache: {why}"
            raise CheckpointError(message) from None
        raise CheckpointError(f"{name} could not be downloaded: {_first_line(error)}") from None
    return Path(folder)


def choose_files(files: list[str], name: str) -> list[str]:
    """What to download of a repository's files: one kind of weights, and what lies beside them."""
    top = [file for file in files if "/" not in file]
    beside = [file for file in top if file.endswith(BESIDE) and not file.endswith(".index.json")]
    inside = [file for file in files if INSIDE.fullmatch(file)]
    twice = {f"{file.rpartition('/')[0]}/pytorch_model.bin" for file in inside if file.endswith(".safetensors")}
    beside += [file for file in inside if file not in twice]
    for start, end in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        found = [file for file in top if re.fullmatch(rf"{start}(-\d+-of-\d+)?{re.escape(end)}(\.index\.json)?", file)]
        if found:
            return beside + found
    ggufs = [file for file in top if file.endswith(".gguf")]
    if len(ggufs) == 1:
        return beside + ggufs
    if ggufs:
        raise CheckpointError(f"{name} has several GGUF files: download the one you want ({', '.join(sorted(ggufs))})")
    raise CheckpointError(f"{name} has no weights that can be read: model.safetensors, pytorch_model.bin or GGUF")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
