"""The vault: everything is found, nothing outside is touched, nothing that exists is replaced, nothing half-written stays."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
import stat
import threading
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaultllm import config, vault
from vaultllm.config import ScanSettings
from vaultllm.errors import OwnedNoteError, VaultError

OWN = "vaultllm/Answers"


def put(root: Path, path: str, data: bytes = b"x") -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def scan(root: Path, **changed) -> vault.Scan:
    return vault.scan(root, ScanSettings(**changed), (OWN, "vaultllm/Reports"))


def paths(root: Path, **changed) -> list[str]:
    return [file.path for file in scan(root, **changed).files]


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


# -- scan


def test_notes_and_exports_are_found_in_order(tmp_path):
    for name in (
        "б.md",
        "a/B.MD",
        "a/c.markdown",
        "conversations.json",
        "Conversations-001.json",
        "data.json",
        "x.png",
        "note.txt",
        "chat-1.json",
        "result.json",
        "t/s.jsonl",
        "my result.json",
    ):
        put(tmp_path, name)
    found = scan(tmp_path)
    exports = ["Conversations-001.json", "chat-1.json", "conversations.json", "result.json", "t/s.jsonl"]
    assert [file.path for file in found.files] == sorted([*exports, "a/B.MD", "a/c.markdown", "б.md"])
    assert found.skipped == ()
    on_disk = (tmp_path / "б.md").stat()
    assert found.files[-1] == ("б.md", 1, on_disk.st_mtime_ns, on_disk.st_ctime_ns, on_disk.st_ino)


def test_noise_is_left_out_in_silence(tmp_path):
    noise = (
        ".obsidian/x.md",
        ".trash/x.md",
        ".git/a.md",
        "node_modules/p/README.md",
        "x.md~",
        "#x.md#",
        "x.md.swp",
        "4913",
        "x.md.tmp",
        "~$x.md",
    )
    for name in (*noise, "~syncthing~x.md.tmp", ".syncthing.x.md.tmp", ".hidden.md", f"{OWN}/answer.md", "vaultllm/Reports/a report.md"):
        put(tmp_path, name)
    (tmp_path / ".#x.md").symlink_to("nobody@host.1")
    put(tmp_path, "vaultllm/other.md")
    assert paths(tmp_path) == ["vaultllm/other.md"]
    assert scan(tmp_path).skipped == ()


def test_ignore_takes_folders_and_globs(tmp_path):
    for name in ("Private/a.md", "Work/Private/a.md", "Work/draft-1.md", "Work/b.md", unicodedata.normalize("NFD", "Мой/й.md")):
        put(tmp_path, name)
    everything = len(paths(tmp_path))
    assert everything == 5
    assert paths(tmp_path, ignore=("/Private/", "draft-*", "Мой")) == ["Work/b.md"]
    assert len(paths(tmp_path, ignore=("Work/Private",))) == 4
    assert len(paths(tmp_path, ignore=("Work/*.md",))) == 2
    assert len(paths(tmp_path, ignore=("", "Wor", "b.m"))) == everything


def test_what_cannot_be_taken_is_named_with_its_reason(tmp_path):
    root = tmp_path / "vault"
    put(root, "ok.md")
    put(tmp_path, "outside/secret.md")
    os.mkfifo(root / "pipe.md")
    (root / "out.md").symlink_to(tmp_path / "outside/secret.md")
    (root / "folder").symlink_to(tmp_path / "outside")
    (root / "loop").symlink_to(root)
    (root / "self.md").symlink_to("self.md")
    (root / "picture.png").symlink_to("nowhere")
    put(root, "board.canvas")
    put(root, "all.base")
    put(root, "old.excalidraw")
    put(root, "drawing.excalidraw.md")
    put(root, ".cloud.md.icloud")
    (root / os.fsdecode(b"bad\xff.md")).write_bytes(b"x")
    (root / os.fsdecode(b"dir\xfe")).mkdir()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(root / "s.md"))
        found = scan(root)
    assert [file.path for file in found.files] == ["board.canvas", "ok.md"]
    assert {path: problem.code for path, problem in found.skipped} == {
        "pipe.md": "E-SPECIAL",
        "s.md": "E-SPECIAL",
        "out.md": "W-LINK",
        "folder": "W-LINK",
        "loop": "W-LINK",
        "self.md": "W-LINK",
        "all.base": "W-KIND",
        "old.excalidraw": "W-KIND",
        "drawing.excalidraw.md": "W-KIND",
        "cloud.md": "W-OFFLINE",
        "bad\\xff.md": "E-NAME",
        "dir\\xfe": "E-NAME",
    }


def test_it_can_be_said_why_a_single_file_is_left_out(tmp_path):
    for path in ("a/b.md", "a/~$b.md", ".trash/c.md", "skip/d.md", "own/e.md", "f.png", "a/g.base", "h.canvas"):
        put(tmp_path, path)
    (tmp_path / "linked").symlink_to(tmp_path / "a")

    def why(path: str) -> str:
        problem = vault.left_out(tmp_path, path, ScanSettings(ignore=("skip",)), ("own",))
        return problem.code if problem else ""

    taken = [file.path for file in vault.scan(tmp_path, ScanSettings(ignore=("skip",)), ("own",)).files]
    assert taken == ["a/b.md", "h.canvas"]
    assert [why(path) for path in taken] == ["", ""]
    assert [why(path) for path in ("a/~$b.md", ".trash/c.md", "skip/d.md", "own/e.md", "f.png")] == ["W-IGNORED"] * 5
    assert [why(path) for path in ("a/g.base", "linked/b.md", "a", "a/none.md")] == ["W-KIND", "W-LINK", "W-KIND", "E-READ"]


def test_folders_and_files_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    put(tmp_path, "shut/a.md")
    put(tmp_path, "gone/a.md")
    put(tmp_path, "b.md")
    put(tmp_path, "c.md")
    scandir, access = os.scandir, os.access

    def refuse(path):
        if Path(path).name in ("shut", "gone"):
            code = errno.EACCES if Path(path).name == "shut" else errno.ENOENT
            raise OSError(code, os.strerror(code), str(path))
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        patch.setattr(os, "access", lambda path, mode: Path(path).name != "c.md" and access(path, mode))
        found = scan(tmp_path)
    assert [file.path for file in found.files] == ["b.md"]
    assert [(path, problem.code) for path, problem in found.skipped] == [("c.md", "E-READ"), ("shut", "E-READ")]


def test_a_missing_vault_is_an_error_not_an_empty_vault(tmp_path):
    with pytest.raises(VaultError, match="mounted"):
        scan(tmp_path / "nowhere")


def test_ten_thousand_notes_are_listed_in_a_moment(tmp_path):
    for folder in range(100):
        (tmp_path / f"f{folder}").mkdir()
        for number in range(100):
            os.close(os.open(tmp_path / f"f{folder}/n{number}.md", os.O_CREAT | os.O_WRONLY))
    started = time.perf_counter()
    assert len(scan(tmp_path, ignore=("Private", "*.draft.md")).files) == 10_000
    assert time.perf_counter() - started < 1.5


# -- read


def test_read_gives_the_bytes_up_to_the_limit(tmp_path):
    put(tmp_path, "a/б.md", b"12345")
    assert vault.read(tmp_path, "a/б.md", 5) == b"12345"
    with pytest.raises(VaultError, match="5 bytes") as caught:
        vault.read(tmp_path, "a/б.md", 4)
    assert (caught.value.code, caught.value.path) == ("E-SIZE", "a/б.md")


@pytest.mark.parametrize("path", ["../secret.md", "/etc/passwd", "a/../../secret.md", "link/secret.md", "link.md", "a\0.md", "..", ""])
def test_nothing_outside_the_vault_is_read_or_written(tmp_path, path):
    root = tmp_path / "vault"
    root.mkdir()
    secret = put(tmp_path, "secret.md", b"secret")
    (root / "link").symlink_to(tmp_path)
    (root / "link.md").symlink_to(secret)
    with pytest.raises(VaultError) as caught:
        vault.read(root, path, 100)
    assert caught.value.code == "E-OUTSIDE"
    with pytest.raises(VaultError) as caught:
        vault.append(root, path, "x", digest(secret))
    assert caught.value.code == "E-OUTSIDE"
    assert secret.read_bytes() == b"secret"


def test_what_is_no_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.md")
    (tmp_path / "folder.md").mkdir()
    for path in ("pipe.md", "folder.md", "missing.md", "missing/a.md"):
        with pytest.raises(VaultError) as caught:
            vault.read(tmp_path, path, 100)
        assert caught.value.code == "E-READ"


def test_a_folder_that_turns_into_a_link_while_we_open_is_noticed(tmp_path, monkeypatch):
    root = tmp_path / "vault"
    put(root, "a/n.md", b"ours")
    put(tmp_path, "out/n.md", b"secret")
    opened = os.open

    def swap(path, *rest, **more):
        if not (root / "b").exists():
            (root / "a").rename(root / "b")
            (root / "a").symlink_to(tmp_path / "out")
        return opened(path, *rest, **more)

    monkeypatch.setattr(os, "open", swap)
    with pytest.raises(VaultError):
        vault.read(root, "a/n.md", 100)


# -- note_name


@given(st.text(max_size=200), st.integers(20, 255))
def test_a_note_name_is_safe_and_stable(title, limit):
    name = vault.note_name(title, limit)
    assert name
    assert len(f"{name} 99.md".encode()) <= limit
    assert not set(name) & set('/\\:*?"<>|#^[]\n\0')
    assert "%%" not in name
    assert name == name.strip(" .")
    assert unicodedata.is_normalized("NFC", name)
    assert vault.note_name(name, limit) == name


def test_note_names_keep_what_they_can():
    assert vault.note_name('Что такое: "LLM"/GPT?') == "Что такое LLM GPT"
    assert vault.note_name("...") == vault.note_name("") == vault.note_name("\ud800") == "Note"
    assert vault.note_name("CON") == "_CON"
    assert vault.note_name("aux.txt") == "_aux.txt"
    assert vault.note_name("../../etc/passwd") == "etc passwd"
    assert vault.note_name("a\u202eb") == "a b"
    assert vault.note_name("ж" * 200) == "ж" * 57
    bengali = vault.note_name("কি" * 100)
    assert bengali == "কি" * 19  # 114 bytes, and no letter without its vowel sign


# -- write_new


def test_a_new_note_is_written_whole_and_never_replaces_another(tmp_path):
    names = [vault.write_new(tmp_path, OWN, "Ответ: раз?", f"text {number}\n") for number in range(3)]
    assert names == [f"{OWN}/Ответ раз.md", f"{OWN}/Ответ раз 2.md", f"{OWN}/Ответ раз 3.md"]
    assert [(tmp_path / name).read_text() for name in names] == ["text 0\n", "text 1\n", "text 2\n"]
    assert vault.write_new(tmp_path, OWN, "ОТВЕТ РАЗ", "x").endswith("ОТВЕТ РАЗ 4.md")
    assert len(list((tmp_path / OWN).iterdir())) == 4
    assert vault.write_new(tmp_path, "", "top", "x") == "top.md"


def test_a_note_has_the_users_mode_whatever_our_umask(tmp_path):
    before = os.umask(0o077)
    try:
        name = vault.write_new(tmp_path, OWN, "a", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o644 & ~config.UMASK
    assert stat.S_IMODE((tmp_path / OWN).stat().st_mode) == 0o777 & ~config.UMASK


def test_without_hard_links_it_still_replaces_nothing(tmp_path, monkeypatch):
    def no_links(*_, **__):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: [])  # somebody was faster than our look
    put(tmp_path, "a.md", b"theirs")
    assert vault.write_new(tmp_path, "", "a", "ours") == "a 2.md"
    assert (tmp_path / "a.md").read_bytes() == b"theirs"
    assert sorted(listdir(tmp_path)) == ["a 2.md", "a.md"]


def test_threads_that_write_the_same_name_lose_nothing(tmp_path):
    names: list[str] = []
    threads = [threading.Thread(target=lambda n=n: names.append(vault.write_new(tmp_path, "", "a", str(n)))) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(names)) == 12
    assert sorted((tmp_path / name).read_text() for name in names) == sorted(map(str, range(12)))


@pytest.mark.parametrize("call", ["write", "fsync", "link", "open"])
def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch, call):
    put(tmp_path, "mine.md", b"mine")

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(VaultError, match="bytes free") as caught:
        vault.write_new(tmp_path, "", "a", "text")
    assert caught.value.code == "E-WRITE"
    assert os.listdir(tmp_path) == ["mine.md"]


@pytest.mark.parametrize("folder", ["out", "out/deeper", "../x", "/tmp/x", "a/../../x"])
def test_a_folder_that_leads_out_is_refused(tmp_path, folder):
    root = tmp_path / "vault"
    root.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (root / "out").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(VaultError) as caught:
        vault.write_new(root, folder, "a", "x")
    assert caught.value.code == "E-OUTSIDE"
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert sorted(file.name for file in tmp_path.iterdir()) == ["elsewhere", "vault"]


@pytest.mark.skipif(not vault._BENEATH, reason="this system cannot open a file within an open folder")
@pytest.mark.parametrize("call", ["mkdir", "open", "listdir", "link"])
def test_a_folder_that_turns_into_a_link_while_we_write_leads_nowhere(tmp_path, monkeypatch, call):
    root, outside = tmp_path / "vault", tmp_path / "elsewhere"
    (outside / "Answers").mkdir(parents=True)
    put(root, "vaultllm/Answers/old.md")
    right = getattr(os, call)

    def swap(*given, **named):
        if not (root / "moved").exists():
            (root / "vaultllm").rename(root / "moved")
            (root / "vaultllm").symlink_to(outside)
        return right(*given, **named)

    monkeypatch.setattr(os, call, swap)
    with contextlib.suppress(VaultError):
        vault.write_new(root, OWN, "a", "x")
    assert [file for file in outside.rglob("*") if file.is_file()] == []
    assert {file.name for file in root.rglob("*.md")} <= {"old.md", "a.md"}


def test_files_below_a_folder_are_the_vaults_own(tmp_path):
    root = tmp_path / "vault"
    put(root, "a/b/c.md")
    put(root, "a/d.md")
    put(tmp_path, "out/e.md")
    (root / "a/link").symlink_to(tmp_path / "out")
    (root / "a/file.md").symlink_to(tmp_path / "out/e.md")
    (root / "led").symlink_to(tmp_path / "out")
    os.mkfifo(root / "a/pipe.md")
    assert sorted(vault.files_below(root, "a")) == ["a/b/c.md", "a/d.md"]
    for folder in ("led", "../out", str(tmp_path / "out"), "none", "a\0"):
        assert list(vault.files_below(root, folder)) == []


# -- append


@pytest.mark.parametrize(
    ("there", "then"),
    [
        (b"a\n", b"a\nnew\n"),
        (b"a", b"a\nnew\n"),
        (b"", b"new\n"),
        (b"a\r\nb", b"a\r\nb\r\nnew\r\n"),
        ("\ufeffa".encode("utf-16-le"), "\ufeffa\nnew\n".encode("utf-16-le")),
        (b"\xef\xbb\xbfa\n", b"\xef\xbb\xbfa\nnew\n"),
    ],
)
def test_append_keeps_the_note_and_speaks_its_newlines(tmp_path, there, then):
    file = put(tmp_path, "n.md", there)
    inode = file.stat().st_ino
    vault.append(tmp_path, "n.md", "new\n", digest(file))
    assert file.read_bytes() == then
    assert file.stat().st_ino == inode


def test_append_refuses_a_note_that_changed(tmp_path):
    file = put(tmp_path, "n.md", b"a\n")
    read = digest(file)
    file.write_bytes(b"b\n")
    with pytest.raises(OwnedNoteError):
        vault.append(tmp_path, "n.md", "new\n", read)
    assert file.read_bytes() == b"b\n"


def test_append_refuses_what_it_cannot_decode(tmp_path):
    file = put(tmp_path, "n.md", "Привет, мир".encode("cp1251"))
    with pytest.raises(VaultError) as caught:
        vault.append(tmp_path, "n.md", "new\n", digest(file))
    assert caught.value.code == "E-ENC"


@pytest.mark.parametrize("room", [0, 3])
def test_append_takes_back_a_part_that_did_not_fit(tmp_path, monkeypatch, room):
    file = put(tmp_path, "n.md", b"a\n")
    written = os.write

    def full(descriptor, data):
        if room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written(descriptor, data[:room])

    read = digest(file)
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(VaultError, match="bytes free"):
        vault.append(tmp_path, "n.md", "new text\n", read)
    assert file.read_bytes() == b"a\n"


NEWER = b"a\nthe owner goes on\n"


def _in_place(file: Path) -> None:
    file.write_bytes(NEWER)


def _by_rename(file: Path) -> None:
    (file.parent / ".new").write_bytes(NEWER)
    (file.parent / ".new").replace(file)


@pytest.mark.parametrize("save", [_in_place, _by_rename])
@pytest.mark.parametrize("moment", ["decoded", "write", "fsync"])
def test_what_the_owner_saves_while_we_append_is_never_lost(tmp_path, monkeypatch, save, moment):
    """Between our last look and our write there are microseconds; whatever falls into them stays, too."""
    file = put(tmp_path, "n.md", b"a\n")
    read = digest(file)
    owner, name = (vault, "decode") if moment == "decoded" else (os, moment)
    right = getattr(owner, name)

    def meanwhile(*given):
        monkeypatch.undo()
        save(file)
        return right(*given)

    monkeypatch.setattr(owner, name, meanwhile)
    try:
        said = vault.append(tmp_path, "n.md", "new\n", read)
    except OwnedNoteError:
        assert file.read_bytes() == NEWER
    else:
        assert (save, moment) in ((_in_place, "write"), (_in_place, "fsync"))
        assert file.read_bytes() == (NEWER + b"new\n" if moment == "write" else NEWER)
        assert said == hashlib.sha256(b"a\nnew\n").hexdigest()


def test_a_full_disk_does_not_make_us_take_back_what_the_owner_wrote(tmp_path, monkeypatch):
    file = put(tmp_path, "n.md", b"a\n")

    def full(*_):
        with file.open("ab") as end:
            end.write(b"me\n")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    read = digest(file)
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(VaultError):
        vault.append(tmp_path, "n.md", "new text\n", read)
    assert file.read_bytes() == b"a\nme\n"


def test_what_a_kill_left_half_written_is_swept_and_nothing_else(tmp_path):
    folder = tmp_path / "vaultllm" / "Answers"
    folder.mkdir(parents=True)
    mine, theirs = ".vaultllm-0123456789abcdef.tmp", (".vaultllm-notes.tmp", "draft.tmp", ".0123abcd.tmp", "a.md")
    for name in (mine, *theirs):
        (folder / name).write_text("half")
    vault.sweep(tmp_path, ["vaultllm/Answers", "vaultllm/Reports", "../outside"])
    assert sorted(path.name for path in folder.iterdir()) == sorted(theirs)
    assert not (tmp_path / "vaultllm" / "Reports").exists()
