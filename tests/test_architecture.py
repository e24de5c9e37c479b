"""What the package promises about its own sources: imports go down, families keep to their folder, files are short."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "glassformer"
FILES = sorted(PACKAGE.rglob("*.py"))

# Each may import from those in the rows above, and from its own part.
LAYERS = (
    ("errors",), ("atomic",), ("config",), ("text", "nn"), ("kernels",), ("cache",), ("families",), ("formats",),
    ("generate",), ("inspect",), ("models",), ("training",), ("toys",), ("server",), ("cli",),
)  # fmt: skip
LEVEL = {part: i for i, row in enumerate(LAYERS) for part in row}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> list[tuple[int, str]]:
    """(line, part) of every import from the package, those inside functions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found += [(node.lineno, name.split(".")[1]) for name in names if name.startswith("glassformer.")]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path):
    part = part_of(path)
    if path == PACKAGE / "__init__.py" or part == "__main__":
        return  # the public names, imported lazily
    assert part in LEVEL, f"{part} has no place in the order of imports"
    for line, other in imported(path):
        ok = other == part or LEVEL.get(other, -1 if other == "__version__" else 99) < LEVEL[part]
        assert ok, f"{path}:{line}: {part} must not import {other}"


def test_the_check_of_imports_sees_something():
    seen = {(part_of(path), other) for path in FILES for _, other in imported(path)}
    assert {("nn", "config"), ("cache", "nn"), ("formats", "families"), ("families", "config")} <= seen
    assert len(seen) > 12


NAMES = (
    "gpt2",
    "gpt-2",
    "llama",
    "qwen",
    "gemma",
    "mistral",
    "t5",
    "deepseek",
    "phi3",
    "olmo",
    "gpt_oss",
    "neox",
    "smollm",
    "falcon",
    "stablelm",
    "mixtral",
    "marian",
    "bart",
    "bert",
)
PRESETS = {"gpt2-small"}  # what a person types after --preset
FILE_NAMES = {"sentence_bert_config.json"}  # which other tools give, whatever the model
NAMED_AFTER = {"families", "text"}  # in text: pre-tokenizers are named after the tokenizers whose patterns they are
GGUF = PACKAGE / "formats" / "gguf"  # the format names architectures and tokenizers after families
OTHERS = [path for path in FILES if part_of(path) not in NAMED_AFTER and GGUF not in path.parents]


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_family_name_in_code_outside_families(path):
    """Neither as a name nor as a value that is compared: docstrings and comments may say whose idea it is."""
    tree = ast.parse(path.read_text())
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
            named = word not in PRESETS | FILE_NAMES and [name for name in NAMES if name in word.lower()]
            assert not named, f"{path}:{node.lineno}: {word!r} names a family"


def test_no_file_over_400_lines():
    long = {str(path.relative_to(ROOT)): n for path in FILES if (n := len(path.read_text().splitlines())) > 400}
    assert not long


def test_importing_the_package_loads_no_torch():
    code = "import sys, glassformer; print(*{m.split('.')[0] for m in sys.modules} & {'torch', 'numpy', 'rich'})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.split() == []


def test_config_families_and_text_need_no_torch():
    parts = ", ".join(f"glassformer.{part}" for part in ("config", "errors", "families", "text"))
    code = f"import sys, {parts}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_importing_reads_no_environment_and_prints_nothing():
    for path in FILES:
        if part_of(path) in ("nn", "cache", "families", "formats", "inspect"):
            text = path.read_text()
            assert "os.environ" not in text, path
            assert not re.search(r"\bprint\(", text), path
