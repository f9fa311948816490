"""A vault made for a test, and what its owner and sync programs do to it: every file is known byte for byte.

Each thing that an owner does is a function of the `World`, seeded by its `rng`: the same seed does the same. Knows nothing about what we
do to the vault (`histories.py`). Keeps below `FEW` notes.
"""

from __future__ import annotations

import contextlib
import os
import random
import stat
from collections.abc import Iterable
from pathlib import Path

from vaultllm import config
from vaultllm.ledger import Ledger

FEW = 16  # notes at most

_WORDS = (
    "насос колодец грядка теплица датчик провод письмо мост вечер дорога река лодка the pump well garden letter bridge "
    "evening road river boat পানি নদী সেতু চিঠি বাগান রাস্তা সন্ধ্যা নৌকা"
).split()
_FOLDERS = ("", "Дача", "Дача/Теплица", "Chats", "চিঠি")


class BrokenError(AssertionError):
    """A promise was broken; the message says which and where."""


# -- notes in our own words


def _said(rng: random.Random, words: int = 9) -> str:
    return " ".join(rng.choice(_WORDS) for _ in range(words)).capitalize() + "."


def note(rng: random.Random) -> str:
    """A note: prose, broken properties, a list, a talk of the importer's or a copied one whose last turn may be the user's."""
    number = rng.randrange(10**6)
    match rng.randrange(7):
        case 0:
            head = f"# {_said(rng, 2)}\n\n{_said(rng, 12)}\n\n## {_said(rng, 2)}\n\n"
            return f"{head}{_said(rng, 20)} {number}\n\nСм. [[{_said(rng, 1)[:-1]}]] #сад\n"
        case 1:
            return f"---\ntitle: {_said(rng, 2)}\ntags: [сад, {number}\nprivate: no\n---\n{_said(rng, 15)}\n"
        case 2:
            return "".join(f"- [ ] {_said(rng, 5)} ^b{number + place}\n" for place in range(4))
        case 3:
            return f"User: {_said(rng)}?\n\nAssistant: {_said(rng, 12)}\n\nUser: {_said(rng)} Почему?\n"
        case 4:
            return f"```python\nprint({number})\n\n%% {_said(rng, 4)}\n"
        case _:
            turns = []
            for place in range(rng.choice((1, 2, 3))):
                role, name = ("agent", "Assistant") if place % 2 else ("user", "User")
                head = f">[!nexus_{role}] **{name}** - 16.06.2025 at 21:{10 + place}"
                turns.append(f"{head}\n> {_said(rng)} {number}?\n<!-- UID: u{number}-{place} -->")
            return "\n\n\n\n".join(turns) + "\n"


# -- the vault, and what stands in it by right


class World:
    """A vault, its state, and the bytes that each file of the vault must have."""

    def __init__(self, work: Path, rng: random.Random) -> None:
        self.rng, self.work = rng, work
        self.root = work / "vault"
        self.root.mkdir(parents=True)
        self.workspace = config.init_workspace(self.root, str(work / "state"))
        self.ledger = Ledger(self.workspace.ledger)
        self.files: dict[str, tuple[bytes, int]] = {}
        """Path -> (bytes, mode), as the last writer left them."""
        self.away: dict[str, tuple[bytes, int]] = {}
        """What was deleted and can come back; what is in the cloud only."""
        self.offline: set[str] = set()
        self.dirty: list[str] = []
        """Paths of which events speak."""
        self.lost = False
        """An event was lost, or told of a folder only: a scan must find out."""
        self.aim = ""
        """The note that the next thing is done to; "": any."""
        self.counts = {"operations": 0, "comparisons": 0, "saved_in_our_midst": 0, "answers": 0, "replies": 0, "refused": 0}
        self.take(config.CONFIG.as_posix())

    def close(self) -> None:
        """Close the ledger."""
        self.ledger.close()

    # - the user's hand

    def notes(self) -> list[str]:
        """The user's notes."""
        return sorted(path for path in self.files if path.endswith(".md") and not path.startswith("vaultllm/"))

    def ours(self) -> list[str]:
        """Notes that we wrote, wherever the user put them within our folder."""
        return sorted(path for path in self.files if path.startswith("vaultllm/"))

    def save(self, path: str, data: bytes, *, rename: bool = False) -> None:
        """The user saves a file: in place, or beside it and renamed over it."""
        if path in self.offline:
            return
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if rename:
            aside = file.with_name(f".{file.name}.swp"[-200:])
            aside.write_bytes(data)
            os.replace(aside, file)
        else:
            file.write_bytes(data)
        self.take(path)

    def take(self, *paths: str) -> None:
        """What stands there now is right: its writer was not us."""
        for path in paths:
            file = self.root / path
            self.files.pop(path, None)
            with contextlib.suppress(FileNotFoundError):
                self.files[path] = file.read_bytes(), stat.S_IMODE(file.stat().st_mode)
            self.dirty.append(path)

    def meddle(self, path: str = "") -> None:
        """One thing that an owner may do at any moment, also while we are at work; to this note, if one is named."""
        self.counts["saved_in_our_midst"] += 1
        self.aim = path
        self.rng.choice((edit, edit, replace, append, same_size, delete, rename))(self)
        self.aim = ""

    # - what must hold

    def check_files(self) -> None:
        """R3: every file has the bytes and the mode that its last writer gave it, and there is no other file."""
        found: set[str] = set()
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = os.path.relpath(os.path.join(folder, name), self.root)
                found.add(path)
                file = self.root / path
                have = file.read_bytes(), stat.S_IMODE(file.stat().st_mode)
                if path not in self.files:
                    raise BrokenError(f"R3: there is a file that nobody wrote: {path}")
                if have != self.files[path]:
                    raise BrokenError(f"R3: {path} is not as it was left: {self.files[path]!r} became {have!r}")
        if missing := self.files.keys() - found:
            raise BrokenError(f"R3: {sorted(missing)[0]} is gone")


# -- what an owner does


def create(world: World) -> None:
    """A new note; the number of notes stays small."""
    if len(world.notes()) < FEW:
        folder, name = world.rng.choice(_FOLDERS), _said(world.rng, 2)[:-1]
        world.save(f"{folder}/{name}.md".lstrip("/"), note(world.rng).encode())


def edit(world: World) -> None:
    """Another text, in place."""
    for path in _one(world):
        world.save(path, note(world.rng).encode())


def replace(world: World) -> None:
    """Another text, saved as most editors do: beside it, then renamed."""
    for path in _one(world):
        world.save(path, note(world.rng).encode(), rename=True)


def append(world: World) -> None:
    """A line more, without the last newline at times."""
    for path in _one(world):
        world.save(path, world.files[path][0] + f"\n{_said(world.rng)}{world.rng.choice(('', chr(10)))}".encode())


def same_size(world: World) -> None:
    """Another letter, the same size, and the time of the last change put back."""
    for path in _one(world):
        data, times = world.files[path][0], (world.root / path).stat()
        at = world.rng.randrange(max(1, len(data)))
        if data[at : at + 1].isalnum():
            world.save(path, data[:at] + (b"x" if data[at : at + 1] != b"x" else b"y") + data[at + 1 :])
            os.utime(world.root / path, ns=(times.st_atime_ns, times.st_mtime_ns))


def newlines(world: World) -> None:
    """Another editor's newlines."""
    for path in _one(world):
        world.save(path, world.files[path][0].replace(b"\r\n", b"\n").replace(b"\n", world.rng.choice((b"\n", b"\r\n"))))


def truncate(world: World) -> None:
    """A writer is in the midst: the rest is not there yet, perhaps never."""
    for path in _one(world):
        data = world.files[path][0]
        world.save(path, data[: world.rng.randrange(len(data) + 1)])


def touch(world: World) -> None:
    """The same bytes, another time: also in 1970 and in the future."""
    for path in _one(world):
        moment = world.rng.choice((0, 10**18, 4 * 10**18))
        os.utime(world.root / path, ns=(moment, moment))
        world.dirty.append(path)


def mode(world: World) -> None:
    """Other rights."""
    for path in _one(world):
        (world.root / path).chmod(world.rng.choice((0o600, 0o644, 0o640)))
        world.take(path)


def delete(world: World) -> None:
    """A note goes, to the trash."""
    for path in _one(world):
        world.away[path] = world.files[path]
        (world.root / path).unlink()
        world.take(path)


def restore(world: World) -> None:
    """What was deleted, or was in the cloud only, comes back."""
    if world.away and len(world.notes()) < FEW:
        path = world.rng.choice(sorted(world.away))
        data, rights = world.away.pop(path)
        placeholder = (world.root / path).with_name(f".{Path(path).name}.icloud")
        if path in world.offline:
            placeholder.unlink()
            world.take(placeholder.relative_to(world.root).as_posix())
            world.offline.discard(path)
        world.save(path, data)
        (world.root / path).chmod(rights)
        world.take(path)


def rename(world: World) -> None:
    """Another name, or another folder; over a note that is there at times."""
    for path in _one(world):
        folder = world.rng.choice(_FOLDERS)
        _move(world, path, f"{folder}/{_said(world.rng, 1)[:-1]} {world.rng.randrange(30)}.md".lstrip("/"))


def case_rename(world: World) -> None:
    """The same name in other letters."""
    for path in _one(world):
        folder, name = os.path.split(path)
        _move(world, path, os.path.join(folder, name.swapcase().removesuffix(".MD") + ".md"))


def move_folder(world: World) -> None:
    """A folder moves with all that is in it; events speak of the folder alone."""
    folders = sorted({path.split("/")[0] for path in world.notes() if "/" in path})
    if folders:
        old, new = world.rng.choice(folders), f"{world.rng.choice(_FOLDERS[1:]).split('/')[0]} {world.rng.randrange(5)}"
        if not (world.root / new).exists():
            os.rename(world.root / old, world.root / new)
            for path in [path for path in world.files if path.startswith(f"{old}/")]:
                world.files[new + path[len(old) :]] = world.files.pop(path)
            world.offline = {new + path[len(old) :] if path.startswith(f"{old}/") else path for path in world.offline}
            world.away = {new + path[len(old) :] if path.startswith(f"{old}/") else path: kept for path, kept in world.away.items()}
            world.lost = True


def conflict(world: World) -> None:
    """A sync program's copy of a note that changed on two machines."""
    for path in _one(world):
        stem = path.removesuffix(".md")
        mark = world.rng.choice(
            (".sync-conflict-20261122-101112-ABCDEFG", " (Conflicted copy 2026-11-22)", " (laptop's conflicted copy 2026-11-22)", "-LAPTOP")
        )
        if len(world.notes()) < FEW:
            world.save(f"{stem}{mark}.md", world.files[path][0] + world.rng.choice((b"", f"\n{_said(world.rng)}\n".encode())))


def evict(world: World) -> None:
    """iCloud takes a note's bytes away and leaves a placeholder."""
    for path in _one(world, [path for path in world.notes() if b"UID:" not in world.files[path][0]]):  # a talk may be known from elsewhere
        placeholder = (world.root / path).with_name(f".{Path(path).name}.icloud")
        world.away[path] = world.files[path]
        (world.root / path).unlink()
        placeholder.write_bytes(b"bplist00")
        world.offline.add(path)
        world.take(path, placeholder.relative_to(world.root).as_posix())


def rate(world: World) -> None:
    """The user rates an answer of ours, or writes in it."""
    for path in _one(world, world.ours()):
        data = world.files[path][0]
        world.save(path, data.replace(b"vaultllm_rating:\n", b"vaultllm_rating: 5\n") + world.rng.choice((b"", b"\nmine\n")))


def move_ours(world: World) -> None:
    """The user renames an answer of ours, or deletes it."""
    for path in _one(world, world.ours()):
        if world.rng.random() < 0.5:
            _move(world, path, f"vaultllm/Answers/{_said(world.rng, 2)}md")
        else:
            (world.root / path).unlink()
            world.take(path)


def _one(world: World, among: list[str] | None = None) -> Iterable[str]:
    found = world.notes() if among is None else among
    if world.aim in found:
        return (world.aim,)
    return (world.rng.choice(found),) if found else ()


def _move(world: World, old: str, new: str) -> None:
    if new != old and new not in world.offline:
        (world.root / new).parent.mkdir(parents=True, exist_ok=True)
        os.replace(world.root / old, world.root / new)
        world.take(old, new)


THINGS = (
    create, create, create, edit, replace, append, same_size, newlines, truncate, touch, mode, delete, restore, rename, case_rename,
    move_folder, conflict, evict, rate, move_ours,
)  # fmt: skip
"""What an owner does, the usual things more often."""
