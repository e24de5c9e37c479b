"""Large files of the hub, downloaded so that what is there when the process is killed is not downloaded again.

`huggingface_hub` begins each file anew. So a large one is put into its cache here, from a part that is kept beside:

    <cache>/models--owner--name/blobs/<etag>.part  ---- whole, and its SHA-256 as it should be ---->  blobs/<etag>
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from glassformer.errors import CheckpointError

LARGE = 10_000_000  # bytes: smaller files are the library's own business
MOST = 50_000_000_000  # and so are larger ones than these, which plain HTTP does not give out


def download_resumable(repo: str, commit: str, files: Sequence[str]) -> None:
    """Bring the large ones of a repository's files into the cache, each from where it broke off the last time.

    Raises what the library raises, and CheckpointError for a file that is not what the hub says it is.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get, repo_folder_name
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    blobs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model") / "blobs"
    for name in files:
        url = hf_hub_url(repo, name, revision=commit)
        found = get_hf_file_metadata(url)
        if found.etag is None or found.size is None or not LARGE <= found.size <= MOST:
            continue
        whole, part = blobs / found.etag, blobs / f"{found.etag}.part"
        blobs.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(blobs / f"{found.etag}.part.lock"):
            if whole.exists():
                continue
            with part.open("ab") as file:
                http_get(
                    found.location,
                    file,
                    resume_size=file.tell(),
                    headers=build_hf_headers() if found.location == url else {},
                    expected_size=found.size,
                    displayed_filename=name,
                )
            verify_download(part, name, found.etag, found.size)
            os.replace(part, whole)


def verify_download(part: Path, name: str, etag: str, size: int) -> None:
    """Remove a part that is whole and not what it should be. The etag of a large file is its SHA-256."""
    digest = hashlib.sha256()
    with part.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    if part.stat().st_size != size or (len(etag) == 64 and digest.hexdigest() != etag):
        part.unlink()
        raise CheckpointError(f"{name} was downloaded, and is not what the hub says it is: try again")
