"""`python wheel_has_page.py dist/*.whl`: the page lies in the wheel, whole, and is as small as it must be."""

import gzip
import re
import sys
from zipfile import ZipFile

ROOM = 250_000  # bytes that all of the page may take, gzipped

wheel = ZipFile(sys.argv[1])
page = {name: wheel.read(name) for name in wheel.namelist() if name.startswith("glassformer/web_dist/")}
index = page.get("glassformer/web_dist/index.html")
if index is None:
    sys.exit(f"{sys.argv[1]} has no page")
wanted = re.findall(r'(?:src|href)="\./(assets/[^"]+)"', index.decode())
if missing := [name for name in wanted if f"glassformer/web_dist/{name}" not in page]:
    sys.exit(f"{sys.argv[1]}: its page asks for what is not there: {', '.join(missing)}")
if not any(name.endswith(".js") for name in wanted):
    sys.exit(f"{sys.argv[1]}: its page has no script")
size = sum(len(gzip.compress(data, mtime=0)) for name, data in page.items() if not name.endswith(".md"))
if size > ROOM:
    sys.exit(f"{sys.argv[1]}: the page takes {size:,} bytes gzipped, and {ROOM:,} is the most")
print(f"the wheel has the page: {len(page)} files, {size:,} bytes gzipped")
