"""The Obsidian plugin: put into a vault and taken away without touching what is not ours; its pure parts, by node; its lint."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.test_cli import Shell
from vaultllm import __version__, config, plugin, terminal
from vaultllm.errors import DataError, UsageError, VaultError
from vaultllm.schema import Progress

REPO = Path(__file__).resolve().parents[1]
SHIPPED = REPO / "vaultllm" / "obsidian"
LINT = Path(__file__).parent / "obsidian"
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not here")


@pytest.fixture
def vault(tmp_path: Path) -> Path:
    made = tmp_path / "Мой vault"
    (made / ".obsidian").mkdir(parents=True)
    (made / ".obsidian" / "app.json").write_text("{}", encoding="utf-8")
    (made / "Note.md").write_text("a note\n", encoding="utf-8")
    return made


def everything(vault: Path) -> dict[str, bytes]:
    return {path.relative_to(vault).as_posix(): path.read_bytes() for path in vault.rglob("*") if path.is_file()}


HOME = ".obsidian/plugins/vaultllm"


# -- put there, taken away


def test_it_writes_its_files_and_nothing_else_and_takes_away_just_these(vault):
    before = everything(vault)
    wanted = plugin.plan(vault)
    assert everything(vault) == before  # a plan writes nothing
    done = plugin.install(wanted)
    after = everything(vault)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {f"{HOME}/{name}" for name in (*plugin.FILES, plugin.RECORD)}
    assert {line.removeprefix("wrote ") for line in done} == set(after) - set(before)
    for name in plugin.FILES:
        assert after[f"{HOME}/{name}"] == (SHIPPED / name).read_bytes()
    settings = vault / HOME / "data.json"
    settings.write_text('{"mine": 1}', encoding="utf-8")
    assert plugin.install(wanted) == ["nothing to write: this version is there already"]
    removed, kept = plugin.uninstall(vault)
    assert set(removed) == set(after) - set(before)
    assert kept == []
    assert everything(vault) == {**before, f"{HOME}/data.json": b'{"mine": 1}'}
    settings.unlink()
    assert plugin.uninstall(vault) == ([], [])


def test_the_folder_goes_when_it_is_empty(vault):
    plugin.install(plugin.plan(vault))
    plugin.uninstall(vault)
    assert not (vault / HOME).exists()
    assert (vault / ".obsidian" / "app.json").exists()


def test_the_files_have_the_mode_of_notes_and_leave_no_temporary_ones(vault):
    plugin.install(plugin.plan(vault))
    assert {stat.S_IMODE(path.stat().st_mode) for path in (vault / HOME).iterdir()} == {0o644 & ~config.UMASK}
    assert not [path for path in vault.rglob("*") if path.name.endswith(".tmp")]


def test_the_record_says_what_was_written_and_how_this_vaultllm_is_started(vault):
    plugin.install(plugin.plan(vault))
    record = json.loads((vault / HOME / plugin.RECORD).read_text(encoding="utf-8"))
    assert record["version"] == __version__
    said = subprocess.run([*record["program"], "--version"], capture_output=True, text=True, check=True, cwd=REPO)
    assert said.stdout.startswith(f"vaultllm {__version__}")
    assert record["files"] == {name: hashlib.sha256((SHIPPED / name).read_bytes()).hexdigest() for name in plugin.FILES}


def test_a_file_that_was_changed_is_neither_replaced_nor_removed(vault):
    plugin.install(plugin.plan(vault))
    mine = vault / HOME / "styles.css"
    mine.write_text("/* mine */", encoding="utf-8")
    main = vault / HOME / "main.js"
    main.unlink()
    with pytest.raises(DataError, match="changed since") as raised:
        plugin.install(plugin.plan(vault))
    assert raised.value.path == f"{HOME}/styles.css"
    assert not main.exists()  # nothing was written before that was found
    removed, kept = plugin.uninstall(vault)
    assert kept == [f"{HOME}/styles.css"]
    assert mine.read_text(encoding="utf-8") == "/* mine */"
    assert len(removed) == len(plugin.FILES) - 1
    assert plugin.told(removed, kept)[-1] == f"kept {HOME}/styles.css: it was changed since"


def test_files_of_an_older_version_are_replaced_and_removed(vault, monkeypatch):
    real = plugin._shipped
    monkeypatch.setattr(plugin, "_shipped", lambda name: b"// older\n" + real(name))
    plugin.install(plugin.plan(vault))
    monkeypatch.setattr(plugin, "_shipped", real)
    assert len(plugin.uninstall(vault)[0]) == len(plugin.FILES) + 1
    monkeypatch.setattr(plugin, "_shipped", lambda name: b"// older\n" + real(name))
    plugin.install(plugin.plan(vault))
    monkeypatch.setattr(plugin, "_shipped", real)
    assert f"wrote {HOME}/main.js" in plugin.install(plugin.plan(vault))
    assert (vault / HOME / "main.js").read_bytes() == (SHIPPED / "main.js").read_bytes()


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"files": 3}', '{"files": {"main.js": 5}}', "\udcff"])
def test_a_damaged_record_makes_nothing_ours_that_is_not(vault, record):
    plugin.install(plugin.plan(vault))
    (vault / HOME / plugin.RECORD).write_bytes(record.encode("utf-8", "surrogateescape"))
    (vault / HOME / "main.js").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError):
        plugin.install(plugin.plan(vault))
    assert plugin.uninstall(vault)[1] == [f"{HOME}/main.js"]


@pytest.mark.parametrize("where", [".obsidian", ".obsidian/plugins", HOME])
@pytest.mark.parametrize("inside", [False, True])
def test_a_folder_that_is_a_link_is_refused(vault, tmp_path, where, inside):
    target = (vault if inside else tmp_path) / "elsewhere"
    target.mkdir()
    link = vault / where
    if link.exists():
        shutil.rmtree(link)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target, target_is_directory=True)
    with pytest.raises(VaultError):
        plugin.install(plugin.plan(vault))
    assert not list(target.rglob("*"))


@pytest.mark.parametrize("name", ["main.js", plugin.RECORD])
def test_a_file_that_is_a_link_or_a_pipe_is_refused(vault, tmp_path, name):
    other = tmp_path / "other"
    other.write_text("theirs", encoding="utf-8")
    place = vault / HOME / name
    place.parent.mkdir(parents=True)
    place.symlink_to(other)
    with pytest.raises(VaultError):
        plugin.install(plugin.plan(vault))
    assert place.is_symlink()
    place.unlink()
    os.mkfifo(place)
    with pytest.raises(VaultError):
        plugin.install(plugin.plan(vault))
    assert other.read_text(encoding="utf-8") == "theirs"


def test_a_folder_that_cannot_be_written_is_told_with_its_path(vault):
    (vault / ".obsidian" / "plugins").write_text("a file", encoding="utf-8")
    with pytest.raises(VaultError) as raised:
        plugin.install(plugin.plan(vault))
    assert raised.value.path is not None
    assert raised.value.path.startswith(HOME)


def test_another_settings_folder_is_found_named_or_asked_for(vault):
    assert plugin.plan(vault).folder == HOME
    other = vault / ".work"
    other.mkdir()
    (other / "app.json").write_text("{}", encoding="utf-8")
    assert plugin.plan(vault).folder == HOME  # the usual one is there too
    shutil.rmtree(vault / ".obsidian")
    assert plugin.plan(vault).folder == ".work/plugins/vaultllm"
    shutil.copytree(other, vault / ".home")
    with pytest.raises(UsageError, match=r"\.home, \.work"):
        plugin.plan(vault)
    assert plugin.plan(vault, ".home").folder == ".home/plugins/vaultllm"
    for wrong in ("home", "..", ".", "./x", "../.obsidian", ".a\\b", "/tmp"):
        with pytest.raises(UsageError):
            plugin.plan(vault, wrong)


def test_a_vault_that_obsidian_has_never_opened_gets_the_usual_folder(tmp_path):
    (tmp_path / ".git").mkdir()
    plugin.install(plugin.plan(tmp_path))
    assert (tmp_path / HOME / "main.js").is_file()


# -- the commands


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    made = Shell(tmp_path_factory.mktemp("plugin"))
    made.here("init", str(made.vault))
    made.here("ingest")
    return made


def test_nothing_is_written_unless_somebody_agrees(shell):
    out, _ = shell.here("plugin", "install", "--dry-run")
    assert f"{shell.vault.resolve()}/{HOME}/main.js" in out.replace("\n", "")
    assert "until you switch it on" in out
    _, err = shell.here("plugin", "install", code=2)
    assert "--dry-run" in err
    assert not (shell.vault / HOME).exists()
    out, _ = shell.here("plugin", "install", "--yes")
    assert "Community plugins" in out
    assert not (shell.vault / ".obsidian" / "community-plugins.json").exists()
    found = json.loads(shell.here("--json", "plugin", "uninstall")[0])
    assert found["kept"] == []
    assert f"{HOME}/main.js" in found["removed"]
    assert "nothing was installed" in shell.here("plugin", "uninstall")[0]


def test_what_the_plugin_asks_the_command_line_is_answered(shell):
    known = json.loads(shell.here("--json", "search", "-k", "1", "насос OR river")[0])["hits"][0]
    found = json.loads(shell.here("--json", "related", "-k", "3", "--", known["path"])[0])
    assert found["path"] == known["path"]
    assert all(hit["path"] != known["path"] for hit in found["hits"])
    assert shell.here("related", known["path"])[0]
    assert "E-DATA" in shell.here("related", "none.md", code=3)[1]
    answer = json.loads(shell.here("--json", "ask", "что?")[0])["note"]
    assert json.loads(shell.here("--json", "rate", "--", answer, "good")[0])["rating"] == "good"
    assert "good" in shell.here("rate", answer)[0]
    assert "Did you mean 'good'" in shell.here("rate", answer, "goood", code=2)[1]
    told = json.loads(shell.here("--json", "config")[0])
    assert told["settings"]["answers"]["folder"] == "vaultllm/Answers"
    assert told["settings"]["train"]["from"] == "adapter"
    assert Path(told["file"]).is_file()
    assert "train.min_new" in shell.here("config")[0]


def test_progress_is_told_in_lines_of_json_while_the_result_stays_one_document(shell, monkeypatch, capsys):
    out, err = shell.here("ingest", "--progress", "--json")
    assert json.loads(out)["notes"]["seen"]
    assert all(json.loads(line)["phase"] for line in err.splitlines())
    monkeypatch.setattr(terminal, "GLOBALS", terminal.Globals(json=True, progress=True))
    with terminal.progress_shown() as told:
        for number in range(100):  # a line for each phase, then twice a second
            told(Progress("LoRA", number / 100, loss=3.0, seconds_left=60.0))
        told(Progress("measuring", 0.0))
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (lines[0]["phase"], lines[0]["loss"], lines[0]["seconds_left"], lines[-1]["phase"]) == ("LoRA", 3.0, 60.0, "measuring")
    assert len(lines) < 10


# -- what is shipped


def test_the_manifest_is_one_that_obsidian_and_its_reviewers_take():
    manifest = json.loads((SHIPPED / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["id"], manifest["name"], manifest["version"]) == ("vaultllm", "Vaultllm", __version__)
    assert len(manifest["description"]) <= 250
    assert manifest["description"].endswith(".")
    versions = json.loads((SHIPPED / "versions.json").read_text(encoding="utf-8"))
    assert versions[__version__] == manifest["minAppVersion"]
    assert {path.name for path in SHIPPED.iterdir()} == set(plugin.FILES)


def test_the_readme_says_what_is_touched_and_names_every_command():
    text, source = ((SHIPPED / name).read_text(encoding="utf-8") for name in ("README.md", "main.js"))
    for said in ("Network", "outside the vault", "token", "api.json", "No accounts", "telemetry", "licence"):
        assert said in text
    names = re.findall(r'addCommand\(\{ id: "[a-z-]+", name: "([^"]+)"', source)
    assert len(names) == 13
    table = text.partition("## Commands")[2]
    for name in names:
        assert name in table or name.split(" as ")[-1] in table, name


def test_nothing_of_a_note_can_become_html_and_nothing_leaves_the_computer():
    source = (SHIPPED / "main.js").read_text(encoding="utf-8")
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "eval(",
        "new Function",
        "fetch(",
        "XMLHttpRequest",
        "WebSocket",
        "hotkeys",
    ):
        assert word not in source, word
    assert not re.search(r"shell\s*:|execSync|\.obsidian\b", source)
    assert set(re.findall(r"https?://[^`\"'\s/:$]+", source)) == {"http://127.0.0.1"}


# -- its pure parts

STUB = """
const Module = require("module");
const load = Module._load;
Module._load = (name, ...rest) =>
  name === "obsidian" ? new Proxy({}, { get: (_, what) => (what === "Platform" ? { isDesktop: true } : class {}) }) : load(name, ...rest);
const plugin = require(process.argv[2]);
const calls = JSON.parse(require("fs").readFileSync(0, "utf8"));
const answer = ([name, ...given]) => {
  try {
    const result = plugin[name](...given);
    return { result: result instanceof Error ? { message: result.message, code: result.code } : result };
  } catch (error) { return { error: error.message, code: error.code }; }
};
process.stdout.write(JSON.stringify(calls.map(answer)));
"""


def in_node(tmp_path: Path, calls: list[list[Any]]) -> list[dict[str, Any]]:
    """What the functions that `main.js` exports give for these arguments, all in one process."""
    (tmp_path / "stub.js").write_text(STUB, encoding="utf-8")
    command = [str(NODE), str(tmp_path / "stub.js"), str(SHIPPED / "main.js")]
    done = subprocess.run(command, input=json.dumps(calls), capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def results(tmp_path: Path, name: str, *given: list[Any]) -> list[Any]:
    return [one["result"] for one in in_node(tmp_path, [[name, *arguments] for arguments in given])]


NASTY = '-Где "стоит" бочка\'s $(touch pwned) `id`; & | > %PATH%'


@needs_node
def test_node_takes_it():
    subprocess.run([str(NODE), "--check", str(SHIPPED / "main.js")], check=True)


@needs_node
def test_a_selection_is_quoted_below_the_question(tmp_path):
    found = results(
        tmp_path, "withSelection", ["  Why?\n", "one\n\ntwo\n"], ["", "only this"], ["Why?", "  "], ["", ""], ["Q", "> [!ask] x\n```"]
    )
    assert found == ["Why?\n\n> one\n> \n> two", "only this", "Why?", "", "Q\n\n> > [!ask] x\n> ```"]


@needs_node
def test_the_command_line_gets_every_text_as_one_argument_or_as_its_input(tmp_path, shell):
    place = str(tmp_path / NASTY.replace("/", ""))
    given = [
        ["search", {"query": f"{NASTY}\nsecond line", "k": 3}, place, "/state"],
        ["ask", {"question": f"{NASTY}\n\n> line", "note": "-x.md"}, place],
        ["ask", {"question": "q"}, place],
        ["reply", {"path": "-x.md"}, place],
        ["forget", {"what": "-x.md", "dry_run": True}, place],
        ["forget", {"what": "x.md", "yes": True}, place],
        ["rate", {"answer": "-a.md", "rating": "bad"}, place],
        ["related", {"path": "--state", "k": 2}, place],
    ]
    found = results(tmp_path, "commandLine", *given)
    assert found[0] == {
        "args": ["--vault", place, "--state", "/state", "--json", "--progress", "search", "-k", "3", "-"],
        "input": f"{NASTY} second line",
    }
    rest = [one["args"][len(["--vault", place, "--json", "--progress"]) :] for one in found[1:]]
    assert rest == [
        ["ask", "--note=-x.md", "-"],
        ["ask", "-"],
        ["reply", "--", "-x.md"],
        ["forget", "--dry-run", "--", "-x.md"],
        ["forget", "--yes", "--", "x.md"],
        ["rate", "--", "-a.md", "bad"],
        ["related", "-k", "2", "--", "--state"],
    ]
    assert found[1]["input"] == f"{NASTY}\n\n> line"
    for words in rest:  # and the program understands them: what it complains of is not its usage
        if words[0] in ("reply", "forget", "rate", "related"):
            _, err = shell.here("--json", "--progress", *words, code=3)
            assert not [line for line in err.splitlines() if "E-USAGE" in line], words


@needs_node
def test_what_the_command_line_complains_of_is_told_with_its_code(tmp_path):
    found = results(
        tmp_path,
        "complaint",
        ['{"phase": "x"}\nvaultllm: E-DATA a b.md:3: this note is not known; run: vaultllm ingest\n', 3],
        ["Traceback\n  File\nKeyError: 1\n", 1],
        ["", 137],
        ["noise\nvaultllm: stopped; the same command goes on from here\nmore noise\n", 130],
    )
    assert found == [
        {"code": "E-DATA", "message": "a b.md:3: this note is not known; run: vaultllm ingest"},
        {"code": "", "message": "KeyError: 1"},
        {"code": "", "message": "it ended with code 137"},
        {"code": "", "message": "stopped; the same command goes on from here"},
    ]


@needs_node
def test_only_this_computer_is_asked(tmp_path):
    about = {"host": "127.0.0.1", "port": 8471, "pid": 7}
    key = "k" * 43
    found = results(
        tmp_path,
        "placeOf",
        [about, f"# mine\n{key}\nother-key-of-a-client\n"],
        [{**about, "host": "0.0.0.0"}, key],
        *(
            [{**about, **wrong}, key]
            for wrong in ({"host": "10.0.0.1"}, {"host": "x@evil"}, {"port": "80@evil"}, {"port": 0}, {"port": 1e9})
        ),
        [about, "\n# nothing\n"],
    )
    assert found[0] == {"pid": 7, "url": "http://127.0.0.1:8471/api/vaultllm", "key": key}
    assert found[1]["url"].startswith("http://127.0.0.1:")
    assert found[2:] == [None] * 6


@needs_node
def test_a_link_starts_what_it_may_and_nothing_else(tmp_path):
    good = [
        {"action": "vaultllm/ask", "question": "Где?"},
        {"action": "ask", "question": "Где?"},
        {"action": "vaultllm", "do": "reply", "path": "a.md"},
        {"action": "search", "query": "x" * 9_000},
    ]
    found = results(tmp_path, "wanted", *([one] for one in good))
    assert found[0] == found[1] == {"action": "ask", "text": "Где?", "path": ""}
    assert found[2] == {"action": "reply", "text": "", "path": "a.md"}
    assert len(found[3]["text"]) == 4_000
    bad = [{"action": name} for name in ("forget", "rollback", "retrain", "vaultllm/forget", "rate-good", "", "vaultllm", "__proto__")]
    for one in in_node(tmp_path, [["wanted", data] for data in bad]):
        assert "A link may start" in one["error"]


@needs_node
def test_the_stretch_with_the_words_is_shown_and_they_are_marked(tmp_path):
    text = "Начало. " * 80 + "Насос включается ниже 32 %, насосы молчат. " + "Конец. " * 80
    (found, plain, empty, bengali) = results(
        tmp_path, "marked", [text, "насоса?"], ["just a text", "nothing"], ["", "x"], ["নদীর জল বেড়েছে", "নদী"]
    )
    shown = "".join(piece for piece, _ in found)
    assert [piece for piece, is_word in found if is_word] == ["Насос", "насосы"]
    assert shown.startswith("…")
    assert shown.endswith("…")
    assert len(shown) <= 322
    assert "".join(piece for piece, _ in plain) == "just a text"
    assert not [piece for piece, is_word in plain if is_word]
    assert empty == []
    assert bengali[0] == ["নদীর", True]
    assert [piece for piece, is_word in results(tmp_path, "marked", ["the heat of the oven is over", "of the oven"])[0] if is_word] == [
        "oven"
    ]


@needs_node
def test_a_question_gets_a_line_of_its_own(tmp_path):
    ask = "> [!ask] "
    found = results(tmp_path, "questionAt", [4, "", "", ""], [4, "", "text", "more"], [4, "a line", "", ""], [0, "", "", "x"])
    place = {"line": 4, "ch": 0}
    assert found[0] == {"text": ask, "from": place, "to": place, "cursor": {"line": 4, "ch": len(ask)}}
    assert (found[1]["text"], found[1]["cursor"]) == (f"\n{ask}\n", {"line": 5, "ch": len(ask)})
    assert (found[2]["text"], found[2]["from"]) == (f"\n\n{ask}", {"line": 4, "ch": 6})
    assert found[2]["cursor"] == {"line": 6, "ch": len(ask)}
    assert found[3]["text"] == f"{ask}\n"


@needs_node
def test_the_program_is_looked_for_where_installers_put_it(tmp_path):
    env = {"PATH": "/usr/bin:/bin", "APPDATA": "C:\\A"}
    unix, windows, bare = results(
        tmp_path, "candidates", [env, "/home/я", False], [{"Path": "C:\\bin;D:\\x"}, "C:\\Я", True], [{}, "/h", False]
    )
    assert unix[:2] == ["/usr/bin/vaultllm", "/bin/vaultllm"]
    assert {"/home/я/.local/bin/vaultllm", "/opt/homebrew/bin/vaultllm", "/usr/local/bin/vaultllm"} <= set(unix)
    assert windows[0] == "C:\\bin\\vaultllm.exe"
    assert all(path.endswith("\\vaultllm.exe") for path in windows)
    assert "/h/.local/bin/vaultllm" in bare


@needs_node
def test_what_is_told_of_a_vault_is_in_plain_words(tmp_path, shell):
    status = json.loads(shell.here("--json", "status")[0])
    alive = {"pid": 5, "alive": True, "silent": 1.0, "doing": "waiting", "last": {"at": "T", "read": 2, "removed": 0}}
    busy = {**status, "daemon": alive, "behind": {"new": 2, "changed": 1, "gone": 0}}
    trains = {**status, "training": {"state": "running", "phase": "LoRA", "done": 0.4, "loss": 3.214, "seconds_left": 300}}
    bars = results(tmp_path, "barText", [status, False], [status, True], [busy, True], [trains, True])
    assert bars == ["Vaultllm: asleep", "Vaultllm: ready", "Vaultllm: 3 behind", "Vaultllm: training 40 %"]
    none, told, training = results(tmp_path, "statusLines", [status, False], [busy, True], [trains, True])
    assert none[0].startswith("Nobody watches")
    assert "process 5" in told[0]
    assert "2 read" in told[0]
    assert "Waiting to be read: 2 new, 1 changed." in told
    assert "A training runs: LoRA 40 %, loss 3.21, 5 min left." in training
    plan = {"removed": {"notes": 1, "scenes": 6, "datasets": 0}, "runs": [{"id": "r1", "answered": True}], "bases": [],
            "notes_that_quote_it": ["A.md"], "said_elsewhere": ["B.md"]}  # fmt: skip
    (lines,) = results(tmp_path, "forgetLines", [plan])
    assert lines[0] == "1 note, 6 scenes"
    assert "Training r1" in lines[1]
    assert len(lines) == 4
    waits, nothing, done = results(
        tmp_path,
        "trainedText",
        [{"status": "on battery", "reason": "the battery feeds it", "run": "r", "step": 3}],
        [{"status": "nothing new", "new_scenes": 3, "min_new": 20}],
        [{"status": "done", "run": "r2", "promoted": False, "reason": "not better", "metrics": {"verdict": ""}}],
    )
    assert "waits (on battery)" in waits
    assert "3 new scenes" in nothing
    assert done == "Training r2 does not answer: not better"
    shown = dict(results(tmp_path, "shownSettings", [json.loads(shell.here("--json", "config")[0])])[0])
    assert shown["Answers go to"] == "vaultllm/Answers"
    assert "schedule install" in shown["Schedule"]


# -- its transport, in node, with the real program


APP = """
const Module = require("module");
const nothing = new Proxy(function () {}, { get: (_, name) => (name === "then" ? undefined : nothing), apply: () => nothing });
class FileSystemAdapter { getBasePath() { return vault; } async read() { throw new Error("no record"); } }
class Plugin { constructor(app, manifest) { Object.assign(this, { app, manifest }); return this; } }
for (const name of ["addCommand", "addSettingTab", "registerView", "addRibbonIcon", "registerObsidianProtocolHandler", "addStatusBarItem",
  "registerDomEvent", "registerInterval", "registerEvent"]) Plugin.prototype[name] = () => nothing;
const requestUrl = async ({ url, method, headers, body, contentType }) => {
  const answer = await fetch(url, { method, body, headers: { ...headers, ...(contentType ? { "Content-Type": contentType } : {}) } })
    .catch((error) => { throw new Error(`net::ERR_CONNECTION_${error.cause.code}`); });
  return { status: answer.status, text: await answer.text() };
};
class Base {}
const fixed = { FileSystemAdapter, Plugin, requestUrl, Platform: { isDesktop: true }, setIcon: () => {}, setTooltip: () => {} };
const load = Module._load;
Module._load = (name, ...rest) => (name === "obsidian" ? new Proxy(fixed, { get: (of, what) => of[what] || Base }) : load(name, ...rest));
Object.assign(globalThis, { window: globalThis, document: { visibilityState: "hidden" } });
const [main, vault, program] = process.argv.slice(2);
const app = { vault: { adapter: new FileSystemAdapter() }, workspace: { on: () => {}, onLayoutReady: () => {} },
  loadLocalStorage: () => ({ program }), saveLocalStorage: (_, value) => { stored = value; } };
let stored;
const VaultllmPlugin = require(main);
const plugin = new VaultllmPlugin(app, {});
"""


def in_an_app(tmp_path: Path, shell: Shell, body: str) -> dict[str, Any]:
    """What a piece of JavaScript returns that has `plugin`, loaded over the shell's vault."""
    script = tmp_path / "app.js"
    script.write_text(
        f"{APP}\n(async () => {{ await plugin.onload(); {body} }})()"
        ".then((told) => process.stdout.write(JSON.stringify(told), () => process.exit(0)),"
        " (error) => { console.error(error); process.exit(1); });",
        encoding="utf-8",
    )
    program = tmp_path / "vaultllm"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m vaultllm.cli "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    command = [str(NODE), str(script), str(SHIPPED / "main.js"), str(shell.vault), str(program)]
    environment = shell.environment | {"PYTHONPATH": str(REPO), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@needs_node
def test_a_watcher_is_started_spoken_to_and_ended_with_obsidian(shell, tmp_path):
    told = in_an_app(
        tmp_path,
        shell,
        """
        const alone = await plugin.look();
        plugin.keep({ watch: true });
        const watching = plugin.link.watch();
        let place = null;
        for (let left = 300; left && !place; left--) {
          await new Promise((done) => setTimeout(done, 200));
          place = await plugin.link.place();
        }
        const served = await plugin.look();
        const second = await plugin.link.watch();  // one is there: nothing is started
        const children = plugin.link.children.size;
        plugin.onunload();
        await watching;
        return { alone: alone.daemon, known: stored.known, state: alone.state, url: place.url, alive: served.daemon.alive,
          training: served.training, listens: plugin.listens, children, left: plugin.link.children.size, after: await plugin.link.place() };
        """,
    )
    assert told["alone"] is None
    assert told["known"] == told["state"] == str(shell.state.resolve())
    assert told["url"].startswith("http://127.0.0.1:")
    assert (told["alive"], told["listens"], told["children"], told["left"]) == (True, True, 1, 0)
    assert told["training"] == {"state": "idle"}  # which the server alone tells
    assert told["after"] is None
    assert json.loads(shell.here("--json", "status")[0])["daemon"] is None


@needs_node
def test_a_place_that_nobody_listens_at_is_passed_over_and_errors_are_told(shell, tmp_path):
    (shell.state / "token").write_text("k" * 43 + "\n", encoding="utf-8")
    (shell.state / "token").chmod(0o600)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        stale = {"host": "127.0.0.1", "port": free.getsockname()[1], "pid": os.getpid()}  # a process lives, but another one
    (shell.state / "api.json").write_text(json.dumps(stale), encoding="utf-8")
    told = in_an_app(
        tmp_path,
        shell,
        """
        const wrong = async (work) => work.then(() => null, (error) => [error.code, error.message]);
        const found = await plugin.link.call("search", { query: "что?\\nещё", k: 2 });
        const unknown = await wrong(plugin.link.call("reply", { path: "-none.md" }));
        plugin.keep({ program: "/nowhere/vaultllm" });
        return { query: found.query, unknown, nowhere: await wrong(plugin.link.call("status")) };
        """,
    )
    (shell.state / "api.json").unlink()
    assert told["query"] == "что? ещё"
    assert told["unknown"][0].startswith("E-")
    assert "-none.md" in told["unknown"][1]
    assert told["nowhere"] == ["", "/nowhere/vaultllm was not found. Set its path under Settings, Vaultllm."]


# -- its lint


def test_the_linter_of_obsidians_reviewers_finds_no_error():
    runner = LINT / "node_modules" / ".bin" / "eslint"
    if NODE is None or not runner.exists():
        pytest.skip("eslint is not installed: make lint-plugin")
    command = [str(runner), "-c", str(LINT / "eslint.config.mjs"), "--format", "json", "main.js", "manifest.json"]
    done = subprocess.run(command, cwd=SHIPPED, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    assert {Path(one["filePath"]).name for one in found} == {"main.js", "manifest.json"}
    rules = [(message["severity"], message["ruleId"]) for one in found for message in one["messages"]]
    assert [rule for severity, rule in rules if severity == 2] == []
    assert {rule for _, rule in rules} <= {"obsidianmd/settings-tab/prefer-setting-definitions"}  # of 1.13; this display() works in all
