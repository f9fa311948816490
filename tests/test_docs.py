"""The documentation says what the code does: codes, readers, settings, tables, files, packages."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from datetime import date
from pathlib import Path
from typing import get_args
from urllib.parse import unquote

import pytest
import typer
from pydantic import BaseModel

from vaultllm import chats, cli, recall, spans
from vaultllm.config import Settings
from vaultllm.errors import UsageError
from vaultllm.ledger import Ledger
from vaultllm.memory import bags, expand, query, resonance
from vaultllm.schema import Kind, Trust

REPO = Path(__file__).resolve().parents[1]
DOCS = [REPO / "README.md", REPO / "CHANGELOG.md", *sorted((REPO / "docs").glob("*.md")), *sorted((REPO / "pipelines").glob("*.md"))]
CODE = re.compile(r"\b[EW]-[A-Z]+(?:-[A-Z]+)*\b(?!-)")  # not the `W-FM-…` of a comment


def read(name: str) -> str:
    return (REPO / name).read_text(encoding="utf-8")


def codes_in_source() -> set[str]:
    return {code for path in (REPO / "vaultllm").rglob("*.py") for code in CODE.findall(path.read_text(encoding="utf-8"))}


def rows(text: str) -> list[list[str]]:
    """The cells of the table rows that begin with a name in backticks (a bar within a name is escaped)."""
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.split("\n") if line.startswith("| `")]


def test_every_problem_code_has_one_row_and_no_other_code_is_named() -> None:
    text = read("docs/reading.md")
    described = [cells[0].strip("`") for cells in rows(text) if CODE.fullmatch(cells[0].strip("`"))]
    assert sorted(described) == sorted(codes_in_source())
    assert set(CODE.findall(text)) == codes_in_source()


def test_codes_named_in_other_documents_exist() -> None:
    known = codes_in_source()
    for path in DOCS:
        assert set(CODE.findall(path.read_text(encoding="utf-8"))) <= known, path.name


def test_a_row_of_a_problem_says_what_it_means_what_to_do_and_whether_it_is_learnt() -> None:
    text = read("docs/reading.md").partition("## Problems")[2].partition("### Errors of commands")[0]
    described = [cells for cells in rows(text) if CODE.fullmatch(cells[0].strip("`"))]
    assert len(described) > 40
    for cells in described:
        assert len(cells) == 4, cells
        assert all(cells), cells


def test_codes_of_messages_left_out_are_the_ones_that_are_counted() -> None:
    (sentence,) = re.findall(r"Those left out are counted by ([^;]*);", read("docs/reading.md"))
    assert set(CODE.findall(sentence)) == chats.LEFT_OUT


def test_every_chat_reader_has_its_row_in_the_order_in_which_they_are_asked() -> None:
    text = read("docs/reading.md").partition("## Chats")[2].partition("\n### ")[0]
    assert [cells[0] for cells in rows(text)] == [f"`{reader.name}`" for reader in chats.READERS]


def test_settings_that_documents_name_exist() -> None:
    sections = {name: field.annotation for name, field in Settings.model_fields.items()}
    for path in DOCS:
        named = re.findall(rf"`({'|'.join(sections)})\.(?!(?:log|lock|pid|py|jsonl?|yaml)`)([a-z_]+)`", path.read_text(encoding="utf-8"))
        for section, key in named:
            annotation = sections[section]
            assert isinstance(annotation, type)
            assert issubclass(annotation, BaseModel)
            assert key in {field.alias or name for name, field in annotation.model_fields.items()}, f"{path.name}: {section}.{key}"


def test_commands_and_options_that_documents_name_exist() -> None:
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    everywhere = {"--vault", "--state", "--json", "--version", "--help"}
    for path in DOCS:
        text = path.read_text(encoding="utf-8")
        code = "\n".join([*re.findall(r"```.*?```", text, re.DOTALL), *re.findall(r"`([^`\n]+)`", text)])
        for name, rest in re.findall(r"^(?:\$ )?vaultllm ([a-z]+)([^\n#|;]*)", code, re.MULTILINE):
            assert name in commands, f"{path.name}: vaultllm {name}"
            subcommands = getattr(commands[name], "commands", {})
            word = rest.split()[0] if rest.split() else ""
            assert not subcommands or word in subcommands, f"{path.name}: vaultllm {name} {word}"
            command = subcommands.get(word, commands[name])
            options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
            for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest):
                assert option in options | everywhere, f"{path.name}: vaultllm {name} {option}"


def test_limits_in_the_document_are_those_of_the_settings() -> None:
    settings, text = Settings(vault_id="0" * 12), re.sub(r"\s+", " ", read("docs/reading.md"))
    assert f"`scan.max_bytes` ({settings.scan.max_bytes // 2**20} MiB)" in text
    assert f"`scan.max_seconds` ({settings.scan.max_seconds:g} s of CPU" in text
    assert f"`scan.max_memory_mb` ({settings.scan.max_memory_mb} MB" in text
    assert f"`scenes.min_chars` ({settings.scenes.min_chars} characters)" in text
    assert f"`scenes.max_chars` ({settings.scenes.max_chars:,})" in text
    assert settings.scenes.gap_minutes == 6 * 60
    assert "`scenes.gap_minutes` (six hours)" in text


def test_every_module_stands_in_the_readmes_tree_and_nothing_else_does() -> None:
    named: dict[str, list[str]] = {"": []}
    folder = ""
    for line in read("README.md").partition("```\nvaultllm/\n")[2].partition("vault_example/")[0].rstrip("\n").split("\n"):
        names = re.findall(r"(?:^|\s{2,})([a-z_]+(?:\.py|/))(?=\s)", line)
        if not line.startswith("    "):
            folder = ""
        assert names, line
        named.setdefault(folder, []).extend(names)
        if len(names) == 1 and names[0].endswith("/"):
            folder = names[0]
    assert set(named) == {"", "memory/"}  # the modules of the others are told by their package
    for folder, names in named.items():
        here = REPO / "vaultllm" / folder
        modules = {path.name for path in here.glob("*.py")} - {"__init__.py"}
        assert set(names) == modules | {f"{path.parent.name}/" for path in here.glob("*/__init__.py")}, folder
        assert len(names) == len(set(names)), folder


def test_the_first_command_stands_near_the_readmes_top() -> None:
    lines = read("README.md").split("\n")
    assert next(number for number, line in enumerate(lines, 1) if line.startswith("make demo")) < 35


def test_every_table_and_column_of_the_ledger_is_described(tmp_path: Path) -> None:
    text = read("docs/on-disk-format.md").partition("### The ledger's tables")[2].partition("\n## ")[0]
    with Ledger(tmp_path / "ledger.db") as ledger:
        (version,) = ledger.db.execute("PRAGMA user_version").fetchone()
        assert text.startswith(f" (schema {version})\n")
        made = [name for (name,) in ledger.db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        tables = [name for name in made if not name.startswith("sqlite_")]
        columns = {name: {row[1] for row in ledger.db.execute(f"PRAGMA table_info({name})")} for name in tables}
    described = rows(text.partition("| key of `meta`")[0])
    named = {name for cells in described for name in re.findall(r"`([a-z_]+)`", cells[0] + cells[1])}
    assert set(tables) <= named
    for cells in described:
        for name in re.findall(r"`([a-z]+)`", cells[0]):
            told = set(re.findall(r"`([a-z0-9_]+)`", re.sub(r"\([^()]*\)", "", cells[2])))
            assert told == columns[name], name


def test_every_key_of_the_ledgers_meta_table_is_described() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in sorted((REPO / "vaultllm").rglob("*.py")))
    keys = set(re.findall(r'(?:ledger|self)\.set\("([a-z_]+)"', source))
    named = set(re.findall(r"(?:ledger|self)\.set\(([A-Z_]+),", source)) | {"_DONE"}
    assert len(named) > 4
    for names, values in re.findall(r'^([A-Z_]+(?:, [A-Z_]+)*) = ("[a-z_]+"(?:, "[a-z_]+")*)', source, re.MULTILINE):
        keys |= {value.strip('"') for name, value in zip(names.split(", "), values.split(", "), strict=False) if name in named}
    text = read("docs/on-disk-format.md").partition("| key of `meta`")[2].partition("\n\n")[0]
    assert {name for cells in rows(text) for name in quoted(cells[0])} == keys


TODAY = date(2026, 6, 17)


def section(heading: str) -> str:
    """A section of docs/memory.md."""
    return read("docs/memory.md").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def test_every_filter_has_its_row_and_each_example_of_one_is_read() -> None:
    text = section("Filters")
    described = rows(text)
    assert {quoted(cells[0])[0].partition(":")[0] for cells in described} == set(query.NAMES)
    values = {quoted(cells[0])[0].partition(":")[0]: quoted(cells[1]) for cells in described}
    assert (values["kind"], values["trust"], values["lang"]) == (list(get_args(Kind)), list(get_args(Trust)), list(query.LANGUAGES))
    examples = [one for one in quoted(text) if re.match(r"-?[a-z]{3,}:(?!:)", one)]
    assert len(examples) > 12
    for example in examples:
        asked = query.parse(example, TODAY)
        assert asked.filters, example
        assert not asked.text, example
    (dates,) = re.findall(r"^- Times may be written ([^.]*(?:\.\d[^.]*)*)\.", text, re.MULTILINE)
    assert len(quoted(dates)) == 7
    for said in quoted(dates):
        assert query.parse(f"after:{said}", TODAY).filters.conditions[0].day, said


def test_the_example_of_a_wrong_filter_is_what_is_said() -> None:
    (said,) = re.findall(r"^vaultllm: (E-FILTER (\S+:\S+): .*)$", section("Filters"), re.MULTILINE)
    with pytest.raises(UsageError) as raised:
        query.parse(said[1], TODAY)
    assert str(raised.value) == said[0]


def test_phrases_and_words_are_read_as_described() -> None:
    text = section("Filters").partition("**Exact words.**")[2]
    examples = quoted(text)
    assert [query.parse(one, TODAY).phrases for one in examples[:2]] == [("точная фраза",), ("C++",)]
    assert [query.parse(one, TODAY).without for one in examples[2:4]] == [("слово",), ("два слова",)]
    for word in ("-5", "-v", "--flag"):
        assert word in examples
        assert query.parse(word, TODAY) == query.plain(word, TODAY)


def test_each_example_of_a_time_in_words_is_found() -> None:
    text = section("Times in a question")
    examples = quoted(text.partition(": what lies in")[0].removeprefix("\n"))
    assert len(examples) == 8
    for example in examples:
        found = spans.find(example, TODAY)
        assert found is not None, example
        assert found.words == example
    assert query.parse('"15 июня"', TODAY).when is None


def test_each_example_of_another_spelling_is_found(tmp_path: Path) -> None:
    examples = re.findall(r"`([^`]+)`[^|,]*? finds ([^|,\n]+?)(?: \||,)", section("Words that the vault spells otherwise"))
    assert len(examples) == 8
    with Ledger(tmp_path / "ledger.db") as ledger:
        held = [word for _, found in examples for word in found.split(" and ")]
        with ledger.transaction():
            ledger.index.add([(slot, bags.bag(word, "")) for slot, word in enumerate(held, 1)])
        for asked, found in examples:
            others = {variant.word for _, variants in expand.expand(asked, ledger.index) for variant in variants}
            assert set(found.split(" and ")) <= others, asked


def test_numbers_of_the_memory_are_those_of_the_code() -> None:
    text = read("docs/memory.md")
    assert [quoted(cells[0])[0] for cells in rows(section("Resonance"))] == [f"memory.{edge}" for edge in resonance.EDGES]
    assert f"Below {recall.EXACT_BELOW:,} passages" in text
    assert f"at most {resonance._RARE} passages" in text
    assert sorted(resonance._NEAR) == [1, 2, 3]
    assert "the three before it and the three after it" in text
    assert expand.MOST_WORDS == 3
    assert "At most three words of a question" in text
    assert expand.RARE == 2
    assert "in no passage, or in one or two," in text


def test_every_dependency_has_its_reason() -> None:
    text = read("docs/design.md").partition("## Dependencies")[2].partition("\n## ")[0]
    project = tomllib.loads(read("pyproject.toml"))["project"]
    for requirement in project["dependencies"]:
        name = re.split(r"[<>=!~\[ ]", requirement)[0]
        assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text), name


def test_the_examples_of_output_are_what_the_commands_print(tmp_path: Path) -> None:
    vault = tmp_path / "vault"
    shutil.copytree(REPO / "vault_example", vault)
    (vault / "Книги.base").write_text("views:\n- type: table\n", encoding="utf-8")
    environment = os.environ | {"VAULTLLM_STATE": str(tmp_path / "state"), "PYTHONPATH": str(REPO)}

    def shown(*arguments: str) -> str:
        command = [sys.executable, "-m", "vaultllm.cli", *arguments]
        out = subprocess.run(command, cwd=vault, env=environment, check=True, capture_output=True, encoding="utf-8").stdout
        return "\n".join(line.rstrip() for line in out.rstrip().split("\n"))

    shown("init", ".")
    examples = re.findall(r"```text\n\$ vaultllm ([^\n]*)\n(.*?)\n```", read("docs/reading.md"), re.DOTALL)
    assert len(examples) == 4
    for command, output in examples:
        assert shown(*shlex.split(command)) == output


def anchor(heading: str) -> str:
    """A heading as GitHub links to it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^()\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        name, _, part = unquote(target).partition("#")
        found = path.parent / name if name else path
        assert found.exists(), target
        if part:
            headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", found.read_text(encoding="utf-8"), flags=re.DOTALL), re.MULTILINE)
            assert part in [anchor(heading) for heading in headings], target
