"""The walls: imports run downwards only, heavy libraries stay inside functions, `--help` is instant."""

from __future__ import annotations

import ast
import functools
import resource
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "vaultllm"
HEAVY = ("torch", "transformers", "peft", "chromadb", "scipy", "matplotlib", "accelerate", "tokenizers", "safetensors")

# From the bottom up; a module may import from the layers below its own, and from its own layer's earlier modules.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("schema", "errors", "signals"),
    ("text", "memory.choice", "files"),
    ("config", "locks", "heartbeat"),
    (  # text and records only
        "redact",
        "mojibake",
        "properties",
        "stretches",
        "blocks",
        "markdown",
        "metadata",
        "links",
        "canvas",
        "chats",
        "keywords",
        "edits",
        "dates",
        "spans",
        "duplicates",
        "drafts",
        "exchanges",
        "sections",
        "scenes",
        "scene_yaml",
        "examples",
        "splits",
        "tasks",
        "dataset",
        "exporting",
        "prompts",
        "inert",
        "render",
        "lineage",
        "charts",
        "wording",
        "report",
    ),
    (
        "power",
        "vault",
        "imports",
        "forgotten",
        "kept",
        "traces",
        "memory.bags",
        "memory.documents",
        "memory.postings",
        "memory.words",
        "memory.scan",
        "memory.twins",
        "memory.query",
        "memory.spelling",
        "memory.expand",
        "memory.measures",
        "rows",
        "reading",
        "workers",
        "memory.embed",
        "memory.contrast",
        "memory.vectors",
        "memory.wire",
        "memory.chroma",
        "memory.server",
        "tokenizer",
        "database",
        "shelf",
        "ledger",
        "memory.filtered",
        "memory.pairs",
        "memory.resonance",
        "memory.answerable",
        "memory.fusion",
        "memory.layout",
        "memory.analyse",
        "memory.map",
        "models.plan",
        "models.learning",
        "models.micro",
        "models.nf4",
        "models.losses",
        "models.packed",
        "models.hf",
        "models.reload",
        "models.batched",
        "memory.embedders",
        "memory.live",
        "memory.rerank",
        "memory.rephrase",
    ),
    (
        "evaluate",
        "processes",
        "fit",
        "ngram",
        "yardsticks",
        "memorised",
        "drift",
        "manners",
        "probes",
        "scorecard",
        "checkpoints",
        "replay",
        "loop",
        "train",
        "hardware",
    ),
    (
        "importing",
        "ingest",
        "remember",
        "hits",
        "recall",
        "registry",
        "origin",
        "training",
        "quotes",
        "saying",
        "answer",
        "speaking",
        "asked",
        "conversing",
        "rating",
        "reporting",
        "explain",
        "survey",
        "health",
        "canonical",
        "bundle",
        "target",
        "forget",
        "unlearning",
        "steps",
        "pipeline",
        "schedule",
        "plugin",
    ),
    (
        "api",
        "hands",
        "eyes",
        "reconcile",
        "follower",
        "voice",
        "watch",
        "demo",
        "bench",
        "selftest",
        "views",
        "training_views",
        "terminal",
        "commands",
        "cli",
        "__main__",
    ),
)


@functools.cache
def modules() -> dict[str, Path]:
    """Dotted name below the package -> file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    found.pop("__init__")
    return found


def place(name: str) -> tuple[int, int]:
    """(layer, position) of a module; a package's modules stand where the package stands."""
    for number, layer in enumerate(LAYERS):
        for position, entry in enumerate(layer):
            if name == entry or name.startswith(entry + "."):
                return number, position
    raise AssertionError(f"{name} has no layer: put it into LAYERS of {__file__}")


@functools.cache
def imports(path: Path, *, top_level: bool) -> set[str]:
    """Names that a file imports: everywhere, or only outside functions and `if TYPE_CHECKING`."""
    found: set[str] = set()

    def visit(node: ast.AST, inside: bool) -> None:
        if top_level and inside:
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        inside = inside or typing_only or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.expr):  # an import is a statement
                visit(child, inside)

    visit(parsed(path), False)
    return found


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_of(imported: str, known: Collection[str]) -> str:
    """The module of ours that an imported name is, or is in."""
    target = imported.removeprefix("vaultllm.")
    while target not in known and "." in target:
        target = target.rpartition(".")[0]
    return target


@pytest.mark.parametrize("name", [name for name in modules() if name not in ("memory", "models", "chats")])
def test_imports_run_downwards_only(name: str) -> None:
    known = modules()
    for imported in imports(known[name], top_level=False):
        if not imported.startswith("vaultllm."):
            continue
        target = module_of(imported, known)
        if target not in known or target in ("memory", "models"):
            continue
        same_package = name.partition(".")[0] == target.partition(".")[0]
        assert place(target) < place(name) or same_package, f"{name} imports {target}, which stands above it"


@pytest.mark.parametrize("name", list(modules()))
def test_heavy_libraries_are_imported_inside_functions(name: str) -> None:
    heavy = {one for one in imports(modules()[name], top_level=True) if one.partition(".")[0] in HEAVY}
    assert not heavy, f"{name} imports {sorted(heavy)} at import time"


def test_a_child_that_reads_notes_does_without_the_models_of_the_settings() -> None:
    """They take as long to import as all the rest, for each child that is started."""
    known = modules()
    reached, waiting = set[str](), {"workers"}
    while waiting:
        reached |= waiting
        names = {module_of(name, known) for one in waiting for name in imports(known[one], top_level=True) if name.startswith("vaultllm.")}
        waiting = {name for name in names | {name.partition(".")[0] for name in names} if name in known} - reached
    assert {"reading", "redact", "chats.nexus"} <= reached
    assert "config" not in reached


def test_only_the_named_modules_know_torch_and_chroma() -> None:
    torch_users = {name for name, path in modules().items() if any(i.partition(".")[0] == "torch" for i in imports(path, top_level=False))}
    chroma_users = {name for name, path in modules().items() if any(i.startswith("chromadb") for i in imports(path, top_level=False))}
    assert torch_users <= {
        "models.nf4",
        "models.hf",
        "models.reload",
        "models.micro",
        "models.learning",
        "models.plan",
        "models.batched",
        "models.losses",
        "models.packed",
        "train",
        "fit",
        "processes",
        "hardware",
        "loop",
        "evaluate",
        "drift",
        "replay",
    }
    assert {name for name in chroma_users if not name.startswith("selftest.")} == {"memory.chroma"}  # trials load it before they fork


def test_help_is_instant_and_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom vaultllm import cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit as ended:\n    assert ended.code == 0, ended.code\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\nassert not loaded, loaded\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    assert after.ru_utime - before.ru_utime < 0.5 * 2  # the promise is 0.5 s on an idle machine; tests share theirs
