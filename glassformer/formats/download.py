"""Download large files of the hub so that an interrupted download is resumed.

`huggingface_hub` restarts each file. So this module downloads a large one to a part file in its cache:

    <cache>/models--owner--name/blobs/<etag>.part  -- complete and SHA-256 verified -->  blobs/<etag>
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from glassformer.errors import CheckpointError

MIN_SIZE = 10_000_000  # bytes: the library downloads smaller files
MAX_SIZE = 50_000_000_000  # bytes: the library downloads larger files, which plain HTTP does not serve


def download_resumable(repo: str, commit: str, files: Sequence[str]) -> None:
    """Download the large files of a repository into the cache, resuming interrupted ones.

    Raises:
        CheckpointError: a file does not have the hub's size or hash. Errors of the library are passed on.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get, repo_folder_name
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    blobs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model") / "blobs"
    for name in files:
        url = hf_hub_url(repo, name, revision=commit)
        metadata = get_hf_file_metadata(url)
        if metadata.etag is None or metadata.size is None or not MIN_SIZE <= metadata.size <= MAX_SIZE:
            continue
        complete, part = blobs / metadata.etag, blobs / f"{metadata.etag}.part"
        blobs.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(blobs / f"{metadata.etag}.part.lock"):
            if complete.exists():
                continue
            with part.open("ab") as file:
                http_get(
                    metadata.location,
                    file,
                    resume_size=file.tell(),
                    headers=build_hf_headers() if metadata.location == url else {},
                    expected_size=metadata.size,
                    displayed_filename=name,
                )
            verify_download(part, name, metadata.etag, metadata.size)
            os.replace(part, complete)


def verify_download(part: Path, name: str, etag: str, size: int) -> None:
    """Remove a complete part file whose size or hash is wrong. The etag of a large file is its SHA-256."""
    with part.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if part.stat().st_size != size or (len(etag) == 64 and digest != etag):
        part.unlink()
        raise CheckpointError(f"{name} was downloaded, but its size or hash is not the hub's: try again")
