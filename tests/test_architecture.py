"""Rules about the sources: imports go down, no cycles, unique class names, family names in families/ only."""

import ast
import collections
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "glassformer"
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}

# A package may import from the rows above it, and from itself.
LAYERS = (
    ("errors",), ("atomic", "counted", "json_file", "plain_numbers"), ("config",), ("text", "nn"), ("kernels",),
    ("cache",), ("families",), ("formats",), ("generate",), ("inspect",), ("models",), ("training",), ("toys",),
    ("server",), ("cli",),
)  # fmt: skip
LEVEL = {name: i for i, row in enumerate(LAYERS) for name in row}
INSPECT_LAYERS = ("capture", "trace", "edits", "views", "record", "drawing", "sweep", "present")


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imports(path: Path) -> list[tuple[int, str]]:
    """Return (line, module of the package) for every import, including those inside functions."""
    found = []
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            while name not in MODULES and "." in name:
                name = name.rpartition(".")[0]
            if name in MODULES and name not in ("glassformer", module_of(path)):
                found.append((node.lineno, name))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path):
    module = module_of(path)
    if module in ("glassformer", "glassformer.__main__"):
        return  # the public names, imported lazily
    package, *rest = module.split(".")[1:]
    assert package in LEVEL, f"{package} is missing from LAYERS"
    for line, imported in imports(path):
        other, *inner = imported.split(".")[1:]
        assert other == package or LEVEL[other] < LEVEL[package], f"{path}:{line}: {package} must not import {other}"
        if package == other == "inspect" and rest and inner:
            order = INSPECT_LAYERS.index
            assert order(inner[0]) <= order(rest[0]), f"{path}:{line}: {rest[0]} must not import {inner[0]}"


def test_no_import_cycles():
    graph = {module: {name for _, name in imports(path)} for module, path in MODULES.items() if module != "glassformer"}
    assert sum(map(len, graph.values())) > 500, "the imports must be found"
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


def test_class_names_are_unique():
    places = collections.defaultdict(list)
    for path, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(path.relative_to(PACKAGE)))
    assert not {name: paths for name, paths in places.items() if len(paths) > 1}


FAMILY_NAMES = (
    "gpt2 gpt-2 llama qwen gemma mistral t5 deepseek phi3 olmo gpt_oss neox smollm falcon stablelm mixtral marian "
    "bart bert"
).split()
ALLOWED = {
    "gpt2-small",  # a value of --preset
    "sentence_bert_config.json",  # a file name of sentence-transformers
    *("disable_exllama", "exllama_config", "use_exllama"),  # keys of GPTQ settings, named after a kernel
}
# In text/, pre-tokenizers are named after the tokenizers that use them; GGUF names architectures and tokenizers so.
NAMED_AFTER_FAMILIES = (PACKAGE / "families", PACKAGE / "text", PACKAGE / "formats" / "gguf")
NAMED_AFTER_MODELS = (PACKAGE / "formats" / "packaged.py", PACKAGE / "generate" / "llama_cpp_child.py")  # its C API
PROGRAM = re.compile(r"llama[._-]?cpp", re.IGNORECASE)  # a program that is no family
OTHERS = [path for path in FILES if not {path, *path.parents} & {*NAMED_AFTER_FAMILIES, *NAMED_AFTER_MODELS}]


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_family_name_outside_families(path):
    """Identifiers and string values must not name a family; docstrings and comments may."""
    tree = TREES[path]
    docs = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)}
    for node in ast.walk(tree):
        words = []
        if isinstance(node, ast.Name | ast.Attribute | ast.FunctionDef | ast.ClassDef | ast.arg):
            words.append(getattr(node, "id", getattr(node, "attr", getattr(node, "name", getattr(node, "arg", "")))))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            words.append(node.value)
        if isinstance(node, ast.ImportFrom):
            words += [alias.name for alias in node.names]
        for word in words:
            rest = PROGRAM.sub("", word).lower()
            named = word not in ALLOWED and [name for name in FAMILY_NAMES if name in rest]
            assert not named, f"{path}:{node.lineno}: {word!r} names a family"


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_importing_the_package_loads_no_torch():
    assert not run(
        "import sys, glassformer; print(*{m.split('.')[0] for m in sys.modules} & {'torch', 'numpy', 'rich'})"
    ).split()


def test_config_families_and_text_import_no_torch():
    packages = ", ".join(f"glassformer.{name}" for name in ("config", "errors", "families", "text"))
    run(f"import sys, {packages}; assert 'torch' not in sys.modules")


def test_lower_packages_read_no_environment_and_print_nothing():
    for path in FILES:
        if module_of(path).split(".")[1:2] and module_of(path).split(".")[1] in (
            "nn",
            "cache",
            "families",
            "formats",
            "inspect",
        ):
            text = path.read_text()
            assert "os.environ" not in text, path
            assert not re.search(r"\bprint\(", text), path
