"""What else is looked for beside a question, and what that is worth: synonyms learnt from the vault, and questions taken apart.

    python benchmarks/queries.py synonyms VAULT [--weights 0,0.1,0.2,0.4] [--most 300]
    python benchmarks/queries.py parts [--questions 200]

`synonyms`: on a copy of a vault, which is only read. Three kinds of questions that need no labels: links that were hidden (as in
`vaultllm bench links`, three seeds), headings that were cut out of the notes, and the pairs of `memory/pairs.py` whose passages do not
hold the query. Each weight beside 0, with a 95 % interval over notes.
`parts`: made-up notes, each of one fact about one thing of one person, and questions that take two of them: to compare two things
(`compare`), or to go from one to the other (`bridge`; the second part cannot name what only the first note says). The parts are
given, as a perfect model would write them: what is measured is what `memory.rewrite = "decompose"` could gain, not what a model does.
Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vaultllm import keywords, recall, vault
from vaultllm import text as texts
from vaultllm.bench import asking, hidden
from vaultllm.bench.asking import Scores
from vaultllm.bench.data import Skipped
from vaultllm.bench.recalled import temporary
from vaultllm.config import MemorySettings, Settings, Workspace
from vaultllm.links import Resolver
from vaultllm.memory import pairs, rephrase
from vaultllm.schema import silent

SETTINGS = Settings(vault_id="bench")
HEADING = re.compile(r"#{1,4} +(.+?)#* *$")


def table(kind: str, arms: dict[str, list[Scores]], groups: Sequence[str], measures: Sequence[str]) -> None:
    """A row for each arm, the first one being what the others are compared with."""
    first, *_ = arms.values()
    for name, rows in arms.items():
        mean = asking.means(rows)
        gains = [asking.gain(first, rows, groups, one) for one in measures]
        cells = [
            f"{mean[one]:.3f}" + (f" ({gain['low']:+.3f} … {gain['high']:+.3f})" if rows is not first else "")
            for one, gain in zip(measures, gains, strict=True)
        ]
        print(f"| {kind} ({len(rows)}) | {name} | {' | '.join(cells)} |", flush=True)


# -- synonyms


def with_synonyms(weight: float) -> MemorySettings:
    return SETTINGS.memory.model_copy(update={"synonyms": weight})


def links(source: Path, weights: Sequence[float], most: int) -> None:
    workspace = Workspace(source, source, SETTINGS)
    rows: dict[str, list[Scores]] = {str(weight): [] for weight in weights}
    groups: list[str] = []
    paths = [file.path for file in vault.scan(source, SETTINGS.scan, SETTINGS.answers.folder).files]
    resolver, skipped = Resolver(vault.all_files(source)), Skipped()
    found = hidden._pairs(workspace, paths, resolver, skipped, silent)
    for seed in range(3):
        chosen = hidden._chosen(found, hidden.SHARE, seed)

        def fill(folder: Path, chosen: set[tuple[str, str]] = chosen) -> Path:
            hidden._copy(workspace, paths, resolver, chosen, folder / "vault", silent)
            return folder / "vault"

        with temporary(SETTINGS, fill, silent) as (job, _):
            posed = hidden._posed(job.ledger, found, chosen, skipped)
            for one in random.Random(seed).sample(posed, min(most // 3, len(posed))):
                groups.append(one.hidden.source)
                for weight in weights:
                    said = asking.ask(job.ledger, job.workspace.memory, with_synonyms(weight), one.text, "path", 10, one.known)
                    rows[str(weight)].append(asking.scores(said.ranking, {one.hidden.target}, (1, 10)))
    table("hidden links", rows, groups, ("recall@1", "recall@10", "mrr"))


def headings(source: Path, weights: Sequence[float], most: int) -> None:
    asked: list[tuple[str, str]] = []

    def fill(folder: Path) -> Path:
        (folder / "vault").mkdir()
        for number, path in enumerate(sorted(source.rglob("*.md"))):
            name, kept, code = f"{number:05d}.md", [], False  # a note's own name would say what its headings do
            for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
                code ^= line.lstrip().startswith("```")
                match = None if code else HEADING.match(line)
                if match is None:
                    kept.append(line)
                elif sum(not keywords.is_common(word) for word in texts.words(match[1])) > 1:
                    asked.append((match[1], name))
            (folder / "vault" / name).write_text("\n".join(kept), encoding="utf-8")
        return folder / "vault"

    with temporary(SETTINGS, fill, silent) as (job, _):
        times = Counter(heading for heading, _ in asked)
        chosen = [one for one in asked if times[one[0]] == 1]
        chosen = random.Random(0).sample(chosen, min(most, len(chosen)))
        rows: dict[str, list[Scores]] = {str(weight): [] for weight in weights}
        for heading, name in chosen:
            for weight in weights:
                said = asking.ask(job.ledger, job.workspace.memory, with_synonyms(weight), heading, "path", 10)
                rows[str(weight)].append(asking.scores(said.ranking, {name}, (1, 10)))
        table("cut headings", rows, [name for _, name in chosen], ("recall@1", "recall@10", "mrr"))


def own_pairs(source: Path, weights: Sequence[float], most: int) -> None:
    with temporary(SETTINGS, lambda folder: source, silent) as (job, _):
        found = [pair for pair in pairs.pairs(job.ledger) if pair.hidden]
        found = random.Random(0).sample(found, min(most, len(found)))
        rows: dict[str, list[Scores]] = {str(weight): [] for weight in weights}
        for pair in found:
            for weight in weights:
                ranked = recall.ranked(job.ledger, job.workspace.memory, with_synonyms(weight), pair.query, 100, plain=True)
                ranking = [str(one.stored.slot) for one in ranked if one.stored.slot not in pair.source]
                rows[str(weight)].append(asking.scores(ranking[:10], {str(pair.slots[0])}, (1, 10)))
        table("its own pairs", rows, [pair.note for pair in found], ("recall@1", "recall@10", "mrr"))


# -- questions taken apart

PEOPLE = {
    "en": "Vera Ivan Clara Oleg Nina Peter Rosa Anton Lydia Mark Tamara Felix Olga Simon Irene Leo Zoe Boris Ada Hugo".split(),
    "ru": "Веры Ивана Клары Олега Нины Петра Розы Антона Лидии Марка Тамары Феликса Ольги Семёна Ирины Льва Зои Бориса Ады Гуго".split(),
}
THINGS = {
    "en": "boat barn well stove sledge fence bridge workshop greenhouse beehive".split(),
    "ru": "лодка баня печь мельница теплица мастерская изгородь пристань кузница пасека".split(),
}
MASTERS = {"en": "Garrick Holt Merrow Pike Sorrel Thorne Vance Wick".split(), "ru": "Горин Жук Крот Лопарь Рысь Сойкин Чиж Щегол".split()}
PLACES = {
    "en": "Alder Ford, Birch Hill, Cold Spring, Dry Creek, Elm Row, Far Meadow, Grey Stone, High Bank".split(", "),
    "ru": "Ольховка, Берёзово, Ключи, Сухой Лог, Вязники, Дальний Луг, Серый Камень, Крутояр".split(", "),
}
FACTS = {
    "en": ("The {thing} of {person} was built in {year}.", "{person}'s {thing} was painted last spring, two coats.",
           "For the {thing} {person} paid {cost} roubles.", "The {thing} of {person} is the work of the craftsman {master}."),
    "ru": ("{thing} {person}: построена в {year} году.", "{thing} {person} покрашена прошлой весной в два слоя.",
           "За материалы отдано {cost} рублей: {thing} {person}.", "{thing} {person}: её делал мастер {master}."),
}  # fmt: skip
LIVES = {"en": "{master} has lived in {place} since he was a boy.", "ru": "{master} с детства живёт в месте {place}."}
COMPARE = {
    "en": (
        "Which was built earlier, the {a} of {p} or the {b} of {q}?",
        "When was the {a} of {p} built?",
        "When was the {b} of {q} built?",
    ),
    "ru": ("Что построено раньше, {a} {p} или {b} {q}?", "Когда построена {a} {p}?", "Когда построена {b} {q}?"),
}
BRIDGE = {
    "en": (
        "Where does the craftsman live who made the {a} of {p}?",
        "Which craftsman made the {a} of {p}?",
        "Where has the craftsman lived?",
    ),
    "ru": ("Где живёт мастер, который делал: {a} {p}?", "Какой мастер делал: {a} {p}?", "Где живёт мастер?"),
}


class Given:
    """A writer that knows the parts of each question."""

    def __init__(self) -> None:
        self.parts: dict[str, Sequence[str]] = {}

    def write(self, prompt: str, most_tokens: int) -> str:
        """The parts of the question in the prompt's last line."""
        return "\n".join(self.parts[prompt.rpartition("\n")[2].partition(": ")[2]])


def parts(language: str, count: int) -> None:
    rng = random.Random(0)
    notes: dict[tuple[str, ...], str] = {}
    masters: dict[tuple[str, str], str] = {}
    for person in PEOPLE[language]:
        for thing in THINGS[language]:
            masters[person, thing] = rng.choice(MASTERS[language])
            said = {
                "thing": thing,
                "person": person,
                "year": rng.randint(1950, 2020),
                "cost": 100 * rng.randint(5, 90),
                "master": masters[person, thing],
            }
            for number, fact in enumerate(FACTS[language]):
                notes[person, thing, str(number)] = fact.format_map(said)
    for master, place in zip(MASTERS[language], PLACES[language], strict=True):
        notes[(master,)] = LIVES[language].format(master=master, place=place)
    names = {key: f"{place:05d}.md" for place, key in enumerate(rng.sample(sorted(notes), len(notes)))}

    def fill(folder: Path) -> Path:
        (folder / "vault").mkdir()
        for key, name in names.items():
            (folder / "vault" / name).write_text(notes[key] + "\n", encoding="utf-8")
        return folder / "vault"

    writer = Given()
    asked: dict[str, list[tuple[str, set[str]]]] = {"compare": [], "bridge": []}
    things = list(masters)
    for _ in range(count):
        (p, a), (q, b) = rng.sample(things, 2)
        for kind, shapes, evidence in (
            ("compare", COMPARE, [(p, a, "0"), (q, b, "0")]),
            ("bridge", BRIDGE, [(p, a, "3"), (masters[p, a],)]),
        ):
            whole, *some = [shape.format(a=a, p=p, b=b, q=q) for shape in shapes[language]]
            writer.parts[whole] = some
            asked[kind].append((whole, {names[key] for key in evidence}))
    rephraser = rephrase.Rephraser("decompose", writer)
    with temporary(SETTINGS, fill, silent) as (job, _):
        for kind, questions in asked.items():
            arms: dict[str, list[Scores]] = {"the question alone": [], "and its parts": []}
            for rows, who in zip(arms.values(), (None, rephraser), strict=True):
                for question, evidence in questions:
                    said = asking.ask(job.ledger, job.workspace.memory, SETTINGS.memory, question, "path", 10, (), who)
                    rows.append(asking.scores(said.ranking, evidence, (2, 5, 10)))
            table(f"{kind}, {language}", arms, [question for question, _ in questions], ("recall@2", "recall@5", "recall@10"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("synonyms")
    one.add_argument("vault", type=Path)
    one.add_argument("--weights", default="0,0.1,0.2,0.4")
    one.add_argument("--most", type=int, default=300)
    other = commands.add_parser("parts")
    other.add_argument("--questions", type=int, default=200)
    given = parser.parse_args()
    if given.command == "synonyms":
        print("| questions | memory.synonyms | R@1 | R@10 | MRR |\n|---|---|---|---|---|")
        weights = [float(weight) for weight in given.weights.split(",")]
        for measure in (links, headings, own_pairs):
            measure(given.vault.resolve(), weights, given.most)
    else:
        print("| questions | looked for | R@2 | R@5 | R@10 |\n|---|---|---|---|---|")
        for language in PEOPLE:
            parts(language, given.questions)


if __name__ == "__main__":
    main()
