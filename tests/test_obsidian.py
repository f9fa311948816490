"""The snippets of docs/obsidian.md, run as the plugins run them, with the worst titles and selections."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vaultllm import render

REPO = Path(__file__).resolve().parents[1]
PAGE = (REPO / "docs" / "obsidian.md").read_text(encoding="utf-8")
SCRIPT = REPO / "docs" / "snippets" / "vaultllm_quickadd.js"
TITLE = '-Где "стоит" бочка\'s $(touch pwned) `touch pwned`; touch pwned & %PATH% {{!title}}'
SELECTION = TITLE.lstrip("-") + "\nвторая строка > pwned | tee pwned\n\\ * ? ~ #"
BASH = shutil.which("bash")
NODE = shutil.which("node")
needs_bash = pytest.mark.skipif(BASH is None, reason="bash is not here")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not here")


class Desk:
    """A vault that was ingested, and what a program started from it sees."""

    def __init__(self, root: Path) -> None:
        self.vault = root / "Мой vault $(touch pwned)"
        self.chat = f"Чаты/{TITLE}.md"
        self.note = "дача/бочка 'x'.md"
        (self.vault / "Чаты").mkdir(parents=True)
        (self.vault / "дача").mkdir()
        (self.vault / self.note).write_text("# Бочка\n\nБочка на двести литров стоит у колодца за теплицей.\n", encoding="utf-8")
        self.talk = "**User**: Сколько литров в бочке?\n\n**Assistant**: Двести.\n\n**User**: Где стоит бочка?\n"
        (self.vault / self.chat).write_text(self.talk, encoding="utf-8")
        self.bin = root / "bin"
        self.bin.mkdir()
        program = self.bin / "vaultllm"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m vaultllm.cli "$@"\n', encoding="utf-8")
        program.chmod(0o755)
        self.env = {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "HOME": str(root),
            "PYTHONPATH": str(REPO),
            "VAULTLLM_STATE": str(root / "state"),
            "HF_HUB_OFFLINE": "1",
        }
        self.run(["vaultllm", "init", "."])
        self.run(["vaultllm", "ingest"])

    def run(self, command: list[str], stdin: str = "", **env: str) -> str:
        done = subprocess.run(command, cwd=self.vault, env={**self.env, **env}, input=stdin, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def answers(self) -> set[Path]:
        return set((self.vault / "vaultllm" / "Answers").glob("*.md"))

    def unharmed(self) -> bool:
        return not list(self.vault.parent.rglob("pwned"))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return Desk(tmp_path_factory.mktemp("desk"))


def question_of(path: Path) -> str:
    """The question that an answer's properties name, whitespace made one."""
    found = re.search(r"^vaultllm_question: (.*)$", path.read_text(encoding="utf-8"), re.M)
    assert found is not None
    text = json.loads(found[1]) if found[1].startswith('"') else found[1].strip("'").replace("''", "'")
    return " ".join(text.split())


def as_a_property(text: str) -> str:
    """What is asked, whitespace made one, and nothing in it that would live in a property (`test_inert.py`)."""
    return " ".join(str(json.loads(render.property_text(text))).split())


# -- Shell commands


def blocks(kind: str) -> dict[str, tuple[str, str]]:
    """Title -> (command line, its standard input) of the page's blocks of one plugin."""
    found = re.findall(rf'^```(?:sh|js) title="{kind}: ([^"]+)"(?: stdin="([^"]*)")?\n(.*?)^```$', PAGE, re.S | re.M)
    return {title: (body.strip(), stdin) for title, stdin, body in found}


def escaped(value: str) -> str:
    """What Shell commands makes of a variable for Bash: a backslash before all but ASCII letters, digits, `_`; newlines as `\\n`."""
    with_backslash = re.sub(r"[^A-Za-z0-9_]", lambda found: "\\" + found[0], value)
    return with_backslash.replace("\\\n", "\\\\n")


def values(desk: Desk) -> dict[str, str]:
    return {
        "{{title}}": TITLE,
        "{{selection}}": SELECTION,
        "{{_question}}": SELECTION,
        "{{file_path:relative}}": desk.chat,
        "{{file_path:absolute}}": str(desk.vault / desk.chat),
    }


def shell_command(desk: Desk, title: str) -> str:
    line, stdin = blocks("shell-commands")[title]
    for name, value in values(desk).items():
        line = line.replace(name, escaped(value)) if name in line else line
        stdin = stdin.replace(name, value) if name in stdin else stdin
    assert BASH is not None
    return desk.run([BASH, "-c", line], stdin)


def test_the_page_has_the_commands_it_promises():
    assert set(blocks("shell-commands")) == {
        "ask about the selection",
        "ask about this note",
        "ask what the title asks",
        "reply here",
        "search",
    }
    for line, _ in blocks("shell-commands").values():
        assert "{{!" not in line
        assert not re.search(r"[\"']\{\{", line)  # a quoted variable would keep the plugin's backslashes


@needs_bash
@pytest.mark.parametrize("title", ["ask about the selection", "ask about this note", "ask what the title asks"])
def test_asking_by_shell_commands_asks_exactly_what_was_meant(desk, title):
    before = desk.answers()
    shell_command(desk, title)
    (answer,) = desk.answers() - before
    meant = TITLE if title.endswith("title asks") else SELECTION
    assert question_of(answer) == as_a_property(meant)
    assert desk.unharmed()


@needs_bash
def test_a_title_with_a_line_break_cannot_start_a_second_command(desk):
    before = desk.answers()
    line = blocks("shell-commands")["ask what the title asks"][0].replace("{{title}}", escaped("Где бочка?\ntouch pwned"))
    desk.run([str(BASH), "-c", line])
    (answer,) = desk.answers() - before
    assert question_of(answer) == "Где бочка?\\ntouch pwned"
    assert desk.unharmed()


@needs_bash
def test_searching_by_shell_commands(desk):
    assert "бочка 'x'.md" in shell_command(desk, "search")
    assert desk.unharmed()


@needs_bash
def test_replying_by_shell_commands_appends_to_the_note(desk):
    (desk.vault / desk.chat).write_text(desk.talk, encoding="utf-8")
    shell_command(desk, "reply here")
    after = (desk.vault / desk.chat).read_text(encoding="utf-8")
    assert after.startswith(desk.talk)
    assert "колодца" in after[len(desk.talk) :]
    assert desk.unharmed()


# -- Templater


@needs_bash
def test_templaters_function_gets_the_question_from_the_environment(desk):
    line, _ = blocks("templater")["vaultllm_ask"]
    result = json.loads(desk.run(["/bin/sh", "-c", line], question=SELECTION))
    assert result["question"] == SELECTION.strip()
    assert (desk.vault / result["note"]).is_file()
    assert desk.unharmed()


@needs_node
def test_templaters_template_leaves_a_link(desk, tmp_path):
    body = re.fullmatch(r"<%\*\n(.*)%>", blocks("templater")["template"][0], re.S)
    assert body is not None
    harness = f"""
        const asked = [];
        const tp = {{
          file: {{ selection: () => process.argv[2] }},
          system: {{ prompt: async () => "typed" }},
          user: {{
            vaultllm_ask: async (given) => {{
              asked.push(given.question);
              return JSON.stringify({{ note: "vaultllm/Answers/a b.md" }});
            }},
          }},
        }};
        (async () => {{ let tR = ""; {body[1]}; console.log(JSON.stringify([asked, tR])); }})();
    """
    (tmp_path / "t.js").write_text(harness, encoding="utf-8")
    selected, typed = (json.loads(desk.run([str(NODE), str(tmp_path / "t.js"), text])) for text in (SELECTION, ""))
    assert selected == [[SELECTION], SELECTION + " [[vaultllm/Answers/a b|answer]]"]
    assert typed == [["typed"], " [[vaultllm/Answers/a b|answer]]"]


# -- QuickAdd

HARNESS = """
const given = JSON.parse(process.argv[2]);
const script = require(given.script);
const log = { notices: [], opened: [], saved: 0, prompts: 0 };
class Notice { constructor(text) { log.notices.push(text); } hide() {} }
const view = { save: async () => { log.saved += 1; }, editor: { getSelection: () => given.selection } };
const params = {
  app: {
    vault: { adapter: { getBasePath: () => given.vault } },
    workspace: {
      getActiveViewOfType: () => view,
      getActiveFile: () => ({ path: given.file }),
      openLinkText: async (...all) => log.opened.push(all),
    },
  },
  quickAddApi: { inputPrompt: async () => { log.prompts += 1; return given.typed; } },
  variables: {},
  obsidian: { Notice, Platform: { isDesktopApp: given.desktop !== false }, MarkdownView: class {} },
};
script.entry(params, given.settings).then((result) => console.log(JSON.stringify({ ...log, result, variables: params.variables })));
"""


def quickadd(desk: Desk, tmp_path: Path, what: str, selection: str = SELECTION, **more: Any) -> dict[str, Any]:
    (tmp_path / "harness.js").write_text(HARNESS, encoding="utf-8")
    given = {
        "script": str(SCRIPT),
        "vault": str(desk.vault),
        "file": desk.chat,
        "selection": selection,
        "typed": "Где стоит бочка?",
        "settings": {"What it does": what, "Path of vaultllm": str(desk.bin / "vaultllm")},
    }
    result: dict[str, Any] = json.loads(desk.run([str(NODE), str(tmp_path / "harness.js"), json.dumps({**given, **more})]))
    return result


@needs_node
@pytest.mark.parametrize("what", ["ask", "ask about this note"])
def test_quickadd_asks_about_the_selection(desk, tmp_path, what):
    done = quickadd(desk, tmp_path, what)
    assert done["notices"] == ["vaultllm is thinking…"]
    assert done["variables"]["vaultllm"]["question"] == SELECTION.strip()
    assert done["opened"] == [[done["result"], "", True]]
    assert question_of(desk.vault / done["result"]) == as_a_property(SELECTION)
    assert done["prompts"] == 0
    assert done["saved"] == 1
    assert desk.unharmed()


@needs_node
def test_quickadd_asks_for_the_question_when_nothing_is_selected(desk, tmp_path):
    done = quickadd(desk, tmp_path, "ask", selection=" ")
    assert done["prompts"] == 1
    assert any("колодца" in source["quote"] for source in done["variables"]["vaultllm"]["sources"])
    assert quickadd(desk, tmp_path, "ask", selection="", typed=None)["result"] is None


@needs_node
def test_quickadd_replies_at_the_end_of_the_note(desk, tmp_path):
    (desk.vault / desk.chat).write_text(desk.talk, encoding="utf-8")
    done = quickadd(desk, tmp_path, "reply at the end of this note")
    assert done["result"] == desk.chat
    assert done["opened"] == []
    after = (desk.vault / desk.chat).read_text(encoding="utf-8")
    assert after.startswith(desk.talk)
    assert "колодца" in after[len(desk.talk) :]


@needs_node
def test_quickadd_says_what_is_wrong(desk, tmp_path):
    (desk.vault / desk.note).touch()
    error = quickadd(desk, tmp_path, "reply at the end of this note", file=desk.note)
    assert error["result"] is None
    assert error["notices"][1].startswith("vaultllm: E-DATA")
    missing = quickadd(desk, tmp_path, "ask", settings={"What it does": "ask", "Path of vaultllm": "/nowhere/vaultllm"})
    assert "was not found" in missing["notices"][1]
    phone = quickadd(desk, tmp_path, "ask", desktop=False)
    assert "not on a phone" in phone["notices"][0]


@needs_node
def test_quickadd_finds_a_command_that_the_desktops_path_does_not_name(desk, tmp_path):
    local = Path(desk.env["HOME"]) / ".local" / "bin"
    local.mkdir(parents=True, exist_ok=True)
    shutil.copy2(desk.bin / "vaultllm", local / "vaultllm")
    bare = f"{Path(str(NODE)).parent}{os.pathsep}/usr/bin"
    (tmp_path / "harness.js").write_text(HARNESS, encoding="utf-8")
    given = {"script": str(SCRIPT), "vault": str(desk.vault), "file": desk.chat, "selection": "Где бочка?", "settings": {}}
    done = json.loads(desk.run([str(NODE), str(tmp_path / "harness.js"), json.dumps(given)], PATH=bare))
    assert done["variables"]["vaultllm"]["question"] == "Где бочка?"
