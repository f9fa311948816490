"""The report of a training: the decision first, readable, inert, never read back; its pictures are there and are shown."""

from __future__ import annotations

import dataclasses
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from tests import models
from tests.stored import write_rivers
from tests.test_render import FORBIDDEN, FULL, INVISIBLE, PAYLOADS
from vaultllm import charts, config, lineage, markdown, registry, report, reporting, steps, training, vault, wording
from vaultllm.errors import UsageError
from vaultllm.report import Asked, Changes, Facts, Learnt
from vaultllm.schema import Example, Message, Run

METRICS: dict[str, Any] = {
    "bpb_before": 2.0,
    "bpb_after": 1.9,
    "bpb_current": None,
    "interval": {"mean": -0.1, "low": -0.2, "high": -0.05, "notes": 40, "decided": True},
    "tokens": {"learnt": 3000, "context": 10, "padding": 0},
    "loss_first": 5.0,
    "loss_last": 3.0,
    "arms": {"examples": 24, "base": 2.4, "base+memory": 2.0, "trained": 2.2, "trained+memory": 1.9},
}
RUN = Run(
    "20261122T010203004-lora-0", "lora", "/bases/b", "ab", "d" * 16, {"rank": 16}, 0, "", "done", METRICS, {}, "2026-11-22T01:02:03+00:00",
    True, "held-out notes cost 1.900 bits per byte, 2.000 without it",
)  # fmt: skip
FACTS = Facts(
    run=RUN, created="2026-11-22T03:04:05+03:00", language="en", answers=True, before="",
    learnt=(Learnt("Garden/Well.md", 800), Learnt(".imports/x/Talk.json", 200)), unit="tokens", held_out=3, dropped={"a template": 2},
    changes=Changes(("Garden/Well.md",), (), ("Old.md",)),
    asked=(Asked("When does the pump start?", "Talk.md", "When it is dry.", "dunno", "When dry.", "It starts at 32 %.", "[[Pump|Pump]]"),),
    not_asked="", curve="vaultllm/Reports/a curve.svg", losses=(5.0, 3.0),
    arms="vaultllm/Reports/a arms.svg", adapter="~/x/adapter", test={},
)  # fmt: skip


def text_of(**changed: Any) -> str:
    return report.note(dataclasses.replace(FACTS, **changed), "id")[1]


def run_of(*, promoted: bool = True, reason: str = RUN.reason, revoked: str = "", **metrics: Any) -> Run:
    return dataclasses.replace(RUN, promoted=promoted, reason=reason, revoked=revoked, metrics=METRICS | metrics)


def first_sentence(text: str) -> str:
    return text.partition("\n# ")[2].split("\n\n")[1]


def test_what_was_forgotten_before_it_stands_among_the_numbers() -> None:
    assert "| forgotten | it fell to the level of unseen text |" in text_of(
        run=run_of(forgotten=[{"words": "it fell to the level of unseen text"}])
    )
    assert "| forgotten |" not in text_of()


def test_the_decision_comes_first_and_in_words() -> None:
    assert first_sentence(text_of()) == (
        "**From now on this model answers:** it foresees notes that it has never read 5.0 % better than the model without this training."
    )
    against = run_of(bpb_current=1.9, bpb_gate=1.7)
    assert "10.5 % better than the model that answered before" in first_sentence(text_of(run=against))
    assert first_sentence(text_of(run=run_of(bpb_after=2.0))).startswith("**From now on this model answers:** it foresees")
    unsure = run_of(interval={"mean": 0, "low": -1, "high": 1, "notes": 7, "decided": False})
    assert "(7 notes) that this may be chance" in first_sentence(text_of(run=unsure))
    worse = run_of(promoted=False, bpb_after=2.2, reason="it got worse")
    assert first_sentence(text_of(run=worse, answers=False)).startswith("**This model does not answer:** it foresees")
    leaky = run_of(promoted=False, reason="it recites 3 of 9 passages.")
    said = first_sentence(text_of(run=leaky, answers=False))
    assert said == "**This model does not answer:** it recites 3 of 9 passages. Everything stays as it was."
    forced = run_of(forced={"reason": "it sounds like me", "refused": "it got worse"})
    assert "because you said so** (it sounds like me)" in first_sentence(text_of(run=forced))
    assert "has gone" in first_sentence(text_of(run=run_of(revoked="A.md has gone"), answers=False))
    assert first_sentence(text_of(answers=False)).endswith("By now another model answers.")
    unmeasured = run_of(promoted=False, bpb_before=None, bpb_after=None, reason="no note is held out", interval=None)
    assert "does not answer:** no note is held out." in first_sentence(text_of(run=unmeasured, answers=False))


def test_it_says_how_to_undo_it_with_the_exact_command() -> None:
    assert "`vaultllm rollback`. Then the base model alone answers again." in text_of()
    assert "Then training 2025-x answers again." in text_of(before="2025-x")
    refused = run_of(promoted=False, reason="worse")
    assert f'`vaultllm promote {RUN.id} --force --reason "…"`' in text_of(run=refused, answers=False)
    assert f"`vaultllm promote {RUN.id}`" in text_of(answers=False)  # it did answer once: no force is needed
    gone = text_of(answers=False, adapter="")
    assert "has been deleted" in gone
    assert "vaultllm promote" not in gone


def test_it_is_honest_about_what_helps_more_than_the_training() -> None:
    assert "Training and memory together do best." in text_of()
    memory = run_of(arms=METRICS["arms"] | {"base+memory": 1.5})
    assert "The memory alone helps more than this training." in text_of(run=memory)
    assert "a small difference may be chance" in text_of()
    assert "a small difference may be chance" not in text_of(run=run_of(arms=METRICS["arms"] | {"examples": 30}))
    beaten = run_of(yardsticks={"candidate": 2.0, "ngram": 1.9, "xz": 1.8})
    assert "Even the file packer xz, which understands nothing" in text_of(run=beaten)
    assert "which understands nothing" not in text_of(run=run_of(yardsticks={"candidate": 2.0, "ngram": 2.1, "xz": "skipped"}))
    assert "no talk that it has never read" in text_of(run=run_of(arms={}))


def test_numbers_are_folded_at_the_end_and_what_was_not_measured_is_named() -> None:
    measured = run_of(
        drift={"kl": 0.0123, "skipped": None},
        probes={"cloze": {"base": 0.25, "trained": {"mean": 0.1, "low": 0.0, "high": 0.2, "notes": 9}}},
    )
    text = text_of(run=measured)
    folded = text.partition("> [!info]- Numbers for those who know them\n")[2]
    assert all(line.startswith(">") for line in folded.rstrip("\n").split("\n"))
    assert "> | drift · kl | 0.0123 |" in folded
    assert "> | probes · cloze · trained | 0.1 (95 %: 0 … 0.2, 9 notes) |" in folded
    assert "> Not measured in this training: yardsticks, memorised, manners." in folded
    endless: dict[str, Any] = {}
    endless["again"] = endless
    assert len(text_of(run=run_of(drift=endless, manners={str(i): i for i in range(10_000)}))) < 20_000


def test_long_lists_are_cut_and_counted() -> None:
    many = tuple(Learnt(f"n{number:03}.md", 1000 - number) for number in range(40))
    text = text_of(learnt=many, changes=Changes(tuple(one.path for one in many), (), ()), dropped={f"reason {i}": 1 for i in range(12)})
    learnt = text.partition("## What it learnt from")[2].partition("## ")[0]
    assert learnt.count("[[") == report.MOST_NOTES
    assert "… and 25 more notes with 24,325 tokens" in learnt
    assert "4 for other reasons" in learnt
    assert "… and 30 more" in text
    assert "«Talk»" in text_of()  # an imported talk: nothing in the vault to link to
    assert text_of(learnt=None, changes="unknown_before").count("no longer there") == 2


@pytest.mark.parametrize("language", ["en", "ru", "bn"])
def test_every_language_says_everything(language: str) -> None:
    english, said = wording.words("en"), wording.words(language)
    assert english.keys() == said.keys()
    for key in english:
        assert sorted(re.findall(r"{\w+}", said[key])) == sorted(re.findall(r"{\w+}", english[key])), key
    text = text_of(language=language)
    assert "{" not in text.partition("[!info]")[0]
    assert said["undo"] in text
    assert wording.words("de") is english


def test_a_number_is_written_as_the_language_writes_it() -> None:
    assert report.number(12345.67, "en", 1) == "12,345.7"
    assert report.number(12345.67, "ru", 1) == "12\u00a0345,7"


# -- inert


def hostile(payload: str) -> Facts:
    line = " ".join(payload.split())
    path = f"a/{line.replace('/', ' ')}.md"
    run = dataclasses.replace(
        RUN, reason=payload, base=payload, options={payload: payload}, metrics=METRICS | {"manners": {payload: payload}}
    )
    return dataclasses.replace(
        FACTS, run=run, learnt=(Learnt(path, 5), Learnt(f".x/{path}", 4)), dropped={payload: 2}, changes=Changes((path,), (path,), (path,)),
        asked=(Asked(payload, path, payload, payload, payload, payload, "[[Own|own]]"),), adapter=payload, before=payload,
    )  # fmt: skip


@pytest.mark.parametrize("payload", PAYLOADS)
def test_what_notes_and_models_say_does_nothing_in_a_report(payload: str) -> None:
    facts = hostile(payload)
    path = facts.learnt[0].path if facts.learnt else ""
    for changed in (facts, dataclasses.replace(facts, run=dataclasses.replace(facts.run, promoted=False), answers=False)):
        _, text = report.note(changed, "id")
        front, body = text[4:].split("\n---\n", 1)
        assert front.count("\n") == 6
        assert "vaultllm: report" in front
        ours = {
            report._link(path),
            report._link(path, cell=True),
            *(report._embed(one) for one in (FACTS.curve, FACTS.arms)),
            "[[Own|own]]",
        }
        left = body
        for one in sorted({*ours, "[[Own\\|own]]"}, key=len, reverse=True):
            left = left.replace(one, "")
        left = left.replace("> [!info]- Numbers", "> Numbers")
        left = re.sub(r"\\.", "·", left)
        assert not FORBIDDEN.search(left), FORBIDDEN.search(left)
        assert not INVISIBLE.search(body)
        assert not re.search(r"(?<![\w&])#[\w/]", left.replace("\n#", "\n")), payload  # no tag
        tokens = FULL.parse(body)
        kinds = {token.type for token in tokens} | {child.type for token in tokens for child in token.children or []}
        assert not kinds & {"html_block", "html_inline", "fence", "code_block", "hr", "image"}
        # a question's table keeps its three cells, whatever stands in them
        cells = [len(re.findall(r"(?<!\\)\|", line)) for line in body.split("\n") if line.startswith("| ")]
        assert set(cells) == {4}


def test_a_note_whose_path_is_html_or_code_is_linked_without_being_either() -> None:
    for path in ("<img src=x onerror=alert(1)>.md", "a`b.md", "$x$ {{y}}.md", "C# [1] | 2 %% 3.md"):
        said = text_of(learnt=(Learnt(path, 1),), changes=Changes((path,), (), ()))
        assert "<img" not in said
        tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(said.split("\n---\n", 1)[1])
        assert "html_inline" not in {child.type for token in tokens for child in token.children or []}
        assert said.count("](") >= 2


# -- pictures


def test_pictures_are_small_valid_and_hold_nothing_but_shapes_and_words() -> None:
    hard = [(float(i), 1.0 + 1 / (i + 1)) for i in range(20_000)] + [(5.0, float("nan")), (6.0, float("inf"))]
    for points in (hard, [], [(1.0, 2.0)], [(1.0, 2.0), (2.0, 2.0)], [(0.0, -1e-12), (1e9, 1e12)], hard[:12]):
        drawn = charts.curve(points, x="<script>", y='a"b', smooth="ওজন")
        root = ElementTree.fromstring(drawn)
        assert {child.tag.rpartition("}")[2] for child in root} <= {"text", "path", "circle"}
        assert len(drawn) < 30_000
        assert "nan" not in drawn
        assert "<script>" not in drawn
        for x, y in re.findall(r"[ML]([\d.]+),([\d.]+)", drawn):
            assert 0 <= float(x) <= charts.WIDTH
            assert 0 <= float(y) <= 310
    bars = charts.bars([("a & b", 2.0), ("best", 1.0), ("none", float("nan"))], title="t")
    shapes = [child for child in ElementTree.fromstring(bars) if child.tag.endswith("rect")]
    assert [shape.get("width") for shape in shapes] == ["390.0", "195.0"]
    assert [shape.get("fill") for shape in shapes] == [charts.FAINT, charts.LINE]
    ElementTree.fromstring(charts.bars([], title=""))


def test_pictures_can_be_read_on_light_and_on_dark_paper() -> None:
    def luminance(colour: str) -> float:
        parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    def contrast(one: str, other: str) -> float:
        low, high = sorted((luminance(one), luminance(other)))
        return (high + 0.05) / (low + 0.05)

    for paper in ("#ffffff", "#1e1e1e"):
        assert contrast(charts.TEXT, paper) >= 3.5
        assert contrast(charts.LINE, paper) >= 3
    assert contrast(charts.LINE, charts.FAINT) >= 1.5


# -- what is asked


def talk(path: str, question: str, split: Any = "val", form: Any = "dialogue") -> Example:
    said = (Message("user", question, False), Message("assistant", "It is so. And more. And more.", True))
    return Example(f"id {path} {question[:9]}", ("s",), path, form, said, split)


def prose(path: str, text: str) -> Example:
    return Example(f"id {path}", ("s",), path, "prose", (Message("user", text, True),), "val")


def test_the_same_questions_are_asked_of_the_same_notes_talks_first_and_one_a_note() -> None:
    talks = [talk(f"t{i}.md", f"What is the matter with {i}?") for i in range(4)]
    again = [talk("t0.md", "Another question of the same talk?"), talk("short.md", "Ok?"), talk("long.md", "x" * 400)]
    notes = [prose(f"Note {i}.md", f"Note {i}\n\n# H\n\nThe water rose by {i} cm.") for i in range(9)] + [prose("Empty.md", "# only")]
    found = reporting.probes([*talks, *again, *notes], "en")
    assert found == reporting.probes([*reversed(notes), *again, *reversed(talks)], "en")
    assert {probe.path for probe in found[:4]} == {f"t{i}.md" for i in range(4)}
    assert len(found) == 5
    assert re.fullmatch(r"What did I write about «Note \d»\?", found[4].question)
    assert re.fullmatch(r"The water rose by \d cm\.", found[4].truth)
    assert reporting.probes([prose("Empty.md", "# only")], "ru") == []
    assert reporting.probes([], "en") == []


def test_the_main_language_is_that_of_most_text() -> None:
    russian = [prose(f"{i}.md", "Вода в колодце поднялась.") for i in range(3)]
    assert reporting.main_language([*russian, prose("x.md", "The pump starts.")]) == "ru"
    assert reporting.main_language([]) == "en"


# -- the whole way


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("report")
    folder = root / "vault"
    folder.mkdir()
    write_rivers(folder, 20, 8)
    for number in range(12):
        turns = "\n\n".join(
            f"User: Сколько воды было {i} числа в реке {number}?\n\nAssistant: Вода поднялась на {number + i} сантиметров."
            for i in range(3)
        )
        (folder / f"Разговор {number}.md").write_text(turns + "\n", encoding="utf-8")
    made = steps.Job(config.init_workspace(folder, str(root / "state"), str(models.build(root / "base", "llama"))))
    settings = made.workspace.settings
    trained = settings.train.model_copy(update={"val": 0.3, "test": 0.1})
    made.workspace = dataclasses.replace(made.workspace, settings=settings.model_copy(update={"train": trained}))
    steps.ingest(made)
    yield made
    made.close()


@pytest.fixture(scope="module")
def trained(job: steps.Job) -> dict[str, Any]:
    return steps.train(job, minutes=0.05)


@pytest.fixture(scope="module", autouse=True)
def short_answers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(reporting, "NEW_TOKENS", 6)
        yield


def reports(job: steps.Job) -> list[Path]:
    return sorted((job.workspace.vault / "vaultllm/Reports").glob("*.md"))


def test_a_training_writes_its_report_with_its_pictures_beside_it(job: steps.Job, trained: dict[str, Any]) -> None:
    assert "report_error" not in trained
    path = job.workspace.vault / trained["report"]
    assert reports(job) == [path]
    text = path.read_text(encoding="utf-8")
    pictures = re.findall(r"^!\[\[(.*\.svg)\]\]$", text, re.M)
    assert len(pictures) == 2
    for picture in pictures:
        drawn = (job.workspace.vault / picture).read_text(encoding="utf-8")
        ElementTree.fromstring(drawn)
        assert len(drawn) < 100_000
    assert "обученная, с памятью" in (job.workspace.vault / pictures[1]).read_text(encoding="utf-8")
    assert first_sentence(text).startswith("**Теперь отвечает эта модель:**")
    assert re.search(r"^\| \[\[Река \d+\\\|Река \d+\]\] \| \d+ \| \d+,\d % \|$", text, re.M)
    assert text.count("| базовая | обученная | Другие ваши заметки |") == 5
    assert re.search(r"^> \| test · bpb_after \| \d", text, re.M)
    note = markdown.parse(trained["report"], path.read_bytes())
    assert note.properties["vaultllm"] == "report"
    assert note.problems == ()
    # the words of a held-out note stand beside the answers, those of the memory come from another note
    for asked in re.findall(r"^\*\*\d\.\*\* .*\[\[(.*?)\|", text, re.M):
        (job.workspace.vault / f"{asked}.md").stat()


def test_questions_come_from_notes_that_were_not_learnt_and_memory_never_quotes_the_note_itself(
    job: steps.Job, trained: dict[str, Any]
) -> None:
    facts = reporting.collect(job.workspace, job.ledger, trained["run"], lambda progress: None)
    assert len(facts.asked) == 5
    learnt = {one.path for one in facts.learnt or ()}
    for one in facts.asked:
        assert one.path not in learnt
        assert one.before is not None
        assert one.after is not None
        assert one.path.removesuffix(".md") not in one.source
    assert any(one.memory for one in facts.asked)
    assert sum(one.size for one in facts.learnt or ()) > 0
    assert facts.unit == "tokens"
    assert facts.changes == "first"
    assert (facts.answers, facts.before) == (True, "")


def test_a_report_is_not_read_back_not_even_when_it_is_moved(job: steps.Job, trained: dict[str, Any]) -> None:
    before = steps.ingest(job)
    assert (before["notes"]["parsed"], before["scenes"]["added"]) == (0, 0)
    moved = job.workspace.vault / "Мой отчёт.md"
    moved.write_bytes((job.workspace.vault / trained["report"]).read_bytes())
    after = steps.ingest(job)
    assert after["notes"]["parsed"] == 1
    scenes = list(job.ledger.scenes("Мой отчёт.md"))
    assert scenes
    assert {(scene.trust, scene.train) for scene in scenes} == {("generated", False)}
    assert registry.new_scenes(job.workspace, job.ledger) == 0
    assert steps.learning.built_dataset(job).id == job.ledger.runs()[-1].dataset
    moved.unlink()
    steps.ingest(job)
    # and a run that watches writes no loop: the folder is not looked at
    assert trained["report"].startswith("vaultllm/Reports/")
    assert "vaultllm/Reports" in job.workspace.settings.own_folders
    reason = vault.left_out(job.workspace.vault, trained["report"], job.workspace.settings.scan, job.workspace.settings.own_folders)
    assert reason is not None
    assert "our own notes" in reason.message


def test_the_ledger_knows_the_report_and_keeps_no_words_of_the_vault_with_it(job: steps.Job, trained: dict[str, Any]) -> None:
    assert reporting.known(job.workspace, job.ledger, trained["run"]) == trained["report"]
    records = [record for _, record in job.ledger.answers(10) if json.loads(record).get("kind") == "report"]
    assert records
    assert not any("Река" in record or "сантиметров" in record for record in records)
    assert trained["report"] in job.ledger.written().values()


def test_the_command_says_where_the_report_is_and_writes_it_again_when_asked(job: steps.Job, trained: dict[str, Any]) -> None:
    assert steps.report(job) == {
        "run": trained["run"], "decision": "promoted", "reason": trained["reason"], "note": trained["report"], "written": False
    }  # fmt: skip
    again = steps.report(job, trained["run"], again=True)
    assert again["written"]
    assert again["note"] != trained["report"]
    assert len(reports(job)) == 2
    assert steps.report(job)["note"] == again["note"]
    (job.workspace.vault / again["note"]).unlink()  # the user threw it away
    assert steps.report(job)["note"] == trained["report"]
    with pytest.raises(UsageError, match="there is no run"):
        steps.report(job, "nope")


def test_what_is_gone_is_left_out_and_said(job: steps.Job, trained: dict[str, Any], tmp_path: Path) -> None:
    run = registry.find(job.ledger, trained["run"])
    frozen, adapter = job.workspace.datasets / run.dataset, job.workspace.runs / run.id / "adapter"
    frozen.rename(tmp_path / "dataset")
    facts = reporting.collect(job.workspace, job.ledger, run.id, lambda progress: None)
    assert (facts.learnt, facts.asked, facts.not_asked) == (None, (), "the data of this training are gone")
    (tmp_path / "dataset").rename(frozen)
    adapter.rename(tmp_path / "adapter")
    facts = reporting.collect(job.workspace, job.ledger, run.id, lambda progress: None)
    assert (facts.adapter, facts.not_asked) == ("", "the adapter of this training is gone")
    assert "has been deleted" in report.note(dataclasses.replace(facts, language="en"), "id")[1]
    (tmp_path / "adapter").rename(adapter)


def test_what_changed_since_the_training_before_is_listed_and_a_broken_vault_costs_only_the_report(
    job: steps.Job, trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt = [one.path for one in reporting.collect(job.workspace, job.ledger, trained["run"], lambda progress: None).learnt or ()]
    edited, gone = [path for path in learnt if path.startswith("Река")][:2]
    root = job.workspace.vault
    (root / edited).write_text((root / edited).read_text(encoding="utf-8") + "\n\nПотом вода ушла совсем.\n", encoding="utf-8")
    (root / gone).unlink()
    steps.ingest(job)

    def full(*arguments: Any, **options: Any) -> str:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(vault, "write_new", full)
        result = steps.train(job, minutes=0.05)
    assert result["status"] == "done"
    assert result["report"] is None
    assert "No space left" in result["report_error"]
    with monkeypatch.context() as patched:

        def stopped(*arguments: Any, **options: Any) -> None:
            raise KeyboardInterrupt

        patched.setattr(reporting, "collect", stopped)
        told = steps.learning.reported(job, result["run"], steps.learning.built_dataset(job))
    assert told == {"report": None, "report_error": "stopped; to write it: vaultllm report"}
    facts = reporting.collect(job.workspace, job.ledger, result["run"], lambda progress: None)
    assert isinstance(facts.changes, Changes)
    assert edited in facts.changes.edited
    assert gone in facts.changes.gone
    job.ledger.put_run(dataclasses.replace(registry.find(job.ledger, result["run"]), id="20990101-x", status="interrupted"))
    with pytest.raises(UsageError, match="interrupted"):
        reporting.collect(job.workspace, job.ledger, "20990101-x", lambda progress: None)
    run = registry.find(job.ledger, result["run"])
    seed = dataclasses.replace(run, id="20990102-x", created="2099-01-02", promoted=False, metrics={}, reason="")
    job.ledger.put_run(seed)  # trained beside, never judged
    assert lineage.decision(seed) == "not judged"
    assert reporting.latest(job.ledger) == result["run"]


def test_no_report_is_written_when_none_is_wanted_or_the_training_fails(job: steps.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    before = reports(job)

    def trained(*arguments: Any, **options: Any) -> dict[str, Any]:
        return {"run": job.ledger.runs()[0].id, "status": "done", "metrics": {}, "promoted": False, "reason": ""}

    with monkeypatch.context() as patched:
        patched.setattr(training, "train", trained)
        assert "report" not in steps.train(job, report=False)

    def fails(*arguments: Any, **options: Any) -> dict[str, Any]:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(training, "train", fails)
    with pytest.raises(RuntimeError):
        steps.train(job)
    assert reports(job) == before
