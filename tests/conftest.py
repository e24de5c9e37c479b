"""Shapes checked by beartype, few threads, the same hypothesis examples on every run, and files of shared data."""

import os
import sys
import weakref
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

HERE = Path(__file__).parent
sys.path[:0] = [str(p) for p in (HERE, HERE.parent) if str(p) not in sys.path]
if os.environ.get("TYPECHECK") == "1":  # slow: `make typed` uses it
    install_import_hook("glassformer", "checker.check")  # before anything imports the package

import torch  # noqa: E402

torch.set_num_threads(1)  # tiny models are slower with a second thread
os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_addoption(parser):
    parser.addoption("--sample", type=int, metavar="N", help="run at most N parameter sets of each test function")
    parser.addoption(
        "--mutations", type=int, metavar="N", default=20_000, help="damaged files per format in tests/soak"
    )


def pytest_collection_modifyitems(config, items):
    """Keep N parameter sets of each test function, spread evenly over all of them."""
    n = config.getoption("--sample")
    if not n:
        return
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        groups.setdefault(item.nodeid.partition("[")[0], []).append(item)
    sample = {id(group[i * len(group) // n]) for group in groups.values() for i in range(n)}
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in sample])
    items[:] = [item for item in items if id(item) in sample]


settings.register_profile(
    "quick", deadline=None, derandomize=True, max_examples=30, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("quick")


@pytest.fixture(scope="session")
def shared_file():
    """Return the path of a file in ../shared/data: `shared_file("tinyshakespeare.txt")`. Skips if it is absent."""

    def find(name: str) -> Path:
        path = HERE.parent.parent / "shared" / "data" / name
        if not path.exists():
            pytest.skip(f"{path} does not exist")
        return path

    return find


@pytest.fixture
def caches(monkeypatch):
    """Return weak references to every cache that a decode session creates."""
    from glassformer.generate import session

    references, make_cache = [], session.DenseCache.of

    def make_and_record(*arguments, **options):
        cache = make_cache(*arguments, **options)
        references.append(weakref.ref(cache))
        return cache

    monkeypatch.setattr(session.DenseCache, "of", make_and_record)
    return references
