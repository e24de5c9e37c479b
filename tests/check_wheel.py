"""Check the contents and the name of a wheel: `python check_wheel.py dist/*.whl`.

It must contain the complete page, within its size limit, the C sources of the native kernels and, where this machine
has a compiler, the library; its platform is in the name if and only if the library is in it.
"""

import gzip
import re
import sys
from pathlib import Path
from zipfile import ZipFile

sys.path.insert(0, str(Path(__file__).parents[1]))

import native_build

MAX_BYTES = 250_000  # size limit of the page, gzipped
PAGE, NATIVE = "glassformer/web_dist/", "glassformer/kernels/native/"


def check_page(wheel: ZipFile) -> str:
    page = {name: wheel.read(name) for name in wheel.namelist() if name.startswith(PAGE)}
    index = page.get(f"{PAGE}index.html")
    if index is None:
        sys.exit(f"{wheel.filename} does not contain the page: run `make page` before building the wheel")
    assets = re.findall(r'(?:src|href)="\./(assets/[^"]+)"', index.decode())
    if missing := [name for name in assets if f"{PAGE}{name}" not in page]:
        sys.exit(f"{wheel.filename}: files of the page are missing: {', '.join(missing)}")
    if not any(name.endswith(".js") for name in assets):
        sys.exit(f"{wheel.filename}: the page has no script")
    size = sum(len(gzip.compress(data, mtime=0)) for name, data in page.items() if not name.endswith(".md"))
    if size > MAX_BYTES:
        sys.exit(f"{wheel.filename}: the page has {size:,} bytes gzipped, the limit is {MAX_BYTES:,}")
    return f"the page ({len(page)} files, {size:,} bytes gzipped)"


def check_kernels(wheel: ZipFile) -> str:
    names = wheel.namelist()
    sources = {path.name for path in (native_build.NATIVE / "src").iterdir()}
    if missing := [name for name in sorted(sources) if f"{NATIVE}src/{name}" not in names]:
        sys.exit(f"{wheel.filename}: C sources are missing: {', '.join(missing)}")
    libraries = [name for name in names if name.startswith(f"{NATIVE}lib/")]
    try:
        expected = [f"{NATIVE}lib/{native_build.LIBRARY.name}"] if native_build.find_compiler() else []
    except native_build.NativeBuildError:
        expected = []
    if libraries != expected:
        sys.exit(f"{wheel.filename}: the libraries are {libraries}, expected {expected}")
    platform = Path(wheel.filename or "").stem.rpartition("-")[2]
    if (platform == "any") == bool(libraries):
        sys.exit(f"{wheel.filename}: the platform is {platform}, and the libraries are {libraries}")
    (metadata,) = (wheel.read(name).decode() for name in names if name.endswith(".dist-info/WHEEL"))
    if f"Root-Is-Purelib: {'false' if libraries else 'true'}" not in metadata:
        sys.exit(f"{wheel.filename}: Root-Is-Purelib is wrong:\n{metadata}")
    return f"{'the' if libraries else 'no'} native library, for platform {platform}"


if __name__ == "__main__":
    with ZipFile(sys.argv[1]) as wheel:
        print(f"the wheel contains {check_page(wheel)}, and {check_kernels(wheel)}")
