"""What may be sent with a report of a bug: versions, counts, codes, times; no word of the vault, and no name of a file or folder.

Whatever could come from a note, a path or a setting that was typed in is left out rather than masked: numbers, truth values and a
few closed sets of words are all that passes. Knows where the state keeps what, and nothing about what it means.
"""

from __future__ import annotations

import json
import platform
import re
import zipfile
from collections import Counter
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from vaultllm import __version__, heartbeat
from vaultllm.config import Settings, Workspace
from vaultllm.errors import VaultError
from vaultllm.ledger import Ledger

PACKAGES = (
    "torch transformers peft accelerate tokenizers safetensors chromadb numpy scipy watchdog markdown-it-py python-frontmatter "
    "ruamel.yaml pydantic typer rich filelock matplotlib"
).split()
LOG_LINES = 500  # of a log, the last ones
_CODE = re.compile(r"[EW]-[A-Z]{2,12}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(?::\d\d)?(?:\.\d+)?(?:Z|[+-]\d\d:?\d\d)?")
# Words of ours that a log or a run may hold as a value.
_WORDS = frozenset(
    "started stopped ingested waiting problem embedder watching reading starting ok failed skipped done running interrupted micro lora "
    "ingest dataset train retrain evaluate promote ask status doctor report better worse cuda cpu mps float32 bfloat16 float16 "
    "vault model base adapter assistant user".split()
)


def parts(workspace: Workspace, ledger: Ledger, findings: list[dict[str, Any]]) -> dict[str, Any]:
    """File name -> what stands in it; `findings` are those of `doctor`."""
    return {
        "versions.json": {
            "vaultllm": __version__,
            "python": platform.python_version(),
            "system": platform.system(),
            "release": platform.release(),
            "machine": platform.machine(),
            "packages": {name: _version(name) for name in PACKAGES},
        },
        "settings.json": _plain(json.loads(workspace.settings.model_dump_json())) | {"changed": _changed(workspace.settings)},
        "counts.json": ledger.counts() | {"schema": ledger.db.execute("PRAGMA user_version").fetchone()[0]},
        "problems.json": dict(Counter(problem.code for _, problem in ledger.problems())),
        "findings.json": [one["code"] for one in findings],
        "state.json": _sizes(workspace.state),
        "daemon.json": _plain(heartbeat.look(workspace.state) or {}),
        "runs.json": [
            {"kind": run.kind, "created": run.created, "status": run.status, "promoted": run.promoted}
            | {"versions": run.versions, "metrics": {name: one for name, one in run.metrics.items() if isinstance(one, int | float)}}
            for run in ledger.runs()
        ],
        **{f"{name}.json": _log(workspace.state / name) for name in ("pipelines.log", "watch.log", "retrain.log")},
    }


def write(path: Path, workspace: Workspace, ledger: Ledger, findings: list[dict[str, Any]]) -> list[str]:
    """Write the bundle as a new zip; returns the names of its files. Raises VaultError when `path` exists or cannot be written."""
    said = parts(workspace, ledger, findings)
    try:
        with open(path, "xb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in said.items():
                archive.writestr(name, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    except FileExistsError as error:
        raise VaultError("there is such a file already; name another", path=str(path)) from error
    except OSError as error:
        raise VaultError(f"the bundle cannot be written ({error.strerror})", path=str(path)) from error
    return list(said)


def _plain(value: Any) -> Any:
    """A copy with numbers, truth values, codes, times and words of ours; every other string is `…`, and so is every unknown key."""
    if isinstance(value, Mapping):
        return {key if _is_key(key) else f"… {place}": _plain(one) for place, (key, one) in enumerate(value.items())}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, str):
        return value if not value or value in _WORDS or _CODE.fullmatch(value) or _TIME.fullmatch(value) else "…"
    return value


def _is_key(key: Any) -> bool:
    """Whether a key is a name in our code: those of settings and measures are, a note's path or language's name is not."""
    return isinstance(key, str) and key.isascii() and key.isidentifier() and key.islower() and len(key) < 40


def _changed(settings: Settings) -> list[str]:
    """Names of the settings that are not as they come."""
    plain = Settings(vault_id=settings.vault_id).model_dump()
    return [
        f"{section}.{name}"
        for section, values in settings.model_dump().items()
        if isinstance(values, Mapping)
        for name, value in values.items()
        if value != plain[section][name]
    ]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _sizes(state: Path) -> dict[str, dict[str, int]]:
    """How many files of each suffix the state's folders hold, and their bytes; no names below the first."""
    found: dict[str, dict[str, int]] = {}
    for path in sorted(state.rglob("*")):
        first = path.relative_to(state).parts[0]
        try:
            size = path.stat(follow_symlinks=False).st_size if path.is_file() else -1
        except OSError:
            continue
        if size >= 0:
            about = found.setdefault(first if first in _OURS else "other", {"files": 0, "bytes": 0})
            about["files"], about["bytes"] = about["files"] + 1, about["bytes"] + size
    return found


_OURS = frozenset("ledger.db ledger.db-wal ledger.db-shm memory scenes datasets bases runs imports vault_id forgotten.json current".split())


def _log(path: Path) -> list[Any]:
    """The last lines of one of our logs, what may pass of each."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            found.append(_plain(json.loads(line)))
        except ValueError:
            found.append("…")  # no line of ours: an error that Python printed, say
    return found
