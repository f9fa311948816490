"""Exports: what their goldens don't show: streams, archives, cut and hostile files, trees, the account of messages."""

from __future__ import annotations

import functools
import io
import itertools
import json
import os
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import golden
from vaultllm import chats
from vaultllm.chats import exports, json_items, telegram
from vaultllm.chats.turns import Node, arrange, without
from vaultllm.config import ScanSettings
from vaultllm.schema import Conversation, Note, Problem, Turn, from_dict, to_dict

SCAN = ScanSettings()
FOLDER = golden.FOLDER / "exports"
CASES = [path for path in golden.cases() if path.is_relative_to(FOLDER)]
WHOLE = [
    path for path in CASES if path.suffix == ".json" and "broken" not in path.name and "cut" not in path.name and "lines" not in path.name
]


def note(text: str, path: str = "conversations.json") -> Note:
    return Note(path, Path(path).stem, text, 1, {}, (), (), (), "", "utf-8", ())


def read(text: str, path: str = "conversations.json", scan: ScanSettings = SCAN) -> tuple[str, list[Conversation]]:
    name, _, found = chats.read(note(text, path), scan, "Europe/Moscow")
    return name, found


def streamed(path: Path, scan: ScanSettings = SCAN) -> tuple[list[Conversation], list[Problem]]:
    found = list(exports.stream(path, scan, "Europe/Moscow"))
    return [one for one in found if isinstance(one, Conversation)], [one for one in found if isinstance(one, Problem)]


def claude(name: str, said: str = "hi") -> dict[str, Any]:
    return {"uuid": name, "name": name, "chat_messages": [{"uuid": f"{name}-1", "sender": "human", "text": said}]}


def check(conversation: Conversation) -> None:
    """What holds for every conversation, whatever it was read from."""
    left = sum(problem.count for problem in conversation.problems if problem.code in chats.LEFT_OUT)
    assert conversation.seen == len(conversation.turns) + left
    assert 1 <= conversation.lines[0] <= conversation.lines[1]
    talk = {turn.uid or f"line {turn.lines[0]}" for turn in conversation.turns if not turn.variant_of}
    for turn in conversation.turns:
        assert turn.text.strip()
        assert turn.role in ("user", "assistant", "system")
        assert conversation.lines[0] <= turn.lines[0] <= turn.lines[1] <= conversation.lines[1]
        assert not turn.variant_of or turn.variant_of in talk
    assert from_dict(Conversation, to_dict(conversation)) == conversation
    json.dumps(to_dict(conversation), ensure_ascii=False).encode()


# -- one reading, two ways


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.name)
@pytest.mark.parametrize("chunk", [1, 7, 1000, 2**20])
def test_a_stream_in_chunks_of_any_size_finds_what_a_note_does(path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "CHUNK", chunk)
    scan = golden.settings(path).scan
    _, noted = read(path.read_text(encoding="utf-8"), path.name, scan)
    found, problems = streamed(path, scan)
    assert found == [one for one in noted if one.id or one.turns]
    expected = [problem for one in noted if not (one.id or one.turns) for problem in one.problems]
    assert [(one.code, one.line, one.count) for one in problems] == [(one.code, one.line, one.count) for one in expected]
    assert all(f"{path.name}: {two.message}" == one.message for one, two in zip(problems, expected, strict=True))


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.name)
def test_every_message_of_a_golden_case_is_a_turn_or_is_counted(path: Path) -> None:
    _, found = read(path.read_text(encoding="utf-8"), path.name, golden.settings(path).scan)
    assert any(conversation.turns for conversation in found)
    for conversation in found:
        check(conversation)


def test_the_json_of_a_note_is_parsed_once_for_all_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(exports, "items", lambda *args: calls.append(1) or json_items.items(*args))
    exports._parsed.cache_clear()
    exports._found.cache_clear()
    text = (FOLDER / "telegram-full.json").read_text(encoding="utf-8")
    assert read(text)[0] == "telegram"
    assert calls == [1]


def test_a_file_that_is_no_export_stays_an_ordinary_note() -> None:
    for text in ("{}", "[]", "[1, 2]", '{"messages": "x"}', '{"conversations": [{"a": 1}]}', "null", "", '[{"title": "mapping author"}]'):
        assert read(text) == ("", [])
    assert read(json.dumps([claude("a")]), "note.md") == ("", [])


# -- streams


def test_the_first_conversation_comes_before_the_file_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "conversations.json"
    path.write_text(json.dumps([claude(f"c{number}", "word " * 2000) for number in range(400)]), encoding="utf-8")
    found = exports.stream(path, SCAN, "")
    first = next(found)
    assert isinstance(first, Conversation)
    path.write_bytes(path.read_bytes()[: 2 * 2**20])  # the rest was not yet read, so its loss is met
    assert any(isinstance(one, Problem) and one.code == "E-JSON" for one in found)


def test_a_file_cut_anywhere_gives_every_whole_conversation_and_one_problem(tmp_path: Path) -> None:
    text = json.dumps([claude("a", "вода"), claude("b", 'a "quoted" {word'), claude("c")], indent=1, ensure_ascii=False)
    ends = [text.index(",\n {", text.index(f'"uuid": "{name}"')) for name in "ab"] + [len(text) - 2]
    path = tmp_path / "conversations.json"
    for cut in range(2, len(text) - 1):
        path.write_text(text[:cut], encoding="utf-8")
        found, problems = streamed(path)
        assert [one.id for one in found] == list("abc")[: sum(end <= cut for end in ends)]
        assert [one.code for one in problems] == ["E-JSON"]
        assert "broken at" in problems[0].message
        assert 1 <= problems[0].line <= text[:cut].count("\n") + 1


def test_one_broken_conversation_in_a_stream_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [json.dumps(claude(f"c{number}", "слово " * 50), indent=1, ensure_ascii=False) for number in range(6)]
    whole[2] = whole[2].replace('"c2-1"', "c2-1")
    whole[4] = whole[4][:-3]
    path = tmp_path / "conversations.json"
    path.write_text("[" + ",\n".join(whole) + "]", encoding="utf-8")
    for chunk in (1, 50, 1000, 2**20):
        monkeypatch.setattr(exports, "CHUNK", chunk)
        found, problems = streamed(path)
        assert [one.id for one in found] == ["c0", "c1", "c3", "c5"]
        assert [one.code for one in problems] == ["E-JSON", "E-JSON"]


def test_what_looks_like_a_talk_within_a_broken_one_is_none() -> None:
    talks = [claude(name) for name in "abc"]
    talks[1]["chat_messages"].append({"results": [{"instruction": "x", "output": "y"}], "end": "broken"})
    _, found = read(json.dumps(talks).replace('"broken"', "broken"))
    assert [(one.id, [problem.code for problem in one.problems]) for one in found] == [("a", []), ("", ["E-JSON"]), ("c", [])]


def test_a_broken_message_does_not_cut_a_telegram_chat_in_two() -> None:
    text = (FOLDER / "telegram-nobody-is-me.json").read_text(encoding="utf-8").replace('"id": 4,', '"id": four,')
    _, found = read(text)
    assert [(one.id, [turn.uid[-1] for turn in one.turns]) for one in found if one.id] == [("telegram-42", ["2", "6", "7", "8"])]
    assert [(problem.code, problem.line) for one in found if not one.id for problem in one.problems] == [("E-JSON", 9)]


def test_a_broken_chat_of_a_full_telegram_export_costs_only_itself(tmp_path: Path) -> None:
    said = [
        {"id": n, "type": "message", "date": "2025-06-16T21:34:40", "from": f"p{n % 2}", "from_id": f"user{n % 2}", "text": "x"}
        for n in range(9)
    ]
    talks = [json.dumps({"name": f"n{n} {{", "type": "personal_chat", "id": n, "messages": said}) for n in range(4)]
    talks[1] = talks[1].replace('"text": "x"', '"text": x', 3)
    path = tmp_path / "result.json"
    path.write_text('{"chats": {"about": "", "list": [' + ",\n".join(talks) + "]}}", encoding="utf-8")
    found, problems = streamed(path)
    assert [(one.id, len(one.turns)) for one in found] == [("telegram-0", 9), ("telegram-2", 9), ("telegram-3", 9)]
    assert [(one.code, one.line) for one in problems] == [("E-JSON", 2)]


def test_the_messages_of_a_cut_telegram_chat_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    text = (FOLDER / "telegram-nobody-is-me.json").read_text(encoding="utf-8")
    path.write_text(text[: text.index('"id": 7')], encoding="utf-8")
    (talk,), problems = streamed(path)
    assert (talk.id, [turn.uid[-1] for turn in talk.turns]) == ("telegram-42", ["2", "4", "6"])
    assert [one.code for one in problems] == ["E-JSON"]


def test_bytes_that_are_not_utf8_are_reported_and_cost_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "conversations.json"
    data = json.dumps([claude("a", "во?да"), claude("b")], ensure_ascii=False).encode().replace(b"?", b"\xe2\x82")
    path.write_bytes(data)
    found, problems = streamed(path)
    assert [one.turns[0].text for one in found] == ["во\ufffdда", "hi"]
    assert [one.code for one in problems] == ["E-ENC"]
    place = data.index(b"\xe2\x82")
    assert f"byte {place}" in problems[0].message


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_part_of_the_json(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "talks.jsonl"
    path.write_text(json.dumps(claude("a", "вода")) + "\n" + json.dumps(claude("b")), encoding=encoding)
    assert [one.id for one in streamed(path)[0]] == ["a", "b"]
    path = path.rename(tmp_path / "conversations.json")
    assert [one.id for one in streamed(path)[0]] == ["a", "b"]


def test_a_path_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    assert [one.code for one in streamed(tmp_path / "nowhere.json")[1]] == ["E-READ"]


def test_a_value_beyond_the_limit_is_left_out_and_the_next_one_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_items, "LARGEST", 20_000)
    monkeypatch.setattr(exports, "CHUNK", 1000)
    values = [claude("a"), claude("b", "long " * 20_000), claude("c")]
    path = tmp_path / "conversations.json"
    for text in (json.dumps(values), "\n".join(map(json.dumps, values))):
        path.write_text(text, encoding="utf-8")
        found, problems = streamed(path)
        assert [one.id for one in found] == ["a", "c"]
        assert [one.code for one in problems] == ["E-SIZE"]
        path = path.with_name("talks.jsonl")


# -- archives and folders


def archive(path: Path, files: dict[str, str | bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return path


def test_an_archive_is_read_without_being_unpacked(tmp_path: Path) -> None:
    talks = json.dumps([claude("a")])
    files = {
        "conversations-001.json": json.dumps([claude("b")]),
        "conversations-000.json": talks,
        "../../out.jsonl": json.dumps(claude("c")),
    }
    files |= {"user.json": '{"id": "u", "email": "x"}', "chat.html": "<html>", "broken.json": talks[:-9]}
    (tmp_path / "in").mkdir()
    path = archive(tmp_path / "in" / "export.zip", files)
    found, problems = streamed(path)
    assert [one.id for one in found] == ["c", "a", "b"]
    assert [(one.code, one.count) for one in problems] == [("E-JSON", 1), ("W-EXPORT", 1)]
    assert "export.zip/broken.json" in problems[0].message
    assert "export.zip/user.json" in problems[1].message
    assert sorted(one.name for one in tmp_path.rglob("*")) == ["export.zip", "in"]


def test_a_bomb_is_refused_and_the_rest_of_the_archive_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = "[" + json.dumps(claude("bomb", "a" * 8 * 2**20)) + "]"
    path = archive(tmp_path / "e.zip", {"a.json": bomb, "b.json": json.dumps([claude("b")])})
    found, problems = streamed(path)
    assert [one.id for one in found] == ["b"]
    assert [one.code for one in problems] == ["E-BOMB"]
    monkeypatch.setattr(exports, "MAX_UNPACKED", 1000)
    found, problems = streamed(path)
    assert (found, [one.code for one in problems]) == ([], ["E-BOMB"])


def test_a_damaged_archive_gives_what_can_be_read_and_a_problem(tmp_path: Path) -> None:
    talks = json.dumps([claude(f"c{n}", str(random.Random(n).random())) for n in range(3000)])
    path = archive(tmp_path / "e.zip", {"a.json": talks, "b.json": json.dumps([claude("b")])})
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    found, problems = streamed(path)
    assert "b" in {one.id for one in found}
    assert "E-READ" in {one.code for one in problems}
    path.write_bytes(data[: len(data) // 2])
    found, problems = streamed(path)
    assert (found, [one.code for one in problems]) == ([], ["E-ZIP"])


def test_an_encrypted_archive_is_a_problem(tmp_path: Path) -> None:
    path = archive(tmp_path / "e.zip", {"a.json": json.dumps([claude("a")])}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + place] |= 1  # the flag of encryption
    path.write_bytes(data)
    found, problems = streamed(path)
    assert (found, [one.code for one in problems]) == ([], ["E-ZIP"])


def test_a_folder_is_read_with_its_archives_and_without_following_links(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    archive(folder / "a.zip", {"x.json": json.dumps([claude("a")])})
    (folder / "deep" / "b.jsonl").write_text(json.dumps(claude("b")) + "\n", encoding="utf-8")
    (folder / "c.json").write_text(json.dumps([claude("c")]), encoding="utf-8")
    (tmp_path / "out.json").write_text(json.dumps([claude("outside")]), encoding="utf-8")
    (folder / "link.json").symlink_to(tmp_path / "out.json")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe.json")
    found, problems = streamed(folder)
    assert ([one.id for one in found], problems) == (["a", "c", "b"], [])


def test_what_may_not_be_read_in_a_folder_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right_open, right_scan = Path.open, os.scandir

    def refuse(right: Any, path: Any, *args: Any) -> Any:
        if Path(path).name in ("a.json", "closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return right(path, *args)

    (tmp_path / "a.json").write_text("[]", encoding="utf-8")
    (tmp_path / "closed").mkdir()
    (tmp_path / "b.json").write_text(json.dumps([claude("b")]), encoding="utf-8")
    monkeypatch.setattr(Path, "open", lambda path, *args: refuse(right_open, path, *args))
    monkeypatch.setattr(os, "scandir", lambda path: refuse(right_scan, path))
    found, problems = streamed(tmp_path)
    monkeypatch.undo()
    assert ([one.id for one in found], [one.code for one in problems]) == (["b"], ["E-READ", "E-READ"])


def test_names_that_are_no_utf8_can_be_shown(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.json")).write_text("[1", encoding="utf-8")
    (problem,) = streamed(tmp_path)[1]
    assert problem.message.encode().startswith(b"?.json")


# -- Telegram


def test_escapes_that_telegram_breaks_are_mended_wherever_a_chunk_ends() -> None:
    text = r'"\x0B \\x0B \\\x1f \\\\x1F \x0 \xZZ \n\\" \ux0A' + "\\" * 7 + "x0D" + "\\" * 8 + "x0D"
    right = r'"\u000B \\x0B \\\u001f \\\\x1F \x0 \xZZ \n\\" \ux0A' + "\\" * 7 + "x0D"[:0] + ""
    whole = "".join(json_items.mended([text]))
    assert whole.startswith(right[:-7])
    assert whole.endswith("\\" * 6 + "\\u000D" + "\\" * 8 + "x0D")
    for one, two in itertools.combinations(range(len(text) + 1), 2):
        assert "".join(json_items.mended([text[:one], text[one:two], text[two:]])) == whole


def test_without_a_name_for_me_the_problem_says_how_to_set_it_and_who_speaks() -> None:
    name, (talk,) = read((FOLDER / "telegram-nobody-is-me.json").read_text(encoding="utf-8"))
    assert name == "telegram"
    (problem,) = (one for one in talk.problems if one.code == "W-ME")
    assert "scan.me" in problem.message
    assert "Анна (user7), Борис (user8)" in problem.message


@pytest.mark.parametrize("me", ["борис", "user8", "8"])
def test_i_may_be_named_by_name_or_by_id(me: str) -> None:
    scan = ScanSettings(me=(me,))
    _, (talk,) = read((FOLDER / "telegram-nobody-is-me.json").read_text(encoding="utf-8"), scan=scan)
    assert [turn.role for turn in talk.turns] == ["assistant", "user", "user", "assistant", "assistant"]


def test_a_long_chat_goes_on_as_another_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telegram, "PART", 3)
    said = [
        {"id": n, "type": "service" if n % 4 == 3 else "message", "date": "2025-06-16T21:34:40", "from": f"p{n % 2}", "text": f"t{n}"}
        for n in range(20)
    ]
    _, found = read(json.dumps({"name": "N", "type": "personal_chat", "id": 5, "messages": said}))
    assert [one.id for one in found] == ["telegram-5", *(f"telegram-5/{n}" for n in range(2, len(found) + 1))]
    assert all(len(one.turns) <= 3 for one in found)
    assert sum(one.seen for one in found) + sum(turn.text.count("\n") for one in found for turn in one.turns) == 20
    for one in found:
        check(one)


# -- trees


@settings(max_examples=300)
@given(st.data())
def test_every_kept_message_of_any_graph_stands_once_and_variants_name_a_turn_of_the_talk(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 14))
    names = [f"n{number}" for number in range(size)]
    nodes = {}
    for key in names:
        said = data.draw(st.sampled_from(["", "x", "y"]))
        turn = Turn("user", said, (1, 1), uid=key) if said else data.draw(st.sampled_from([None, Turn("user", "", (1, 1), uid=key)]))
        nodes[key] = Node(data.draw(st.sampled_from([*names, "", "nowhere"])), turn, data.draw(st.sampled_from([0.0, 1.0, 2.0])))
    current = data.draw(st.sampled_from([*names, ""]))
    found = arrange(nodes, current)
    kept = {key for key, node in nodes.items() if node.turn and node.turn.text}
    assert sorted(turn.uid for turn in found) == sorted(kept)
    talk = [turn.uid for turn in found if not turn.variant_of]
    assert bool(talk) == bool(kept)
    for place, turn in enumerate(found):
        assert turn.parent in kept | {""}
        if turn.variant_of:  # it stands right before the turn of the talk that it names, or at the end
            following = next((one.uid for one in found[place:] if not one.variant_of), talk[-1])
            assert turn.variant_of == following
    above = dict.fromkeys(talk, "") | dict(zip(talk[1:], talk, strict=False))
    assert [turn.parent for turn in found if not turn.variant_of] == list(above.values())


def test_older_siblings_come_first_in_whatever_order_the_export_holds_them() -> None:
    def node(name: str, parent: str, time: float) -> Node:
        return Node(parent, Turn("assistant", name, (1, 1), uid=name), time)

    nodes = {"c": node("c", "q", 4), "b": node("b", "q", 3), "now": node("now", "q", 2), "a": node("a", "q", 0), "q": node("q", "", 1)}
    assert [turn.uid for turn in arrange(nodes, "now")] == ["q", "a", "b", "c", "now"]


def test_a_tree_of_any_depth_and_width_is_read_in_linear_time() -> None:
    size = 50_000
    deep = {str(n): Node(str(n - 1) if n else "", Turn("user", "x", (1, 1), uid=str(n))) for n in range(size)}
    assert len(arrange(deep, str(size - 1))) == size
    assert sum(bool(turn.variant_of) for turn in arrange(deep, "0")) == size - 1
    wide = {str(n): Node("0" if n else "", Turn("user", "x", (1, 1), uid=str(n))) for n in range(size)}
    assert sum(not turn.variant_of for turn in arrange(wide, "5")) == 2


# -- hostile

STRANGE = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
    st.sampled_from([[], {}, "\ud83d\0\r", 10**4000, -1, [[[]]]]),
    st.just([None, 1, "x", {}]), st.just({"parts": {}, "text": [], "role": {}, "$date": []}),
)  # fmt: skip


@functools.cache
def documents() -> tuple[Any, ...]:
    def loaded(path: Path) -> Any:
        return json.loads("".join(json_items.mended([path.read_text(encoding="utf-8")])))

    return tuple(map(loaded, WHOLE))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *itertools.chain.from_iterable(places(item, (*path, key)) for key, item in inner)]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path or not isinstance(value, (dict, list)):
        return new
    if isinstance(value, dict):
        return {key: replaced(item, path[1:], new) if key == path[0] else item for key, item in value.items()}
    return [replaced(item, path[1:], new) if key == path[0] else item for key, item in enumerate(value)]


@settings(max_examples=300)
@given(st.data())
def test_json_of_any_shape_is_read_without_an_exception_and_every_account_is_right(data: st.DataObject) -> None:
    document = data.draw(st.sampled_from(documents()))
    for _ in range(data.draw(st.integers(1, 3))):
        document = replaced(document, data.draw(st.sampled_from(places(document))), data.draw(STRANGE))
    for conversation in read(json.dumps(document))[1]:
        if conversation.id or conversation.turns:
            check(conversation)


@settings(max_examples=200)
@given(
    st.sampled_from(CASES),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 60), st.sampled_from('"}]{[,:\\\n') | st.just("")), max_size=4),
)
def test_a_file_with_any_edits_is_read_without_an_exception(path: Path, edits: list[tuple[int, int, str]]) -> None:
    text = path.read_text(encoding="utf-8")
    for start, length, new in edits:
        start %= len(text) + 1
        text = text[:start] + new + text[start + length :]
    for conversation in read(text, path.name)[1]:
        if conversation.id or conversation.turns:
            check(conversation)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '[{"mapping":' * 100_000,
        '{"a":' * 100_000 + "1" + "}" * 100_000,
        json.dumps([claude("a")])[:-1]
        + ',{"uuid":"b","chat_messages":'
        + "[" * 100_000
        + "]" * 100_000
        + "},"
        + json.dumps(claude("c"))
        + "]",
    ],
)
def test_nesting_without_end_is_a_problem_and_no_crash(text: str, tmp_path: Path) -> None:
    path = tmp_path / "conversations.json"
    path.write_text(text, encoding="utf-8")
    found, problems = streamed(path)
    assert [one.id for one in found] == (["a", "c"] if '"a"' in text and "uuid" in text else [])
    assert {one.code for one in problems} <= {"E-JSON", "E-SHAPE", "W-EXPORT"}
    assert "E-JSON" in {one.code for one in problems}
    read(text)


@pytest.mark.parametrize(
    "text",
    [
        "\\" * 2**20,
        '{"name": "' * 100_000,
        '[{"uuid": "' * 100_000,
        '[{"messages": [' + '{"id": 1, "type": "message", "date": ' * 50_000,
        "[" + '{"chat_messages": 1' * 100_000,
        '["' + "\ue200" * 2**20 + '"]',
        " " * 2**20 + "[",
        "[" + "1," * 2**17,
        "[" + '{"a":1}' * 2**17,
        "{" + '"a":1,' * 50_000,
        '[{"chat_messages": []}, ' + ',{"' * 300_000,
        '{"chats": {"list": [' + '{"name": "x", "type": "y", "id": 1, "messages": [' * 50_000,
    ],
    ids=lambda text: text[:24].strip(),
)
def test_hostile_files_take_linear_time(text: str, tmp_path: Path) -> None:
    path = tmp_path / "conversations.json"
    path.write_text(text, encoding="utf-8")
    assert all(problem.message for problem in streamed(path)[1])
    streamed(path.rename(tmp_path / "talks.jsonl"))
    read(text)


def test_texts_are_cleaned_of_what_no_note_can_hold() -> None:
    said = {
        "uuid": "m\n1",
        "sender": "human",
        "text": "a\0b\r\nc\rd \ud83d",
        "created_at": 10**400,
        "attachments": [{"file_name": "x\ud83d\n"}],
    }
    text = (
        '[{"uuid": 123456789012345678901234567890, "name": ["x"], "chat_messages": ['
        + json.dumps({**said, "created_at": "N"}).replace('"N"', "1" * 5000)
        + ', NaN, {"sender": "human", "sender": "assistant", "text": "last key wins"}]}]'
    )
    _, (talk,) = read(text)
    check(talk)
    assert [(turn.role, turn.text, turn.uid, turn.attachments) for turn in talk.turns] == [
        ("user", "ab\nc\nd ?", "m 1", ("x?",)),
        ("assistant", "last key wins", "", ()),
    ]
    assert [(one.code, one.count) for one in talk.problems] == [("E-MESSAGE", 1)]


def test_many_broken_lines_are_told_together(tmp_path: Path) -> None:
    path = tmp_path / "talks.jsonl"
    path.write_text("x\n" * 1000 + json.dumps(claude("a")) + "\n1\n2\n", encoding="utf-8")
    found, problems = streamed(path)
    assert [one.id for one in found] == ["a"]
    assert len(problems) == 102
    assert sum(one.count for one in problems if one.code == "E-JSON") == 1000
    assert [(one.line, one.count) for one in problems if one.code == "E-SHAPE"] == [(1002, 2)]


def test_an_object_at_the_top_is_held_only_up_to_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "LARGEST", 10_000)
    path = tmp_path / "conversations.json"
    talk = {"conversations": [{"from": "human", "value": "x" * 100}] * 1000}
    path.write_text(json.dumps({"a": "b", **talk}) + json.dumps(claude("next")), encoding="utf-8")
    found, problems = streamed(path)
    assert [one.id for one in found] == ["", "next"]
    assert 50 < found[0].seen < 100  # as far as it could be held
    assert [one.code for one in problems] == ["E-SIZE"]


def test_what_stands_between_marks_is_cut_in_linear_time() -> None:
    assert without("a<x>b</x>c<x>d", "<x>", "</x>") == ("ac", 2)
    assert without("<x>" * 300_000, "<x>", "</x>") == ("", 1)


def test_a_stream_says_what_it_could_not_read_in_order(tmp_path: Path) -> None:
    file = io.BytesIO(b'[{"uuid": "a", "chat_messages": []}')
    found = list(exports._plain(file, "x.json", SCAN, "", []))
    assert [type(one).__name__ for one in found] == ["Conversation", "Problem"]
