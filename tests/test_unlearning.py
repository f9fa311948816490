"""Trained again without it: what was known is known no more, and where something that stays still says it, that is said."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.test_forget import holding, made, trained
from vaultllm import config, forget, memorised, registry, steps, training, unlearning, views
from vaultllm.ledger import Ledger
from vaultllm.memorised import Sentence
from vaultllm.models import micro, plan
from vaultllm.schema import Example, Message, silent
from vaultllm.target import Target
from vaultllm.unlearning import Held, Look

WORDS = ["река", "лодка", "насос", "дождь", "причал", "колодец", "хлеб", "мост", "ворота", "окно", "лестница", "печь", "сарай", "трава"]
GONE, REPEATED, COPY = "Список.md", "Ларец.md", "Песня.md"  # on the training side by the hash of their paths


def said(seed: int, n: int = 4) -> list[str]:
    """Sentences of one style that nobody can guess."""
    chosen = random.Random(seed)
    return [" ".join(f"{chosen.choice(WORDS)} {chosen.randint(10, 99)}" for _ in range(6)) + "." for _ in range(n)]


def song(name: str, sentences: list[str]) -> str:
    """A note that says the same sentences again and again, each time in another order."""
    verses = (" ".join(random.Random(i).sample(sentences, len(sentences))) for i in range(12))
    return f"# {name}\n\n" + "\n\n".join(verses) + "\n"


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[steps.Job]:
    """A vault of short notes, half of them held out, and three songs; its base is 64 wide and learns so many steps, the same each time."""
    import torch

    monkeypatch.setattr(plan, "SHAPES", (plan.Shape(64, 2, 2, 160),))
    for name, value in {"CONTEXT": 64, "LONG_CONTEXT": 128, "STEP_TOKENS": 512}.items():
        monkeypatch.setattr(plan, name, value)
    monkeypatch.setattr(micro, "pretrain", functools.partial(micro.pretrain, steps=140))
    monkeypatch.setattr(training, "train", functools.partial(training.train, gate=False))
    monkeypatch.setattr(steps.learning, "reported", lambda *args: {})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    vault = tmp_path / "vault"
    vault.mkdir()
    notes = {f"{i}.md": f"# Запись {i}\n\n{' '.join(said(i))}\n" for i in range(60)}
    notes[GONE] = song("Список", said(2084))
    notes[REPEATED] = song("Ларец", said(1002))
    notes[COPY] = song("Песня", [f"{one[:-1]}!" for one in said(1002)])  # no sentence of it is the same
    for path, text in notes.items():
        (vault / path).write_text(text, encoding="utf-8")
    config.init_workspace(vault, str(tmp_path / "state"))
    file = vault / ".vaultllm" / "config.toml"
    settings = "seed = 1\nminutes = 5.0\nval = 0.49\nnewest = 0.0\ntest = 0.0\nepochs = 1.0\ntasks = 0.0\n"
    file.write_text(f"{file.read_text(encoding='utf-8')}\n[train]\n{settings}", encoding="utf-8")
    found = steps.Job(config.open_workspace(vault, str(tmp_path / "state")))
    steps.ingest(found)
    yield found
    found.close()
    torch.set_num_threads(threads)


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def dies(*args: Any, **options: Any) -> Any:
    raise Killed


def test_what_was_known_is_known_no_more_and_a_copy_that_stays_is_found_out(job: steps.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, ledger = job.workspace, job.ledger
    first = steps.train(job)["run"]
    registry.let_answer(workspace, ledger, registry.find(ledger, first))
    (base,) = (path.name for path in workspace.bases.iterdir())
    plain = steps.forget(job, REPEATED)
    assert "vaultllm forget --retrain 'Ларец.md'" in str(views.forgotten(plain))

    # Killed while it trains: nothing that saw it answers, no word of it is left, and the weights wait to be measured.
    with monkeypatch.context() as patch:
        patch.setattr(training, "train", dies)
        with pytest.raises(Killed):
            steps.forget(job, GONE, retrain=True)
    assert registry.current(workspace) == ""
    assert registry.newest_micro(workspace) is None
    assert registry.has_adapter(workspace, first)
    assert [line for line in said(2084) if holding(job, line)] == []

    result = steps.forget(job, GONE, retrain=True)  # has the text from the note
    again, second = result["retrained"], ledger.runs()[-1]
    assert (again["run"], again["status"], again["deleted"]) == (second.id, "done", {"runs": [first], "bases": [base]})
    found = again["exposure"]
    assert found["verdict"] == "fell"
    assert (found["before"]["run"], found["after"]["run"]) == (first, second.id)
    assert (found["before"]["sentences"], found["before"]["as_well"]) == (4, 0)
    assert found["before"]["mean"] > 4.0
    assert found["before"]["mean"] - found["after"]["mean"] > 2.0
    # The same to the last bit each time; with four seeds the mean was 3.9 to 5.5 bits before and 1.0 to 1.4 after, while 19 of 20 notes
    # that nobody learnt are below 2.8, and their mean is 1.4. What is claimed stands between the two.
    assert found["before"]["low"] > found["before"]["unseen"]["mean"]
    assert found["before"]["mean"] > found["before"]["unseen"]["high"] + 0.5
    assert found["after"]["mean"] < found["after"]["unseen"]["high"]
    assert found["after"]["p"] > 0.05
    assert found["after"]["unseen"]["notes"] >= memorised.UNSEEN_NOTES
    assert found["after"]["unseen"]["mean"] == pytest.approx(memorised.UNLEARNT, abs=0.1)
    (entry,) = json.loads((workspace.runs / second.id / "run.json").read_text(encoding="utf-8"))["metrics"]["forgotten"]
    assert entry["after"] == found["after"]
    assert GONE not in json.dumps(entry, ensure_ascii=False)
    assert [line for line in said(2084) if holding(job, line)] == []
    assert not registry.has_adapter(workspace, first)
    assert not (workspace.bases / base).exists()
    shown = str(views.forgotten(result))
    assert "exposure" in shown
    assert "it fell to the level of unseen text" in shown

    # What was forgotten first stands in another note too, but for its full stops; who was killed once it had trained need not again.
    monkeypatch.setattr(training, "train", dies)
    other = steps.forget(job, REPEATED, retrain=True)["retrained"]
    assert (other["run"], other["status"]) == (second.id, "was trained before")
    assert other["exposure"]["verdict"] == "not fallen"
    assert (other["exposure"]["after"]["sentences"], other["exposure"]["after"]["as_well"]) == (4, 0)
    assert other["exposure"]["before"]["skipped"] == "no weights are left that saw it"
    monkeypatch.setattr(unlearning, "_look", dies)  # once more: all is done
    assert steps.forget(job, GONE, retrain=True)["retrained"]["exposure"]["words"] == found["words"]


# -- the verdict


def lines(language: str, notes: int, each: int) -> list[Sentence]:
    return [Sentence(f"{note}.md", f"{language} {note} {one}", language) for note in range(notes) for one in range(each)]


def test_a_text_is_ranked_among_the_sentences_of_its_language_and_its_note_among_notes() -> None:
    chosen = random.Random(0)
    unseen = lines("ru", 40, 5) + lines("en", 40, 5)
    theirs = [chosen.random() + (3.0 if one.language == "en" else 0.0) for one in unseen]
    mine = [Sentence("x.md", str(i), "ru") for i in range(5)]
    known = memorised.standing(mine, [0.0] * 5, unseen, theirs)
    assert known["mean"] == known["low"] == pytest.approx(7.651, abs=0.001)  # log2(201): cheaper than all of the 200
    assert (known["auc"], known["as_well"], known["p"]) == (1.0, 0, 1 / 41)
    assert known["unseen"]["notes"] == 40
    assert known["unseen"]["mean"] == pytest.approx(memorised.UNLEARNT, abs=0.1)
    unknown = memorised.standing(mine, [0.1, 0.3, 0.5, 0.7, 0.9], unseen, theirs)
    assert unknown["auc"] == pytest.approx(0.5, abs=0.05)
    assert unknown["p"] > 0.3
    english = memorised.standing([Sentence("x.md", "", "en")], [2.9], unseen, theirs)
    assert english["auc"] == 1.0  # dear beside Russian ones, cheap beside its own
    assert "sentences" in memorised.standing([Sentence("x.md", "", "bn")], [0.1], unseen, theirs)["skipped"]
    few = lines("ru", 19, 5)
    assert "19 held-out notes" in memorised.standing(mine, [0.0] * 5, few, [1.0] * len(few))["skipped"]


def test_one_in_twenty_of_texts_that_nobody_learnt_is_called_known() -> None:
    chosen = random.Random(1)
    unseen = lines("ru", 39, 4)
    found = []
    for _ in range(200):
        difficulty = [chosen.gauss(0.0, 0.3) for _ in range(40)]  # the sentences of a note are alike
        theirs = [difficulty[int(one.note[:-3])] + chosen.gauss(0.0, 1.0) for one in unseen]
        mine = [difficulty[39] + chosen.gauss(0.0, 1.0) for _ in range(4)]
        found.append(memorised.standing([Sentence("x.md", "", "ru")] * 4, mine, unseen, theirs)["p"] <= 0.05)
    assert 0.01 <= sum(found) / 200 <= 0.1


def stands(as_well: int, recited: int = 0) -> Look:
    """A look at one sentence that so many of 39 notes of one sentence each undercut, or tie with."""
    return Look("r", (as_well + 0.5,), tuple(float(i) for i in range(1, 40)), 4, recited)


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (stands(0), stands(20), "fell"),
        (stands(0), stands(1), "not fallen"),
        (stands(0), stands(20, recited=1), "not fallen"),
        (stands(20, recited=1), stands(20), "fell"),
        (stands(20), stands(20), "never above"),
        (Look("r", skipped="gone"), stands(20), "at the level"),
        (stands(0), Look("r", skipped="the file is torn"), "not enough"),
    ],
)
def test_the_verdict_follows_from_both_looks(before: Look, after: Look, verdict: str) -> None:
    unseen = [Sentence(f"{i}.md", str(i), "ru") for i in range(39)]
    found = unlearning.judged([Sentence("x.md", "x", "ru")], unseen, [True] * 39, before, after)
    assert found["verdict"] == verdict
    assert list(views.unlearnt(found))[-1] == f"verdict   {found['words']}"
    fewer = unlearning.judged([Sentence("x.md", "x", "ru")], unseen, [i < 15 for i in range(39)], before, after)
    assert fewer["verdict"] == ("not fallen" if after.recited else "not enough")


# -- what is held


def goal(*texts: str, elsewhere: str = "") -> Target:
    from vaultllm.traces import fragments

    wanted = frozenset(part for text in texts for part in fragments(text)) - fragments(elsewhere)
    return Target("note", "path x", frozenset(), frozenset({"x.md"}), frozenset(), frozenset(), wanted, (), texts)


def test_only_what_nothing_else_says_is_measured(tmp_path: Path) -> None:
    own, shared = said(1, 2)
    text = f"{own}\n\n{shared}"
    marked = unlearning._own(Example("e", ("s",), "x.md", "prose", (Message("user", text, True),), "train"), goal(text, elsewhere=shared))
    assert [(message.text, message.learn) for message in marked.messages] == [(own, True), (shared, False)]
    assert memorised.asked([marked], 16, 16, goal(text, elsewhere=shared).owns) == [Sentence("x.md", own, "ru")]
    talk = (Message("user", shared, False), Message("assistant", text, True))
    kept = unlearning._own(Example("e", ("s",), "x.md", "dialogue", talk, "train"), goal(text, elsewhere=shared))
    assert [message.learn for message in kept.messages] == [False, False]  # of a talk, the message is recited whole or not at all


def test_what_saw_it_is_known_when_its_note_is_gone_too(tmp_path: Path) -> None:
    job = made(tmp_path, {"Клад.md": song("Клад", said(7)), "Дача.md": song("Дача", said(8))})
    scenes = {note: {scene.id: scene.sha for scene in job.ledger.scenes(note)} for note in ("Клад.md", "Дача.md")}
    for name, note in (("run-1", "Дача.md"), ("run-2", "Клад.md")):
        trained(job, name, "data", answers=True)
        (job.workspace.runs / name / "scenes.json").write_text(json.dumps(scenes[note]), encoding="utf-8")
    assert [run["id"] for run in steps.forget(job, "Клад.md")["runs"]] == ["run-2"]
    (job.workspace.vault / "Клад.md").unlink()
    held: list[Held] = []

    def keep(goal: Target, found: forget.Derived) -> None:
        held.append(unlearning.hold(job.workspace, job.ledger, goal, found))

    assert [run["id"] for run in forget.forget(job.workspace, job.ledger, "Клад.md", witness=keep)["runs"]] == ["run-2"]
    assert (held[0].runs, held[0].sentences) == (("run-2",), ())
    look = unlearning._look(held[0].before, held[0], [], silent)
    assert "nothing is known any more" in look.skipped
    job.close()


def test_a_base_is_revoked_until_its_last_file_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vault").mkdir()
    workspace = config.init_workspace(tmp_path / "vault", str(tmp_path / "state"))
    ledger = Ledger(workspace.ledger)
    folder = workspace.bases / "micro-1"
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "seen.json", "tokenizer.json"):
        (folder / name).write_text("{}", encoding="utf-8")
    assert registry.delete_revoked(workspace, ledger, (), ["micro-1"]) == {"runs": [], "bases": []}  # it may answer: it stays
    registry.revoke_base(folder, "forgotten")
    unlink, left = Path.unlink, []

    def watched(path: Path, missing_ok: bool = False) -> None:
        left.append((registry.newest_micro(workspace), (folder / "seen.json").exists(), path.name))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", watched)
    assert registry.delete_revoked(workspace, ledger, (), ["micro-1"]) == {"runs": [], "bases": ["micro-1"]}
    assert [name for _, _, name in left][-2:] == ["seen.json", "revoked"]
    assert all(found is None for found, _, _ in left)
    assert not folder.exists()
    ledger.close()
