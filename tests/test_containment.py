"""Nothing outside the vault and the state is read or touched, whatever path or file somebody puts in the way."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from vaultllm import config, imports, ingest, steps, vault
from vaultllm.errors import VaultError, VaultllmError
from vaultllm.ledger import Ledger
from vaultllm.selftest import histories

CANARY = "тайна канарейки лежит под седьмой ступенью"
NOTE = ">[!nexus_user] **User** - 16.06.2025 at 21:34\n> Где лежит насос канарейки?\n<!-- UID: u1 -->\n"


class Place:
    """A vault with notes, and canaries around it."""

    def __init__(self, root: Path) -> None:
        self.root, self.vault, self.outside = root, root / "vault", root / "outside"
        for folder in (self.vault / "a", self.outside / "Answers"):
            folder.mkdir(parents=True)
        for file in (root / "canary.md", self.outside / "canary.md", self.outside / "Answers" / "canary.md", self.outside / "x.json"):
            file.write_text(f"# Канарейка\n\n{CANARY}\n\nUser: {CANARY}?\n", encoding="utf-8")
        (self.vault / "a" / "n.md").write_text(NOTE, encoding="utf-8")
        (self.vault / "b.md").write_text("# Колодец\n\nвода в колодце\n", encoding="utf-8")
        (self.vault / "led").symlink_to(self.outside)
        (self.vault / "led.md").symlink_to(self.outside / "canary.md")
        (self.vault / "loop").symlink_to("loop")
        self.job = steps.Job(config.init_workspace(self.vault, str(root / "state")))
        ingest.ingest(self.job.workspace, self.job.ledger)
        self.before = self.around()

    def around(self) -> dict[str, bytes]:
        """Every file that is in neither the vault nor the state."""
        found = {}
        for top in (self.root, self.outside):
            for file in top.rglob("*") if top == self.outside else top.glob("*"):
                if file.is_file():
                    found[str(file)] = file.read_bytes() + oct(file.stat().st_mode).encode()
        return found

    def holds(self) -> list[str]:
        """Files of the state and the vault's own that say what a canary says."""
        files = [*(self.root / "state").rglob("*"), *(file for file in self.vault.rglob("*") if not file.is_symlink())]
        return [str(file) for file in files if file.is_file() and CANARY.encode() in file.read_bytes()]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with histories.reading_here():
        made = Place(tmp_path)
        yield made
        made.job.close()


def hostile(rng: random.Random, place: Place) -> str:
    """A path that wants to lead elsewhere, or is no path at all."""
    parts = (
        "..", ".", "", "a", "led", "loop", "n.md", "b.md", "canary.md", "outside", "x.json", "Answers", "CON.md", "AUX", "nul.md", "a:b.md",
        "~", "~root", "$HOME", "%2e%2e", "..%2f", "..\\..", "\\\\host\\c$", "C:", "..\u2215", "\u2024\u2024", "．．", "\ud800", "x" * 300,
        os.fsdecode(b"\xff\xfe.md"), "a\0.md", "\n.md", "-rf", "--", "$(id).md", "`id`", "[[canary]]", "![[../canary]]", "й.md",
        unicodedata.normalize("NFD", "й.md"), ".vaultllm", "imports", "config.toml", "chatgpt", "d" * 255, "л" * 127 + "м",
    )  # fmt: skip
    path = "/".join(rng.choice(parts) for _ in range(rng.randint(1, 6)))
    match rng.randrange(6):
        case 0:
            return str(place.outside) + "/" + path
        case 1:
            return imports.PREFIX + rng.choice(("../" * rng.randint(1, 6), "chatgpt/../../")) + rng.choice(("outside/x.json", path))
        case 2:
            return str(place.vault / "led" / path)
        case 3:
            return "../" * rng.randint(1, 8) + rng.choice(("outside/canary.md", "canary.md", str(place.outside / "canary.md").lstrip("/")))
    return path


def doors(place: Place) -> dict[str, Callable[[str], Any]]:
    """Every way by which a path comes in: what a user types, what a pipeline says, what lies in the ledger and in the settings."""
    job, root = place.job, place.vault
    digest = hashlib.sha256((place.outside / "canary.md").read_bytes()).hexdigest()

    def configured(path: str) -> Any:
        settings = job.workspace.settings.model_copy(
            update={"answers": job.workspace.settings.answers.model_copy(update={"folder": path, "reports": path})}
        )
        workspace = config.Workspace(job.workspace.vault, job.workspace.state, settings)
        with mock.patch.object(job, "workspace", workspace):
            steps.forget(job, "b.md", dry_run=True)
            return steps.ask(job, "где лежит насос канарейки под ступенью?")

    return {
        "read": lambda path: vault.read(root, path, 1 << 20),
        "append": lambda path: vault.append(root, path, "чужое\n", digest),
        "write": lambda path: vault.write_new(root, path, path, "чужое\n"),
        "list": lambda path: list(vault.files_below(root, path)),
        "known": lambda path: imports.read_known(job.workspace, path),
        "named": lambda path: ingest.ingest(job.workspace, job.ledger, only=[path]),
        "scenes": lambda path: steps.show_scenes(job, path),
        "explain": lambda path: steps.explain(job, path),
        "metadata": lambda path: steps.show_metadata(job, path),
        "reply": lambda path: steps.reply(job, path),
        "forget": lambda path: steps.forget(job, path, dry_run=True),
        "undo": lambda path: steps.forget(job, path, undo=True),
        "configured": configured,
    }


def escapes(place: Place, attempts: int, seed: int, names: tuple[str, ...] = ()) -> list[str]:
    """Try hostile paths at every door in turn; what came in or went out, and what ended as no error of ours."""
    rng, found = random.Random(seed), []
    every = doors(place)
    chosen = names or tuple(every)
    for number in range(attempts):
        name, path = chosen[number % len(chosen)], hostile(rng, place)
        said = ""
        try:
            said = repr(every[name](path))
        except VaultllmError as error:
            said = str(error)
        except Exception as error:
            found.append(f"{name} {path!r}: {error!r}")
        told = said.encode("utf-8", "backslashreplace").decode("unicode_escape", "replace") if "\\x" in said else said
        if CANARY in told or CANARY.encode() in told.encode("latin-1", "replace"):
            found.append(f"{name} {path!r} gave {said[:80]!r}")
    found += [f"{path} was touched" for path in place.around().items() ^ place.before.items()]
    return found + [f"{path} says what the canary says" for path in place.holds()]


def test_no_hostile_path_leads_out_at_any_door(place: Place) -> None:
    assert escapes(place, 1_300, 0) == []


def test_a_vault_that_follows_links_and_dots_is_found_out(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: with the gate open canaries are read and touched."""
    monkeypatch.setattr(vault, "_open_beneath", lambda root, path, mode: os.open(os.path.join(root, path.replace("\0", "")), mode))
    found = escapes(place, 200, 0, ("read", "append", "known"))
    assert any(" gave " in one for one in found)
    assert any("was touched" in one for one in found)


def test_links_titles_and_embeds_in_notes_lead_nowhere(place: Place) -> None:
    """What a note says of other files is text: neither ingest, answers nor metadata open what it names."""
    for number, target in enumerate(("../canary", "../outside/canary.md", str(place.outside / "canary.md"), "led/canary", "led.md")):
        text = f'---\ntitle: "{target}"\ncssclass: ../../canary\nprivate: no\naliases: ["[[{target}]]"]\n---\n'
        text += f"# {target}\n\nГде лежит насос канарейки под ступенью? [[{target}]] ![[{target}#^b]] ![картинка]({target})\n"
        (place.vault / f"{number}.md").write_text(text, encoding="utf-8")
    canvas = {"nodes": [{"id": "1", "type": "file", "file": "../canary.md", "x": 0, "y": 0, "width": 1, "height": 1}], "edges": []}
    (place.vault / "c.canvas").write_text(json.dumps(canvas), encoding="utf-8")
    ingest.ingest(place.job.workspace, place.job.ledger)
    for number in range(5):
        found = steps.show_metadata(place.job, f"{number}.md")["resolved"]
        assert not [path for path in found.values() if path and ("canary" in path or "outside" in path)]
    steps.ask(place.job, "где лежит насос канарейки под ступенью?", note="0.md")
    steps.reply(place.job, "a/n.md")
    assert place.around() == place.before
    assert place.holds() == []


def test_a_note_with_a_second_name_outside_is_read_and_never_written_to(place: Place) -> None:
    """A hard link: what is appended here would stand there, too, in a backup for instance."""
    (place.outside / "twin.md").write_text(NOTE, encoding="utf-8")
    os.link(place.outside / "twin.md", place.vault / "twin.md")
    with pytest.raises(VaultError, match="hard link") as caught:
        steps.reply(place.job, "twin.md")
    assert caught.value.code == "E-OUTSIDE"
    assert (place.outside / "twin.md").read_text(encoding="utf-8") == NOTE


def test_forgetting_looks_into_our_own_folders_and_not_where_links_in_them_lead(place: Place) -> None:
    """Also not into a pipe, in which it would wait for ever."""
    own = place.vault / place.job.workspace.settings.answers.folder
    own.mkdir(parents=True)
    (own / "led").symlink_to(place.outside)
    (own / "led.md").symlink_to(place.outside / "canary.md")
    os.mkfifo(own / "pipe.md")
    (place.vault / "k.md").write_text(f"# Канарейка\n\n{CANARY}\n", encoding="utf-8")
    (own / "ours.md").write_text(f"> {CANARY}\n", encoding="utf-8")
    ingest.ingest(place.job.workspace, place.job.ledger)
    assert steps.forget(place.job, "k.md", dry_run=True)["notes_that_quote_it"] == [
        f"{place.job.workspace.settings.answers.folder}/ours.md"
    ]


def test_setting_up_writes_through_no_link(tmp_path: Path) -> None:
    (tmp_path / "vault").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "vault" / ".vaultllm").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(VaultError, match="symbolic link"):
        config.init_workspace(tmp_path / "vault", str(tmp_path / "state"))
    assert list((tmp_path / "elsewhere").iterdir()) == []


# -- odd things in the vault's folder


def test_odd_names_are_notes_like_others_or_told_of(place: Place) -> None:
    names = ("CON.md", "aux.txt.md", "a:b.md", "конец. .md", " x.md", "q?.md", "😀.md", "ж" * 126 + ".md", "Й.md", "B.md", "b.MD")
    for name in (*names, unicodedata.normalize("NFD", "Й.md")):
        (place.vault / name).write_text(f"# {len(name)}\n\nвода {name!r}\n", encoding="utf-8")
    (place.vault / os.fsdecode(b"bad\xff.md")).write_text("x", encoding="utf-8")
    found = ingest.ingest(place.job.workspace, place.job.ledger)
    assert found.parsed == len(names) + 1
    assert {path for path, problem in place.job.ledger.problems() if problem.code == "E-NAME"} == {"bad\\xff.md"}
    files = {ingest.scene_file(place.job.workspace, path) for path in place.job.ledger.notes_with_scenes()}
    assert len(files) == len(place.job.ledger.notes_with_scenes()) == len(names) + 3
    assert all(file.is_file() for file in files)


@pytest.mark.parametrize("instead", ["folder", "pipe", "link", "gone", "device"])
def test_a_note_that_becomes_something_else_between_the_look_and_the_reading_hurts_only_itself(place: Place, instead: str) -> None:
    note = place.vault / "b.md"
    note.write_text("# Колодец\n\nдругая вода\n", encoding="utf-8")
    (place.vault / "c.md").write_text("# Сад\n\nвода в саду\n", encoding="utf-8")

    def swap(root: Path, path: str, most: int) -> None:
        if path == "b.md" and note.is_file():
            note.unlink()
            if instead == "folder":
                note.mkdir()
            elif instead == "pipe":
                os.mkfifo(note)
            elif instead != "gone":
                note.symlink_to(place.outside / "canary.md" if instead == "link" else "/dev/zero")

    with histories.before(vault, "read", swap, 1):  # the first is a/n.md, which was written a moment ago
        found = ingest.ingest(place.job.workspace, place.job.ledger)
    assert found.parsed == 1
    assert len(list(place.job.ledger.scenes("b.md"))) == 1  # what was known of it stays until a scan says that it is gone
    assert {problem.code for path, problem in place.job.ledger.problems() if path == "b.md"} <= {"E-READ", "E-OUTSIDE"}
    assert place.holds() == []


# -- many notes that vanish at once


@pytest.fixture
def many(tmp_path: Path) -> Iterator[tuple[Path, config.Workspace, Ledger]]:
    root = tmp_path / "v"
    for number in range(120):
        file = root / f"f{number % 4}" / f"{number}.md"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"# {number}\n\nвода {number}\n", encoding="utf-8")
    workspace = config.init_workspace(root, str(tmp_path / "state"))
    with histories.reading_here(), contextlib.closing(Ledger(workspace.ledger)) as ledger:
        ingest.ingest(workspace, ledger)
        yield root, workspace, ledger


def _emptied(root: Path) -> None:
    for file in root.rglob("*.md"):
        file.unlink()


def _a_folder_lost(root: Path) -> None:
    (root / "f0").rename(root.parent / "f0")


def _another_disk(root: Path) -> None:
    (root / ".vaultllm").rename(root.parent / "kept")
    root.rename(root.parent / "renamed")
    root.mkdir()
    (root.parent / "kept").rename(root / ".vaultllm")
    (root / "other.md").write_text("# другое\n", encoding="utf-8")


@pytest.mark.parametrize("harm", [_emptied, _a_folder_lost, _another_disk])
def test_many_notes_that_vanish_are_kept_until_it_is_confirmed(many: Any, harm: Callable[[Path], None]) -> None:
    root, workspace, ledger = many
    harm(root)
    for only in (None, [f"f{number % 4}/{number}.md" for number in range(120)]):  # also when events name them
        with pytest.raises(VaultError, match="--confirm") as caught:
            ingest.ingest(workspace, ledger, only=only)
        assert caught.value.code == "E-VANISHED"
        assert ledger.count("notes") == 120
    left = len(list(root.rglob("*.md")))
    assert ingest.ingest(workspace, ledger, confirm=True).seen == left
    assert ledger.count("notes") == left


def test_a_vault_that_is_gone_is_an_error_and_nothing_is_removed(many: Any) -> None:
    root, workspace, ledger = many
    root.rename(root.parent / "renamed")
    with pytest.raises(VaultError, match="mounted"):
        ingest.ingest(workspace, ledger)
    with pytest.raises(VaultError, match="does not exist"):
        config.open_workspace(str(root), str(workspace.state))
    assert ledger.count("notes") == 120


def test_few_notes_that_vanish_are_removed_without_a_question(many: Any) -> None:
    root, workspace, ledger = many
    for number in range(20):
        (root / f"f{number % 4}" / f"{number}.md").unlink()
    assert ingest.ingest(workspace, ledger).removed == 20
    assert ledger.count("notes") == 100


def test_without_the_guard_a_disk_that_is_not_mounted_empties_the_memory(many: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the guard, and nothing else, is what keeps them."""
    root, workspace, ledger = many
    monkeypatch.setattr(ingest, "_refuse_vanished", lambda *_: None)
    _emptied(root)
    ingest.ingest(workspace, ledger)
    assert ledger.count("notes") == 0


def test_the_number_of_attempts_is_what_is_told(place: Place) -> None:
    """Each door is tried, and more than the same few paths."""
    rng = random.Random(0)
    paths = {hostile(rng, place) for _ in range(1_300)}
    assert len(paths) > 900
    assert len(doors(place)) == 13
    assert {path.startswith("/") for path in paths} == {True, False}
