"""The plugin as in Obsidian: `main.js` in a real Chromium, the real daemon behind it, each command clicked as a user would.

VAULTLLM_PICTURES=1 writes the pictures of docs/ anew.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import browser, served
from tests.desk import Desk
from vaultllm import config
from vaultllm.ledger import Ledger

pytestmark = pytest.mark.skipif(browser.found() is None, reason="no Chromium here")
REPO = Path(__file__).resolve().parents[1]
PLUGIN = REPO / "vaultllm" / "obsidian"
COMMANDS = {
    "ask-selection": "Ask about the selection",
    "ask-note": "Ask about this note",
    "reply": "Reply here",
    "insert-question": "Insert a question",
    "search": "Search memory",
    "related": "Show related scenes",
    "ingest": "Ingest now",
    "retrain": "Retrain now",
    "status": "Show status",
    "rate-good": "Rate this answer as good",
    "rate-bad": "Rate this answer as bad",
    "forget": "Forget this note",
    "rollback": "Roll back to the training before",
}
HOSTILE = "<img src=x onerror=hacked=1>"
TRAP = (
    f"# {HOSTILE}\n\nThe crane swings over the harbour. <script>hacked=1</script> {HOSTILE} ![x](https://evil.example/p.png)\n"
    '[go](javascript:hacked=1) <a href="javascript:hacked=1">harbour</a> <iframe src="https://evil.example/f"></iframe> '
    "<svg onload=hacked=1>\n"
)
ANSWERS = "vaultllm/Answers/"


class Daemon:
    """`vaultllm watch --serve` of one vault, a process of its own."""

    def __init__(self, workspace: config.Workspace, environment: dict[str, str]) -> None:
        self.workspace, self.environment = workspace, environment
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> str:
        """Until it serves; its address."""
        command = [sys.executable, "-m", "vaultllm.cli", "--vault", str(self.workspace.vault), "--json", "watch", "--serve"]
        self.process = subprocess.Popen(command, cwd=self.workspace.state, env=self.environment, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = json.loads(line)
            if event.get("event") == "serving":
                return str(event["url"])
        raise AssertionError(f"it ended: {self.process.wait()}")

    def stop(self) -> None:
        """As systemd does it."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=60)
        assert self.process.returncode == 0


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("plugin")
    home = folder / "home"
    workspace = served.workspace(folder, tokens=12)
    settings = workspace.vault / config.CONFIG
    settings.write_text(
        settings.read_text(encoding="utf-8").replace("[train]\n", "[train]\nmin_new = 1\nminutes = 1.0\nepochs = 9999\n"), encoding="utf-8"
    )
    program = home / ".local" / "bin" / "vaultllm"  # where installers put it
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m vaultllm.cli "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    kept = ("PATH", "LANG", "HF_HUB_OFFLINE", "OMP_NUM_THREADS")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment |= {"HOME": str(home), "PYTHONPATH": str(REPO), "VAULTLLM_STATE": str(workspace.state), "SHELL": "/bin/sh"}
    running = Daemon(workspace, environment)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        is_ours = True
        try:
            taken.bind(("127.0.0.1", 8471))
            taken.listen()
        except OSError:  # somebody has it, who may go any moment
            is_ours = False
        try:
            assert not (running.start().endswith(":8471") and is_ours)
            yield running
        finally:
            running.stop()


@pytest.fixture(scope="module")
def window(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("desk")
    with Desk(folder / "profile", daemon.workspace.vault, daemon.environment, folder / "data.json") as opened:
        opened.start(PLUGIN)
        opened.until("document.querySelector('.status-bar').innerText.includes('Vaultllm:')")
        yield opened


@pytest.fixture
def desk(window: Desk) -> Iterator[Desk]:
    """The app with nothing over it, a note open; what the page complains of fails the test."""
    window.js("desk.modals.slice().forEach((one) => one.close())")
    window.js("document.querySelectorAll('.notice').forEach((one) => one.click())")
    window.js("desk.app._real.workspace.iterateAllLeaves((leaf) => leaf.detach())")
    window.js("desk.notices.length = 0")
    window.open_note("Bread.md")
    yield window
    assert window.wrong() == []


def picture(desk: Desk, name: str, width: int = 960, height: int = 600) -> None:
    """Into docs/, when asked for."""
    if os.environ.get("VAULTLLM_PICTURES"):
        path = REPO / "docs" / f"plugin-{name}.png"
        desk.picture(path, width, height, {str(Path(desk.environment["HOME"])): "/home/me", str(desk.vault.parent): "/home/me"})
        assert path.stat().st_size < 150_000


def answer_of(desk: Desk, question: str) -> tuple[str, str]:
    """(path, text) of the answer that is open in front once there is one."""
    path = desk.until(f"desk.active().startsWith({json.dumps(ANSWERS)}) && desk.active()")
    text = (desk.vault / path).read_text(encoding="utf-8")
    assert question in text
    assert desk.js("desk.app.workspace.activeEditor.editor.getValue()") == text
    return path, text


def select(desk: Desk, words: str) -> None:
    """As with the mouse."""
    desk.js(f"""(() => {{
        const {{ editor }} = desk.app.workspace.activeEditor;
        const at = editor.getValue().indexOf({json.dumps(words)});
        editor.setSelection(editor.offsetToPos(at), editor.offsetToPos(at + {len(words)}));
        editor.focus();
    }})()""")


def pane_of(desk: Desk) -> str:
    """What the pane says of the open note, asked anew."""
    desk.js("desk.app.workspace.detachLeavesOfType('vaultllm-related')")
    desk.command(COMMANDS["related"])
    desk.until("document.querySelector('.split-right .vaultllm-hit')")
    return desk.text(".split-right .view-content")


def found(desk: Desk, query: str) -> list[str]:
    """What the search command shows for this, best first."""
    desk.command(COMMANDS["search"])
    desk.until("document.activeElement.matches('.prompt-input') && desk.modals.length === 1")
    before = len(desk.asked) + len(desk.spawned)
    desk.type(query)
    desk.until(f"desk.modals.at(-1)._for === {json.dumps(query)}")
    assert len(desk.asked) + len(desk.spawned) > before
    shown: list[str] = desk.js("[...document.querySelectorAll('.suggestion-item .vaultllm-place')].map((one) => one.innerText)")
    return shown


# -- what is there


def test_every_command_is_registered_under_its_name_with_icon_bar_pane_and_settings(desk: Desk) -> None:
    names = desk.js("Object.fromEntries(Object.values(desk.commands).map((one) => [one.id, one.shown]))")
    assert names == {id_: f"Vaultllm: {name}" for id_, name in COMMANDS.items()}
    assert set(desk.offered()) == set(COMMANDS) - {"rate-good", "rate-bad"}  # Bread.md is no answer
    assert desk.js("document.querySelectorAll('.ribbon .clickable-icon').length") == 2
    assert "Vaultllm: ready" in desk.text(".status-bar")
    assert desk.js("desk.tabs.length") == 1
    assert "vaultllm" in desk.js("Object.keys(desk.uris)")


def test_the_ribbon_asks_and_the_status_bar_says_how_it_stands(desk: Desk) -> None:
    desk.press(".ribbon [aria-label='Ask your vault']")
    desk.until("document.querySelector('.modal-title')?.innerText === 'Ask your vault'")
    desk.key("Escape")
    desk.until("!document.querySelector('.modal')")
    desk.press(".status-bar-item")
    desk.until("document.querySelector('.modal')?.innerText.includes('Every note is read.')")


# -- asking


def test_a_question_about_the_selection_is_answered_in_a_note_that_opens(desk: Desk) -> None:
    select(desk, "fourteen hours of cold proof")
    desk.command(COMMANDS["ask-selection"])
    desk.until("document.querySelector('.modal')?.innerText.includes('fourteen hours of cold proof')")
    desk.type("How long does rye bread proof?")
    picture(desk, "ask", 960, 480)
    desk.press(".modal button", "Ask")
    _, text = answer_of(desk, "How long does rye bread proof?")
    assert "[[Bread" in text
    assert "fourteen hours" in text
    assert desk.js("[...document.querySelectorAll('.split-root .tab')].length") == 2  # in a tab of its own
    assert ("POST", "/ask") in desk.asked
    assert desk.vault.joinpath("Bread.md").read_text(encoding="utf-8") == served.NOTES["Bread.md"]
    assert desk.text(".notice") == ""


def test_a_question_about_a_note_is_asked_with_enter(desk: Desk) -> None:
    desk.open_note("Сад/Полив.md")
    desk.command(COMMANDS["ask-note"])
    desk.until("document.querySelector('.modal-title')?.innerText === 'Ask about Полив'")
    desk.type("Когда включается насос?")
    desk.key("Enter", text="\r")
    _, text = answer_of(desk, "Когда включается насос?")
    assert "тридцати двух процентов" in text


def test_a_reply_is_appended_to_a_chat_and_what_was_typed_is_saved_before(desk: Desk) -> None:
    desk.open_note("Chats/open.md")
    desk.until("desk.app.workspace.activeEditor.editor.getValue().includes('proof')")
    desk.js("desk.app.workspace.activeEditor.editor.focus()")
    line = desk.js("desk.app.workspace.activeEditor.editor.getValue().split('\\n').findIndex((one) => one.includes('How long'))")
    desk.js(f"desk.app.workspace.activeEditor.editor.setCursor({{line: {line}, ch: 999}})")
    desk.type("\n> And how hot is the oven?")
    typed = desk.js("desk.app.workspace.activeEditor.editor.getValue()")
    assert typed != served.NOTES["Chats/open.md"]
    assert (desk.vault / "Chats/open.md").read_text(encoding="utf-8") == served.NOTES["Chats/open.md"]
    desk.command(COMMANDS["reply"])
    desk.until("desk.app.workspace.activeEditor.editor.getValue().includes('[!nexus_agent]')")
    after = (desk.vault / "Chats/open.md").read_bytes()
    assert after.startswith(typed.encode())
    assert b"[!nexus_agent]" in after[len(typed.encode()) :]


def test_a_question_is_inserted_where_the_cursor_is(desk: Desk) -> None:
    desk.open_note("Oven.md")
    desk.until("desk.app.workspace.activeEditor.editor.getValue().includes('clay')")
    desk.js("desk.app.workspace.activeEditor.editor.setCursor({line: 2, ch: 5})")
    desk.command(COMMANDS["insert-question"])
    before = served.NOTES["Oven.md"]
    assert desk.js("desk.app.workspace.activeEditor.editor.getValue()") == before.rstrip("\n") + "\n\n> [!ask] \n"
    desk.js("desk.app.workspace.activeEditor.editor.focus()")
    desk.type("How hot?")
    assert desk.js("desk.app.workspace.activeEditor.editor.getLine(4)") == "> [!ask] How hot?"
    desk.js(f"desk.app.workspace.activeEditor.editor.setValue({json.dumps(before)})")  # nobody is to answer it
    desk.until("desk.app.workspace.activeEditor.save().then(() => true)")


# -- looking


def test_search_shows_stretches_as_one_types_and_opens_the_line(desk: Desk) -> None:
    assert found(desk, "влажность почвы насос")[0].startswith("Сад/Полив.md:")
    assert "насос" in desk.text(".suggestion-item.is-selected mark").lower()
    assert found(desk, "temperature of the pizza oven")[0].startswith("Chats/oven.md:4")
    picture(desk, "search")
    desk.key("Enter")
    desk.until("desk.active() === 'Chats/oven.md'")
    assert desk.until("desk.app.workspace.activeEditor.editor.getCursor().line") == 3
    assert found(desk, "zzqq") == []
    assert "Nothing in your notes speaks of this." in desk.text(".prompt-results")


def test_the_pane_follows_the_open_note_and_leads_to_others(desk: Desk) -> None:
    assert "Oven.md" in pane_of(desk)
    assert "Bread.md" not in desk.js("[...document.querySelectorAll('.split-right .vaultllm-place')].map((one) => one.innerText).join()")
    picture(desk, "related", 960, 480)
    desk.open_note("Oven.md")
    desk.until("document.querySelector('.split-right').innerText.includes('Bread.md')")
    desk.press(".split-right .vaultllm-hit", "Bread.md")
    desk.until("desk.active() === 'Bread.md'")


def test_what_changed_is_read_at_once(desk: Desk) -> None:
    (desk.vault / "Kayak.md").write_text("# Kayak\n\nThe third rib of the kayak leaked; epoxy mended it.\n", encoding="utf-8")
    desk.command(COMMANDS["ingest"])
    assert re.search(r"\d+ notes read, 0 removed, \d+ scenes in the memory\.", desk.notice("scenes in the memory"))
    assert found(desk, "epoxy rib")[0].startswith("Kayak.md:")


def test_the_status_says_who_watches_and_what_waits(desk: Desk) -> None:
    desk.command(COMMANDS["status"])
    desk.until("document.querySelector('.modal')?.innerText.includes('A watcher is alive')")
    said = desk.text(".modal")
    for part in ("How it stands", "The plugin talks to a server that runs.", "Every note is read.", "passages in the memory"):
        assert part in said
    picture(desk, "status", 960, 480)


# -- what is kept, and what goes


def test_a_rating_is_kept_with_the_answer_and_shown_in_its_note(desk: Desk, daemon: Daemon) -> None:
    desk.command(COMMANDS["ask-selection"])
    desk.until("document.querySelector('.modal')")
    desk.type("How many hours of proof does rye bread need?")
    desk.key("Enter", text="\r")
    path, _ = answer_of(desk, "How many hours of proof does rye bread need?")
    assert {"rate-good", "rate-bad"} <= set(desk.offered())
    for rating in ("bad", "good"):
        desk.command(COMMANDS[f"rate-{rating}"])
        desk.notice(f"this answer is {rating}")
        with Ledger(daemon.workspace.ledger) as ledger:
            (record,) = ledger.db.execute("SELECT record FROM answers WHERE path = ?", (path,)).fetchone()
        assert json.loads(record)["rating"] == rating
        assert f"\nvaultllm_rating: {rating}\n" in (desk.vault / path).read_text(encoding="utf-8")


def test_a_note_is_forgotten_only_when_it_is_confirmed_and_stays_itself(desk: Desk) -> None:
    path = desk.vault / "Shed.md"
    path.write_text("# Shed\n\nThe zinnia seeds lie behind the paraffin stove.\n", encoding="utf-8")
    desk.open_note("Shed.md")
    desk.command(COMMANDS["ingest"])
    desk.notice("scenes in the memory")
    assert found(desk, "zinnia paraffin")[0].startswith("Shed.md")
    for button in ("Cancel", "Forget"):
        desk.command(COMMANDS["forget"])
        desk.until("document.querySelector('.modal-title')?.innerText === 'Forget Shed?'")
        assert "The note itself stays as it is" in desk.text(".modal")
        asked = len(desk.asked)
        desk.press(".modal button", button)
        if button == "Cancel":
            assert found(desk, "zinnia paraffin")[0].startswith("Shed.md")
            assert ("POST", "/forget") not in desk.asked[asked:]
    desk.notice("nothing of it is left")
    assert "Shed.md" not in " ".join(found(desk, "zinnia paraffin"))
    assert path.read_text(encoding="utf-8") == "# Shed\n\nThe zinnia seeds lie behind the paraffin stove.\n"


def test_without_a_training_there_is_nothing_to_roll_back(desk: Desk) -> None:
    desk.command(COMMANDS["rollback"])
    desk.until("document.querySelector('.modal-title')?.innerText === 'Roll back?'")
    desk.press(".modal button", "Roll back")
    assert "there is nothing to roll back" in desk.notice("roll back")


def test_a_training_shows_how_far_it_is_and_stops_when_asked(desk: Desk) -> None:
    desk.command(COMMANDS["retrain"])
    far = r"LoRA \d\d %, loss" if os.environ.get("VAULTLLM_PICTURES") else r"loss \d"
    desk.until(f"[...document.querySelectorAll('.notice')].some((one) => /{far}/.test(one.innerText))")
    assert re.search(r"Vaultllm: training \d+ %", desk.text(".status-bar"))
    picture(desk, "retrain", 820, 300)
    desk.press(".notice button", "Stop")
    assert "it was stopped; the next one goes on where it was" in desk.notice("stopped")
    assert ("DELETE", "/retrain") in desk.asked


# -- settings, links


def test_the_settings_find_the_program_and_a_wrong_path_is_told(desk: Desk) -> None:
    desk.press(".gear")
    desk.until("document.querySelector('.mod-settings')?.innerText.includes('Answers go to')")
    desk.press(".mod-settings button", "Detect")
    desk.until("document.querySelector('.mod-settings').innerText.includes('Found: ')")
    program = f"{desk.environment['HOME']}/.local/bin/vaultllm"
    assert desk.js("[document.querySelector('.mod-settings input').value, desk.plugin.kept.program]") == [program, program]
    picture(desk, "settings", 960, 760)
    desk.js("document.querySelector('.mod-settings input').select()")
    desk.type("/nowhere/vaultllm")
    desk.key("Escape")
    desk.press(".gear")
    desk.until("document.querySelector('.mod-settings')?.innerText.includes('/nowhere/vaultllm was not found')")
    desk.js("document.querySelector('.mod-settings input').select(), document.execCommand('delete')")
    assert desk.js("desk.plugin.kept.program") == ""


def test_a_link_starts_only_what_is_harmless_and_asks_before_it_writes(desk: Desk) -> None:
    before = len(desk.asked)
    for uri in ("obsidian://vaultllm?do=forget&path=Bread.md", "obsidian://vaultllm?do=retrain", "obsidian://vaultllm"):
        desk.js(f"desk.follow({json.dumps(uri)})")
        assert "A link may start" in desk.notice("A link may start")
    desk.js("desk.follow('obsidian://vaultllm?do=ask&question=How%20long%3F%20%3Cimg%20src%3Dx%3E')")
    desk.until("document.querySelector('.modal textarea')?.value === 'How long? <img src=x>'")
    desk.key("Escape")
    desk.js("desk.follow('obsidian://vaultllm?do=reply&path=Chats/oven.md')")
    desk.until("document.querySelector('.modal')?.innerText.includes('A link from outside Obsidian asks for this.')")
    desk.press(".modal button", "Cancel")
    assert [one for one in desk.asked[before:] if one[1] != "/status"] == []
    desk.js("desk.follow('obsidian://vaultllm/search?query=clay+oven')")
    desk.until("[...document.querySelectorAll('.suggestion-item')].some((one) => one.innerText.includes('Oven.md'))")


def test_hostile_titles_and_texts_are_text(desk: Desk) -> None:
    name = f"Trap/{HOSTILE}.md"
    (desk.vault / "Trap").mkdir()
    (desk.vault / name).write_text(TRAP, encoding="utf-8")
    desk.command(COMMANDS["ingest"])
    desk.notice("scenes in the memory")
    assert found(desk, "crane harbour")[0].startswith(name)
    assert HOSTILE in desk.text(".suggestion-item")
    desk.key("Enter")
    desk.until(f"desk.active() === {json.dumps(name)}")
    desk.command(COMMANDS["related"])
    desk.command(COMMANDS["ask-note"])
    desk.until(f"document.querySelector('.modal-title')?.innerText === {json.dumps('Ask about ' + HOSTILE)}")
    desk.type(f"What swings? {HOSTILE}")
    desk.key("Enter", text="\r")
    desk.until(f"desk.active().startsWith({json.dumps(ANSWERS)})")
    desk.open_note(name)
    desk.command(COMMANDS["forget"])
    desk.until(f"document.querySelector('.modal-title')?.innerText === {json.dumps(f'Forget {HOSTILE}?')}")
    desk.press(".modal button", "Cancel")
    desk.js("desk.follow('obsidian://vaultllm?do=' + encodeURIComponent('<img src=x onerror=hacked=1>'))")
    desk.notice("A link may start")
    desk.drawn()
    assert desk.js("typeof hacked") == "undefined"
    assert desk.js("document.querySelectorAll('body img, body iframe, body script:not([src]), body a[href^=javascript]').length") == 0


# -- without a daemon


def test_without_a_daemon_the_command_line_gives_the_same(desk: Desk, daemon: Daemon) -> None:
    by_http = found(desk, "hot oven rye")
    pane = pane_of(desk)
    daemon.stop()
    try:
        before, started = len(desk.asked), len(desk.spawned)
        assert found(desk, "hot oven rye") == by_http != []
        assert desk.asked[before:] == []
        (words,) = desk.spawned[started:]
        assert words[0] == f"{desk.environment['HOME']}/.local/bin/vaultllm"
        assert words[-1] == "-"  # the query is no argument: it comes by standard input
        assert pane_of(desk) == pane != ""
        desk.command(COMMANDS["status"])
        desk.until("document.querySelector('.modal')?.innerText.includes('No server runs')")
        desk.key("Escape")
        # The plugin can be the one who starts it, and ends it again.
        desk.press(".gear")
        desk.press(".mod-settings .checkbox-container")
        desk.until("desk.plugin.link.place()")
        assert desk.spawned[-1][-2:] == ["watch", "--serve"]
        desk.press(".mod-settings .checkbox-container")
        desk.until("desk.plugin.link.place().then((found) => found === null)")
    finally:
        daemon.start()


# -- the test itself


def test_a_broken_plugin_is_seen(desk: Desk) -> None:
    act = "new SearchModal(this).open()"
    breaks = [
        ('["POST", "/search", asked]', '["POST", "/serach", asked]', "nothing at this address"),
        (act, "this.app.workspace.openSearch()", "missing: app.workspace.openSearch"),
        (act, "createDiv().innerHTML = '<img src=https://evil.example/x>'", "asked for https://evil.example/x"),
        (act, "Promise.reject(new Error('dropped'))", "dropped"),
    ]
    for was, now, said in breaks:
        assert was in (PLUGIN / "main.js").read_text(encoding="utf-8")
        desk.start(PLUGIN, lambda source, was=was, now=now: source.replace(was, now))  # type: ignore[misc]
        desk.command(COMMANDS["search"])
        if act != was:
            desk.until("desk.modals.length === 1 && document.activeElement.matches('.prompt-input')")
            desk.type("oven")
            desk.notice(said)
        for _ in range(200):
            if act != was or any(said in one for one in desk.wrong()):
                break
            desk.drawn()
        else:
            raise AssertionError((said, desk.wrong()))
        desk.events.clear()
        desk.leaks.clear()
    desk.start(PLUGIN)
