"""The Obsidian plugin: put into a vault's settings folder, and taken away again.

`plan` says what is to be written before `install` writes any; a file there that is not ours, or was changed since, is left as it is,
and so are Obsidian's own settings: the user switches the plugin on. Knows nothing about what the plugin does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from vaultllm import __version__, vault
from vaultllm.errors import DataError, UsageError, VaultError
from vaultllm.schedule import program

FILES = ("manifest.json", "main.js", "styles.css", "versions.json", "README.md")
RECORD = "installed.json"
"""What was written, by which vaultllm: {version, program, files: name -> SHA-256}. The plugin starts this program."""
SWITCH_ON = "Now in Obsidian: Settings, Community plugins, (Turn on community plugins, Reload plugins,) then the switch beside Vaultllm."
_USUAL = ".obsidian"
_OWN = ("app.json", "core-plugins.json", "workspace.json")  # of Obsidian, in its folder
_LARGEST = 2**22  # bytes of a file of ours


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is to be written for one vault."""

    vault: Path
    """Absolute."""
    folder: str
    """Vault-relative: the plugin's."""
    files: tuple[tuple[str, bytes], ...]
    """Name and content of each file, the record last."""

    def named(self) -> list[str]:
        """Vault-relative paths of the files."""
        return [f"{self.folder}/{name}" for name, _ in self.files]


def plan(place: Path, config_dir: str = "") -> Plan:
    """What the vault at `place` needs. Raises UsageError for a settings folder that cannot be one."""
    files = [(name, _shipped(name)) for name in FILES]
    hashes = {name: _sha(data) for name, data in files}
    record = json.dumps({"version": __version__, "program": program(), "files": hashes}, ensure_ascii=False, indent=1) + "\n"
    return Plan(place, _folder(place, config_dir), (*files, (RECORD, record.encode())))


def shown(wanted: Plan) -> str:
    """The plan as text."""
    rows = [f"{wanted.vault}/{wanted.folder}/{name}  ({len(data):,} bytes)" for name, data in wanted.files]
    started = " ".join(program())
    return "\n".join([*rows, f"It starts {started}, and nothing else. It stays off until you switch it on."])


def install(wanted: Plan) -> list[str]:
    """Write the files; returns what was done, a line each. Installing again writes what is new in this version.

    Raises DataError when a file in its place is not ours or was changed, before any is written; VaultError when one cannot be written.
    """
    ours = _recorded(wanted.vault, wanted.folder)
    for name, data in wanted.files:
        there = _there(wanted.vault, f"{wanted.folder}/{name}")
        if name != RECORD and there is not None and there != data and _sha(there) != ours.get(name):
            message = "this file was not written by `plugin install`, or was changed since; move it away first"
            raise DataError(message, path=f"{wanted.folder}/{name}")
    done = []
    for name, data in wanted.files:
        path = f"{wanted.folder}/{name}"
        if _there(wanted.vault, path) != data:
            vault.put(wanted.vault, path, data)
            done.append(f"wrote {path}")
    return done or ["nothing to write: this version is there already"]


def uninstall(place: Path, config_dir: str = "") -> tuple[list[str], list[str]]:
    """Remove the files that `install` wrote; returns the paths that are gone, and those that were changed and stay.

    The plugin's settings (`data.json`) and files of others stay. Raises VaultError when a file cannot be removed.
    """
    folder = _folder(place, config_dir)
    ours = _recorded(place, folder)
    removed, kept = [], []
    for name in (*FILES, RECORD):
        path = f"{folder}/{name}"
        there = _there(place, path)
        if there is None:
            continue
        if name == RECORD or _sha(there) == ours.get(name) or there == _shipped(name):
            vault.take_away(place, path)
            removed.append(path)
        else:
            kept.append(path)
    return removed, kept


def told(removed: list[str], kept: list[str]) -> list[str]:
    """What `uninstall` did, a line each."""
    lines = [f"removed {path}" for path in removed] + [f"kept {path}: it was changed since" for path in kept]
    return lines or ["nothing was installed"]


def _folder(place: Path, config_dir: str) -> str:
    """The plugin's folder: in the settings folder that is named, or that Obsidian made, or that it will make."""
    if config_dir:
        if not config_dir.startswith(".") or config_dir.strip(".") == "" or {"/", "\\", "\0"} & set(config_dir):
            raise UsageError("Obsidian's folder in a vault is one name that begins with a dot, like .obsidian", path=config_dir)
        return f"{config_dir}/plugins/vaultllm"
    found = []
    with contextlib.suppress(OSError), os.scandir(place) as entries:
        found = sorted(one.name for one in entries if one.name.startswith(".") and any((Path(one.path) / own).is_file() for own in _OWN))
    if len(found) > 1 and _USUAL not in found:
        raise UsageError(f"Obsidian has several folders here ({', '.join(found)}); say which with --config-dir")
    return f"{found[0] if found and _USUAL not in found else _USUAL}/plugins/vaultllm"


def _shipped(name: str) -> bytes:
    return (resources.files("vaultllm") / "obsidian" / name).read_bytes()


def _there(place: Path, path: str) -> bytes | None:
    """The file's bytes; None when there is none. Raises VaultError for what is no plain file within the vault."""
    if not os.path.lexists(place / path):
        return None
    return vault.read(place, path, _LARGEST)


def _recorded(place: Path, folder: str) -> dict[str, str]:
    """Name -> SHA-256 as it was written; empty when that is not known."""
    with contextlib.suppress(VaultError, ValueError, LookupError, AttributeError, TypeError):
        found = json.loads(_there(place, f"{folder}/{RECORD}") or b"{}")["files"]
        return {name: str(digest) for name, digest in found.items()}
    return {}


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
