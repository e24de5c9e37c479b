"""Check that a wheel contains the complete page, within its size limit: `python wheel_has_page.py dist/*.whl`."""

import gzip
import re
import sys
from zipfile import ZipFile

MAX_BYTES = 250_000  # size limit of the page, gzipped

wheel = ZipFile(sys.argv[1])
page = {name: wheel.read(name) for name in wheel.namelist() if name.startswith("glassformer/web_dist/")}
index = page.get("glassformer/web_dist/index.html")
if index is None:
    sys.exit(f"{sys.argv[1]} does not contain the page: run `make page` before building the wheel")
assets = re.findall(r'(?:src|href)="\./(assets/[^"]+)"', index.decode())
if missing := [name for name in assets if f"glassformer/web_dist/{name}" not in page]:
    sys.exit(f"{sys.argv[1]}: files of the page are missing: {', '.join(missing)}")
if not any(name.endswith(".js") for name in assets):
    sys.exit(f"{sys.argv[1]}: the page has no script")
size = sum(len(gzip.compress(data, mtime=0)) for name, data in page.items() if not name.endswith(".md"))
if size > MAX_BYTES:
    sys.exit(f"{sys.argv[1]}: the page has {size:,} bytes gzipped, the limit is {MAX_BYTES:,}")
print(f"the wheel contains the page: {len(page)} files, {size:,} bytes gzipped")
