"""The user's files: find the notes, read one, write a new one, append to one. The only module that touches the vault.

Nothing outside the vault is read or written: names are checked, symbolic links are never followed, and what a path
means is checked again after its file is open. No note is ever replaced (`put` replaces files of our own). Knows nothing about what
is in a note.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import hashlib
import os
import re
import secrets
import shutil
import stat
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from vaultllm.errors import OwnedNoteError, VaultError
from vaultllm.schema import Problem
from vaultllm.text import decode, encodable, nfc

if TYPE_CHECKING:
    from vaultllm.config import ScanSettings  # at run time it would cost each child that reads notes its models

_SAFE = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_BENEATH = os.open in os.supports_dir_fd and hasattr(os, "O_NOFOLLOW")
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EINVAL}
_DATALESS = 0x40000000  # macOS: the file's bytes are in the cloud only

_NOISE = re.compile(r"\.|~\$|~syncthing~|4913$|node_modules$|#.*#$|.*(?:~|\.swp|\.swx|\.tmp|\.icloud)$", re.I | re.S)
_ICLOUD = re.compile(r"\.(.+\.(?:md|markdown))\.icloud", re.I | re.S)
_NOTES = (".md", ".markdown", ".canvas")
_EXPORTS = "conversations*.json, chat-*.json, perplexity*.json, *grok*.json, result.json, *.jsonl"  # as the services name them
_EXPORT = re.compile("|".join(fnmatch.translate(pattern) for pattern in _EXPORTS.split(", ")), re.I)
_OTHER_KINDS = {
    ".excalidraw.md": "Excalidraw drawings hold a picture, not notes",
    ".excalidraw": "Excalidraw drawings hold a picture, not notes",
    ".base": "Bases hold views of notes, not notes",
}
_OTHERS = tuple(_OTHER_KINDS)
UNREAD = ("W-OFFLINE", "W-LINK", "E-READ", "E-SPECIAL", "E-OUTSIDE", "E-SIZE")
"""Codes of problems that keep a note from being read, whatever is in it."""
_FORBIDDEN = re.compile(r"%%|[/\\:*?\"<>|#^\[\]\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff\ufffd\ud800-\udfff]")
_RESERVED = re.compile(r"(?:CON|PRN|AUX|NUL|COM[0-9¹²³]|LPT[0-9¹²³]|CONIN\$|CONOUT\$)(?:\..*)?", re.I)
_ROOM = len(" 99.md")
_LEFT = re.compile(r"\.vaultllm-[0-9a-f]{16}\.tmp")  # `write_new`, killed


class FileStat(NamedTuple):
    """A note on disk, as one `stat` saw it."""

    path: str
    """Vault-relative, `/`, as it stands on disk."""
    size: int
    """Bytes."""
    mtime_ns: int
    """Last change of the content, as the file system says (it may lie in the future or repeat)."""
    ctime_ns: int
    """Last change of the inode."""
    inode: int
    """Stays when the file is renamed."""


class Scan(NamedTuple):
    """What a walk through the vault found."""

    files: tuple[FileStat, ...]
    """The notes, by path."""
    skipped: tuple[tuple[str, Problem], ...]
    """Notes and folders that could not be taken, by path, and why. What lies under a skipped folder is unknown, not deleted."""


def scan(vault: Path, settings: ScanSettings, own_folders: tuple[str, ...], only: Collection[str] | None = None) -> Scan:
    """All notes of the vault: `.md`, `.markdown`, `.canvas`, and chat exports (`is_note`); or those of `only` that are there.

    `only` (vault-relative, spelt as on disk): other folders than theirs are not listed, other files not examined.
    Left out in silence: dot files and folders, temporary and sync files, `settings.ignore`, and `own_folders` with our notes.
    Raises VaultError when the vault itself cannot be listed.
    """
    files: list[FileStat] = []
    skipped: list[tuple[str, Problem]] = []
    ignored = _ignored(settings.ignore, own_folders)
    named = None if only is None else _by_folder(only)
    folders = [""]
    while folders:
        folder = folders.pop()
        prefix = folder + "/" if folder else ""
        try:
            with os.scandir(vault / folder) as entries:
                for entry in entries if named is None else (entry for entry in entries if entry.name in named.get(folder, ())):
                    _sort_in(entry, prefix + entry.name, ignored, files, skipped, folders)
        except OSError as error:
            if not folder:
                raise VaultError(f"the vault cannot be listed ({error.strerror}); is its disk mounted?", path=str(vault)) from error
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):  # removed since its parent was listed: then it is no longer there
                skipped.append((folder, Problem("E-READ", f"the folder cannot be listed ({error.strerror}); make it readable")))
    return Scan(tuple(sorted(files)), tuple(sorted(skipped)))


def _by_folder(paths: Collection[str]) -> dict[str, set[str]]:
    """Folder -> the names in it that lead to these files. One that is in iCloud only stands there under another name."""
    found: dict[str, set[str]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        found.setdefault(folder, set()).update((name, f".{name}.icloud"))
        while folder:
            folder, _, name = folder.rpartition("/")
            found.setdefault(folder, set()).add(name)
    return found


def all_files(vault: Path) -> Iterator[str]:
    """Every file of the vault that a link can mean, notes and attachments: vault-relative paths, none of hidden or temporary ones."""
    for folder, folders, names in os.walk(vault):
        folders[:] = [name for name in folders if not _NOISE.match(name)]
        prefix = os.path.relpath(folder, vault).replace(os.sep, "/") + "/"
        for name in names:
            if not _NOISE.match(name):
                yield name if prefix == "./" else prefix + name


def files_below(vault: Path, folder: str) -> Iterator[str]:
    """The plain files below a folder of the vault, vault-relative. None when it leads out of the vault; links are not followed."""
    try:
        top = _inside(vault, folder, folder)
    except VaultError:
        return
    root = os.path.realpath(vault)
    for here, _, names in os.walk(top):
        for name in names:
            path = os.path.join(here, name)
            with contextlib.suppress(OSError):
                if stat.S_ISREG(os.lstat(path).st_mode):
                    yield os.path.relpath(path, root).replace(os.sep, "/")


def left_out(vault: Path, path: str, settings: ScanSettings, own_folders: tuple[str, ...]) -> Problem | None:
    """Why `scan` does not take this file (vault-relative); None when it does. Looks at the names on the way down only."""
    ignored = _ignored(settings.ignore, own_folders)
    prefix = ""
    for name in PurePosixPath(path).parts:
        here = prefix + name
        files: list[FileStat] = []
        skipped: list[tuple[str, Problem]] = []
        folders: list[str] = []
        try:
            with os.scandir(vault / prefix) as entries:
                for entry in entries:
                    if entry.name == name:
                        _sort_in(entry, here, ignored, files, skipped, folders)
                        break
                else:
                    return Problem("E-READ", "there is no such file in the vault")
        except OSError as error:
            return Problem("E-READ", f"its folder cannot be listed ({error.strerror}); make it readable")
        if skipped:
            return skipped[0][1]
        if files:
            return None
        if not folders:
            if _NOISE.match(name):
                why = f"'{here}' has the name of a hidden, temporary or sync file or folder"
            elif ignored.fullmatch(nfc(here)):
                why = f"'{here}' is left out by scan.ignore, or is a folder of our own notes"
            else:
                kinds = ", ".join(_NOTES)
                why = f"only {kinds} and chat exports ({_EXPORTS}) are read"
            return Problem("W-IGNORED", f"{why}, so nothing of it is read; rename or move it to change that")
        prefix = here + "/"
    return Problem("W-KIND", "this is a folder, not a note; name one of its files")


def _sort_in(
    entry: os.DirEntry[str],
    path: str,
    ignored: re.Pattern[str],
    files: list[FileStat],
    skipped: list[tuple[str, Problem]],
    folders: list[str],
) -> None:
    """Put one entry of a folder where it belongs."""
    name = entry.name
    if _NOISE.match(name):
        if (offline := _ICLOUD.fullmatch(name)) and not ignored.fullmatch(nfc(path)):
            note = path[: len(path) - len(name)] + offline[1]
            skipped.append((note, Problem("W-OFFLINE", "the note is in iCloud only; download it in Finder")))
        return
    lower = name.lower()
    noted = is_note(name)
    linked = entry.is_symlink()
    folder = entry.is_dir(follow_symlinks=False)
    other = next(message for kind, message in _OTHER_KINDS.items() if lower.endswith(kind)) if lower.endswith(_OTHERS) else ""
    if not (noted or other or folder or (linked and _is_folder(entry))):
        return
    try:
        path.encode()
    except UnicodeEncodeError:
        shown = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        skipped.append((shown, Problem("E-NAME", "the name is not UTF-8; rename it")))
        return
    if ignored.fullmatch(nfc(path)):
        return
    if linked:
        message = "a symbolic link is not followed; put the file itself into the vault"
        skipped.append((path, Problem("W-LINK", message)))
    elif folder:
        folders.append(path)
    elif other:
        skipped.append((path, Problem("W-KIND", f"{other}, so nothing of it is read; nothing to do")))
    else:
        _take(entry, path, files, skipped)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return True


def _take(entry: os.DirEntry[str], path: str, files: list[FileStat], skipped: list[tuple[str, Problem]]) -> None:
    try:
        found = entry.stat(follow_symlinks=False)
        readable = os.access(entry.path, os.R_OK)
    except FileNotFoundError:
        return
    except OSError as error:
        skipped.append((path, Problem("E-READ", f"the file cannot be examined ({error.strerror})")))
        return
    if not stat.S_ISREG(found.st_mode):
        skipped.append((path, Problem("E-SPECIAL", "it is a pipe, socket or device, not a file; remove it or rename it")))
    elif getattr(found, "st_flags", 0) & _DATALESS:
        skipped.append((path, Problem("W-OFFLINE", "the note is in the cloud only; download it")))
    elif not readable:
        skipped.append((path, Problem("E-READ", "permission denied; make the note readable")))
    else:
        files.append(FileStat(path, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino))


def _ignored(patterns: tuple[str, ...], own_folders: tuple[str, ...]) -> re.Pattern[str]:
    """One regular expression for all that is left out: folders and files by path or glob; a pattern without `/` fits any name."""
    parts = []
    for number, pattern in enumerate((*own_folders, *patterns)):
        plain = nfc(pattern).strip().removeprefix("./").strip("/")
        if plain:
            glob = fnmatch.translate(plain).removesuffix(r"\Z").removesuffix(r"\z")
            parts.append(glob if "/" in plain or number < len(own_folders) else rf"(?:.*/)?{glob}")
    return re.compile("|".join(f"(?:{part})" for part in parts) or r"(?!)", re.S)


def is_note(name: str) -> bool:
    """Whether a file of this name is read: Markdown, a canvas, or a chat export. Other JSON files are settings and data."""
    return name.lower().endswith(_NOTES) or _EXPORT.match(name) is not None


def read(vault: Path, path: str, max_bytes: int) -> bytes:
    """The bytes of a note. Raises VaultError (E-OUTSIDE, E-READ, E-SIZE); never blocks on pipes, never follows links."""
    with _opened(vault, path, os.O_RDONLY) as descriptor:
        size = os.fstat(descriptor).st_size
        if size <= max_bytes:
            data = _read_all(descriptor, max_bytes + 1)
            if len(data) <= max_bytes:
                return data
        raise VaultError(
            f"the note has {size:,} bytes, more than scan.max_bytes = {max_bytes:,}; split it or raise the limit", path=path, code="E-SIZE"
        )


@contextlib.contextmanager
def _opened(vault: Path, path: str, mode: int) -> Iterator[int]:
    """A descriptor of a regular file within the vault; OSErrors inside become VaultErrors."""
    try:
        descriptor = _open_beneath(vault, path, mode)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise VaultError("it is a symbolic link, which is not followed", path=path, code="E-OUTSIDE") from error
        code = "E-WRITE" if mode != os.O_RDONLY else "E-READ"
        raise VaultError(f"the note cannot be opened ({error.strerror})", path=path, code=code) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise VaultError("it is not a regular file; remove it or rename it", path=path, code="E-READ")
        yield descriptor
    except OSError as error:
        raise VaultError(f"the note cannot be read ({error.strerror})", path=path, code="E-READ") from error
    finally:
        os.close(descriptor)


def _open_beneath(vault: Path, path: str, mode: int) -> int:
    """Open folder by folder, each within the one before: none can be swapped for a link that leads away. Raises OSError, VaultError."""
    _check_name(path)
    *folders, name = path.split("/")
    if not name or "\0" in path or ("\\" in path and os.sep == "\\") or {"", ".."} & {*folders, name}:
        raise VaultError("the path leaves the vault", path=path.replace("\0", "\\0"), code="E-OUTSIDE")
    if _BENEATH:
        folder = os.open(vault, _FOLDER)
        try:
            for part in folders:
                above, folder = folder, os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
                os.close(above)
            return os.open(name, mode | _SAFE, dir_fd=folder)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR) or not folders:
                raise
        finally:
            os.close(folder)
    # A folder that is a link within the vault (or a system without `openat`): what the path means is checked before and after.
    inside = _inside(vault, "/".join(folders), path)
    descriptor = os.open(inside / name, mode | _SAFE)
    if _inside(vault, "/".join(folders), path) != inside:
        os.close(descriptor)
        raise VaultError("its folder changed while it was opened; try again", path=path, code="E-READ")
    return descriptor


def _check_name(path: str) -> None:
    """Raises VaultError E-NAME for what is no UTF-8: no note of ours is called so, none can be told of."""
    if path != encodable(path):
        raise VaultError("the name is not UTF-8; rename it", path=encodable(path), code="E-NAME")


def _inside(vault: Path, folder: str, path: str) -> Path:
    """The resolved folder, which may not exist yet. Raises VaultError E-OUTSIDE when it is not within the vault."""
    _check_name(folder + path)
    root = Path(os.path.realpath(vault))
    parts = PurePosixPath(folder).parts
    if "\0" in folder + path or PurePosixPath(folder).is_absolute() or ".." in parts:
        raise VaultError("the path leaves the vault", path=path.replace("\0", "\\0"), code="E-OUTSIDE")
    real = Path(os.path.realpath(root.joinpath(*parts)))
    if real != root and root not in real.parents:
        raise VaultError("the path leads out of the vault through a symbolic link", path=path, code="E-OUTSIDE")
    return real


def _read_all(descriptor: int, limit: int) -> bytes:
    parts = []
    while limit > 0 and (part := os.read(descriptor, min(limit, 1 << 20))):
        parts.append(part)
        limit -= len(part)
    return b"".join(parts)


def note_name(title: str, max_bytes: int = 120) -> str:
    """A title as a file name without suffix, safe on every system and in links; leaves room for ` 99.md` within max_bytes.

    Never empty; NFC; idempotent. Cut between characters, not between a letter and its marks.
    """
    name = _trimmed(_FORBIDDEN.sub(" ", nfc(title)))
    if _RESERVED.fullmatch(name):
        name = "_" + name
    limit = max(max_bytes - _ROOM, 8)
    if len(name.encode()) > limit:
        cut = len(name.encode()[:limit].decode("utf-8", "ignore"))
        while cut > 1 and _joins(name[cut - 1], name[cut]):
            cut -= 1
        name = _trimmed(name[:cut])
    return name or "Note"


def _trimmed(name: str) -> str:
    return " ".join(name.split()).lstrip(". ~").rstrip(". ")


def _joins(left: str, right: str) -> bool:
    """Whether two characters belong to one letter: a mark, a joiner, or what follows one."""
    return unicodedata.category(right).startswith("M") or right in "\u200c\u200d" or left in "\u200d\u094d\u09cd"


def write_new(vault: Path, folder: str, name: str, text: str, suffix: str = ".md") -> str:
    """Write a new note `folder/name.md` (or `name 2.md`, …) and return its path. Nothing that exists is replaced.

    Another `suffix` is for a picture that a note of ours embeds (`.svg`).
    It appears complete or not at all, survives a power cut once we return, and leaves no temporary file; of a kill, see `sweep`.
    Raises VaultError: E-OUTSIDE when the folder leads out of the vault, E-WRITE when it cannot be written.
    """
    where = _inside(vault, folder, folder)
    data = text.encode("utf-8", "replace")
    try:
        with _aside(vault, where, data) as (here, temp):
            final = _publish(here, note_name(name), suffix, temp, data)
    except OSError as error:
        raise _not_a_folder(folder, error) or _write_error(vault, f"{folder}/{name}{suffix}", len(data), error) from error
    return str(PurePosixPath(folder) / final)


def sweep(vault: Path, folders: Iterable[str]) -> None:
    """Remove what kills have left half written in these folders of ours. The caller holds the lock, and so does who writes there."""
    for folder in folders:
        with contextlib.suppress(OSError, VaultError):  # not there, or not ours any more
            where = _inside(vault, folder, folder)
            if where.is_dir():
                with _folder(vault, where) as here:
                    here.sweep()


class _Here(NamedTuple):
    """A folder of the vault that is written to: open, so that none can be put in its place; by its path where a system has no `openat`."""

    path: Path
    descriptor: int | None

    def of(self, name: str) -> str:
        """A name in it, as the calls want it that take `dir_fd=descriptor`."""
        return name if self.descriptor is not None else str(self.path / name)

    def sweep(self) -> None:
        """Remove our temporary files, whose names nobody else gives."""
        for name in os.listdir(self.path if self.descriptor is None else self.descriptor):
            if _LEFT.fullmatch(name):
                os.unlink(self.of(name), dir_fd=self.descriptor)

    def sync(self) -> None:
        """Make the names in it last. Some file systems cannot; the files themselves are synced."""
        with contextlib.suppress(OSError):
            descriptor = os.open(self.path, _FOLDER) if self.descriptor is None else os.dup(self.descriptor)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def _folder(vault: Path, where: Path) -> Iterator[_Here]:
    """A resolved folder of the vault, made where it is missing, each part opened within the one before. Raises OSError."""
    from vaultllm.config import UMASK

    root = Path(os.path.realpath(vault))
    here = _Here(root, os.open(root, _FOLDER) if _BENEATH else None)
    try:
        for part in where.relative_to(root).parts:
            made = True
            try:
                os.mkdir(here.of(part), dir_fd=here.descriptor)
                here.sync()
            except FileExistsError:
                made = False
            below = None if here.descriptor is None else os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=here.descriptor)
            above, here = here, _Here(here.path / part, below)
            if above.descriptor is not None:
                os.close(above.descriptor)
            if made:
                os.chmod(here.path if below is None else below, 0o777 & ~UMASK)
        yield here
    finally:
        if here.descriptor is not None:
            os.close(here.descriptor)


@contextlib.contextmanager
def _aside(vault: Path, where: Path, data: bytes) -> Iterator[tuple[_Here, str]]:
    """A folder, and the name in it under which the data lies until it is put in place; afterwards all is on the disk. Raises OSError."""
    temp = f".vaultllm-{secrets.token_hex(8)}.tmp"
    with _folder(vault, where) as here:
        try:
            _write_file(here, temp, data)
            yield here, temp
        finally:
            with contextlib.suppress(OSError):
                os.unlink(here.of(temp), dir_fd=here.descriptor)
        here.sync()


def _write_file(here: _Here, name: str, data: bytes) -> None:
    """A new file with these bytes, on disk when we return; removed again when that fails."""
    from vaultllm.config import UMASK

    descriptor = os.open(here.of(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE, 0o600, dir_fd=here.descriptor)
    try:
        if hasattr(os, "fchmod"):
            os.fchmod(descriptor, 0o644 & ~UMASK)
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(here.of(name), dir_fd=here.descriptor)
        raise
    finally:
        os.close(descriptor)


def _publish(here: _Here, name: str, suffix: str, temp: str, data: bytes) -> str:
    """Give the finished file its name: the first free one, also on file systems that ignore case or Unicode form."""
    taken = {nfc(other).casefold() for other in os.listdir(here.path if here.descriptor is None else here.descriptor)}
    number = 1
    while True:
        final = f"{name}{suffix}" if number == 1 else f"{name} {number}{suffix}"
        number += 1
        if nfc(final).casefold() in taken:
            continue
        try:
            os.link(here.of(temp), here.of(final), src_dir_fd=here.descriptor, dst_dir_fd=here.descriptor, follow_symlinks=False)
        except FileExistsError:
            continue
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            try:
                _write_file(here, final, data)  # no hard links here (FAT, some network drives): exclusive creation also replaces nothing
            except FileExistsError:
                continue
        return final


def put(vault: Path, path: str, data: bytes) -> None:
    """Put a file of ours that is no note (the plugin's) where it belongs, whole, by a rename; folders are made, no link is followed.

    What stood there is replaced: the caller knows whose it was. Raises VaultError: E-OUTSIDE, E-WRITE.
    """
    folder, _, name = path.rpartition("/")
    try:
        with _aside(vault, _plain(vault, path).parent, data) as (here, temp):
            os.replace(here.of(temp), here.of(name), src_dir_fd=here.descriptor, dst_dir_fd=here.descriptor)
    except OSError as error:
        raise _not_a_folder(folder, error) or _write_error(vault, path, len(data), error) from error


def take_away(vault: Path, path: str) -> None:
    """Remove a file that `put` put there, and its folder when nothing else is in it. Raises VaultError: E-OUTSIDE, E-WRITE."""
    folder, _, name = path.rpartition("/")
    try:
        with _folder(vault, _plain(vault, path).parent) as here:
            os.unlink(here.of(name), dir_fd=here.descriptor)
        with contextlib.suppress(OSError):
            _plain(vault, folder).rmdir()
    except OSError as error:
        raise _not_a_folder(folder, error) or VaultError(f"cannot be removed ({error.strerror})", path=path, code="E-WRITE") from error


def _plain(vault: Path, path: str) -> Path:
    """The path as it is written, below the real vault. Raises VaultError E-OUTSIDE for one that leads out."""
    _check_name(path)
    if "\0" in path or not path or {"", "..", "."} & set(path.split("/")):
        raise VaultError("the path leaves the vault", path=path.replace("\0", "\\0"), code="E-OUTSIDE")
    made = Path(os.path.realpath(vault)).joinpath(*path.split("/"))
    if os.path.realpath(made.parent) != str(made.parent):
        raise VaultError("the path leads through a symbolic link; put the folder itself there", path=path, code="E-OUTSIDE")
    return made


def _not_a_folder(folder: str, error: OSError) -> VaultError | None:
    if error.errno not in (errno.ELOOP, errno.ENOTDIR):
        return None
    message = "its folder, or one above it, is a file or became a symbolic link; rename that, or name another folder"
    return VaultError(message, path=folder, code="E-WRITE")


def _write_error(vault: Path, path: str, needed: int, error: OSError) -> VaultError:
    try:
        space = f"{shutil.disk_usage(vault).free:,} bytes free, {needed:,} needed"
    except OSError:
        space = "the disk does not answer"
    return VaultError(
        f"the note cannot be written ({error.strerror}; {space}); make room or make the folder writable", path=path, code="E-WRITE"
    )


def append(vault: Path, path: str, text: str, expected_sha256: str) -> str:
    """Add text at the end of a note, on a line of its own, in the note's encoding and newlines; what is there stays as it is.

    Returns the SHA-256 of the note as it is then. Raises OwnedNoteError when the note is not the one that was read (sha256 of its
    bytes), VaultError when it cannot be written; then the note is as it was. Between the last look and the write, microseconds
    remain in which another program may append too: then both texts stand there.
    """
    with _opened(vault, path, os.O_RDWR | os.O_APPEND) as descriptor:
        before = os.fstat(descriptor)
        data = _read_all(descriptor, before.st_size + 1)
        if len(data) != before.st_size or hashlib.sha256(data).hexdigest() != expected_sha256:
            raise OwnedNoteError("the note was changed since it was read; nothing was written; try again", path=path)
        if before.st_nlink > 1:
            why = "the file has another name (a hard link: a backup's, or outside the vault), under which it would change too"
            raise VaultError(f"{why}; put a copy in its place, then try again", path=path, code="E-OUTSIDE")
        new = addition(path, data, text)
        if _moment(os.fstat(descriptor)) != _moment(before) or not _stands(vault, path, before):
            raise OwnedNoteError("the note was changed while it was looked at; nothing was written; try again", path=path)
        try:
            written = os.write(descriptor, new)
            if written != len(new):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
        except OSError as error:
            _take_back(descriptor, before.st_size, new)
            raise _write_error(vault, path, len(new), error) from error
        if not _stands(vault, path, before):  # this very moment it was renamed, or another file put in its place
            _take_back(descriptor, before.st_size, new)
            raise OwnedNoteError("the note was moved or replaced while it was written to; nothing was added; try again", path=path)
        return hashlib.sha256(data + new).hexdigest()


def addition(path: str, data: bytes, text: str) -> bytes:
    """The bytes that `append` adds to a note of these bytes: on a line of its own, in its encoding and newlines. Raises VaultError."""
    there = decode(data)
    if not there.encoding:
        raise VaultError("the note is not readable as text, so nothing is added", path=path, code="E-ENC")
    added = text if not there.text or there.text.endswith("\n") else "\n" + text
    if b"\r" in data and "\n" in there.text and b"\r\n" in data.replace(b"\0", b""):
        added = added.replace("\n", "\r\n")
    return added.encode(there.encoding.replace("utf-8-sig", "utf-8"), "replace")


def _take_back(descriptor: int, size: int, added: bytes) -> None:
    """Cut off our bytes, or what of them was written; nobody else's."""
    with contextlib.suppress(OSError):
        os.lseek(descriptor, size, os.SEEK_SET)
        part = _read_all(descriptor, len(added) + 1)
        if part and added.startswith(part):
            os.ftruncate(descriptor, size)


def _moment(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _stands(vault: Path, path: str, opened: os.stat_result) -> bool:
    """Whether the file that was opened is still the one at the path."""
    try:
        with _opened(vault, path, os.O_RDONLY) as descriptor:
            return os.path.samestat(os.fstat(descriptor), opened)
    except VaultError:
        return False
