"""Download models from the Hugging Face hub by `owner/name` or `owner/name@revision`.

`huggingface_hub` does the work, with its cache, progress bar and environment (HF_HOME, HF_ENDPOINT, HF_TOKEN,
HF_HUB_OFFLINE). `download.py` resumes large files.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from glassformer.errors import CheckpointError
from glassformer.formats.download import download_resumable
from glassformer.formats.gguf.shards import group_shards

NAME = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")
SIDE_FILES = (".json", ".jinja", ".model", ".txt", ".tiktoken")  # configuration, tokenizer and chat template
LARGE = (".safetensors", ".bin", ".pth", ".gguf")
# Modules of sentence-transformers, and named chat templates.
SUBFOLDER_FILES = re.compile(
    r"\d+_\w+/(config\.json|model\.safetensors|pytorch_model\.bin)|additional_chat_templates/[^/]+\.jinja"
)


def is_hub_name(name: str) -> bool:
    """Whether a name has the form of a model name on the hub."""
    return NAME.fullmatch(name) is not None


def fetch(name: str, *, offline: bool = False) -> Path:
    """Return the folder of a model on the hub: its current version, or the cached one if `offline`.

    If the hub cannot be reached, the cached version is used.

    Raises:
        CheckpointError: the model does not exist, or is not in the cache.
    """
    import huggingface_hub as hub
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    match = NAME.fullmatch(name)
    assert match is not None, f"{name} is not a model name of the hub"
    repo, revision = match["repo"], match["revision"]
    wanted, commit, why = None, None, "offline"
    if not (offline or hub.is_offline_mode()):
        try:
            info = hub.HfApi().model_info(repo, revision=revision)
            wanted, commit = choose_files([file.rfilename for file in info.siblings or []], name), info.sha
        except CheckpointError:
            raise
        except HfHubHTTPError as error:
            if error.response.status_code < 500 or isinstance(error, RepositoryNotFoundError):
                raise CheckpointError(f"{name} cannot be downloaded from the hub: {_reason(error, revision)}") from None
            why = f"the hub cannot be reached ({_first_line(error)})"
        except Exception as error:  # network failures have many types
            why = f"the hub cannot be reached ({_first_line(error)})"
    cached = wanted is None  # missing files are reported when the model is opened
    try:
        if wanted and commit:
            download_resumable(repo, commit, [file for file in wanted if file.endswith(LARGE)])
        folder = hub.snapshot_download(
            repo, revision=revision, allow_patterns=wanted or ["config.json"], local_files_only=cached
        )
    except Exception as error:
        if cached:
            message = f"{name} is neither a folder nor a file here, and is not in the hub's cache: {why}"
            raise CheckpointError(message) from None
        reason = _reason(error, revision) if isinstance(error, HfHubHTTPError) else _first_line(error)
        raise CheckpointError(f"{name} could not be downloaded: {reason}") from None
    return Path(folder)


def choose_files(files: list[str], name: str) -> list[str]:
    """Choose the files to download: one kind of weights, and the configuration and tokenizer files."""
    top = [file for file in files if "/" not in file]
    side_files = [file for file in top if file.endswith(SIDE_FILES) and not file.endswith(".index.json")]
    subfolder_files = [file for file in files if SUBFOLDER_FILES.fullmatch(file)]
    redundant = {
        f"{file.rpartition('/')[0]}/pytorch_model.bin" for file in subfolder_files if file.endswith(".safetensors")
    }
    side_files += [file for file in subfolder_files if file not in redundant]
    for start, end in (("model", ".safetensors"), ("pytorch_model", ".bin"), (r"consolidated(\.\d+)?", ".pth")):
        weights = [
            file for file in top if re.fullmatch(rf"{start}(-\d+-of-\d+)?{re.escape(end)}(\.index\.json)?", file)
        ]
        if weights:
            return side_files + weights
    ggufs = group_shards(file for file in top if file.endswith(".gguf"))
    if len(ggufs) == 1:
        return side_files + [file for files in ggufs.values() for file in files]
    if ggufs:
        raise CheckpointError(f"{name} has several GGUF files: download the one you want ({', '.join(sorted(ggufs))})")
    raise CheckpointError(f"{name} has no supported weights: model.safetensors, pytorch_model.bin or GGUF")


def _reason(error: Any, revision: str | None) -> str:
    """Explain an error response of the hub."""
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RevisionNotFoundError

    status, path = error.response.status_code, error.response.url.path
    if isinstance(error, GatedRepoError):
        return f"access to it must be requested on its page; then set HF_TOKEN ({status})"
    if isinstance(error, RevisionNotFoundError):
        return f"it has no revision {revision!r} ({status})"
    if isinstance(error, EntryNotFoundError):
        return f"{path} does not exist ({status})"
    if status in (401, 404):
        return f"it does not exist, or it is private and HF_TOKEN must be set ({status})"
    return f"the hub denies access: check HF_TOKEN ({status})" if status == 403 else _first_line(error)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
