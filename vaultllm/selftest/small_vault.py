"""A vault of twelve notes, made for trials: prose in three languages, a talk, links, a table, an answer of ours; and a day of changes.

Knows nothing about what is tried on it.
"""

from __future__ import annotations

from pathlib import Path

FORGOTTEN = "Дневник/Ключ под кирпичом.md"
"""The note that a trial has forgotten."""
SECRET = "третьим кирпичом слева от бочки"
"""Words that stand in that note alone."""
QUESTION = "When does the pump in the greenhouse start?"

_TALK = """---
nexus: nexus-ai-chat-importer
plugin_version: "1.3.0"
provider: chatgpt
aliases: "Влажность почвы"
conversation_id: 0c3f9b1e-5a52-4d1b-9a57-3d1f1f6f2a01
create_time: 16.06.2025 at 21:34
update_time: 16.06.2025 at 21:40
---

# Title: Влажность почвы

Created: 16.06.2025 at 21:34
Last Updated: 16.06.2025 at 21:40

>[!nexus_user] **User** - 16.06.2025 at 21:34
> При какой влажности включать насос в теплице?
<!-- UID: 5f1b5b8a-1111-4a4a-8c8c-000000000001 -->

>[!nexus_agent] **Assistant** - 16.06.2025 at 21:35
> Ниже тридцати двух процентов. Выше сорока полив не нужен: корни начнут гнить.
> Проверяйте датчик раз в неделю, соль на щупе завышает показания.
<!-- UID: 5f1b5b8a-1111-4a4a-8c8c-000000000002 -->

>[!nexus_user] **User** - 16.06.2025 at 21:39
> А ночью?
<!-- UID: 5f1b5b8a-1111-4a4a-8c8c-000000000003 -->

>[!nexus_agent] **Assistant** - 16.06.2025 at 21:40
> Ночью не поливайте: холодная вода остудит землю, а испарения всё равно нет.
<!-- UID: 5f1b5b8a-1111-4a4a-8c8c-000000000004 -->
"""

_NOTES = {
    "Теплица.md": (
        "# Теплица\n\nНасос стоит у северной стены. Вода идёт из бочки на 200 литров, см. [[Бочка]].\n\n"
        "## Полив\n\nНасос включается, когда земля суше тридцати двух процентов, и молчит ночью. Раз в неделю чищу щуп датчика.\n\n"
        "## Плёнка\n\nПлёнку меняю раз в три года, в апреле, пока нет листьев на берёзе.\n"
    ),
    "Бочка.md": "# Бочка\n\nДвести литров, синяя. Наполняется за ночь, если дождь. Связано с [[Теплица#Полив]] и [[Журнал]].\n",
    "Журнал.md": "---\ntags: [погода, дача]\n---\n# Журнал\n\n2025-06-14 дождь 12 мм\n2025-06-15 сухо, +27\n2025-06-16 полив, 40 литров\n",
    "Work/Pump.md": (
        "# Pump\n\nThe pump in the greenhouse starts when the soil is drier than 32 percent and never at night. #pump\n\n"
        "## Wiring\n\nThe relay sits behind the second board; the red wire is live.\n\n"
        "```python\nif soil < 32 and not night:\n    pump.on()\n```\n"
    ),
    "Work/Meeting.md": "# Meeting\n\n- [ ] order two sensors\n- [x] ask about the relay\n\nNext time: [[Pump]], and the flood forecast.\n",
    "Work/Bread.md": (
        "# Bread\n\nRye wants fourteen hours of cold proof and a hot oven.\n\n"
        "| flour | water |\n|---|---|\n| 500 g | 380 g |\n\nThe crust is done when it sings.\n"
    ),
    "বাংলা/নদী.md": "# নদী\n\nআজ সকালে বৃষ্টি হয়েছে। নদীর জল এক হাত বেড়েছে।\n\n## নৌকা\n\nনৌকাটা ঘাটে বাঁধা আছে, কাল রং করব। দেখো [[Журнал]]।\n",
    "বাংলা/চা.md": "# চা\n\nঠাকুমা চায়ে আদা আর এলাচ দেন। জল ফোটার পরে তিন মিনিট।\n",
    FORGOTTEN: f"# Ключ\n\nКлюч от сарая лежит под {SECRET}, об этом знает только сосед.\n",
    "Дневник/2025-06-15.md": "# Воскресенье\n\nСлушал тишину. Дятел на третьей сосне. Думал о памяти и о воде.\n",
    "Nexus/Влажность почвы.md": _TALK,
    "empty.md": "",
}
_ANSWER = (
    "---\nvaultllm: answer\nvaultllm_id: 20250616214500-0a1b2c3d\n---\n# Title: What did I bake?\n\n"
    ">[!nexus_user] **User** - 2025-06-16T21:45:00+03:00\n> What did I bake?\n<!-- UID: 20250616214500-0a1b2c3d-user -->\n\n"
    ">[!nexus_agent] **Assistant** - 2025-06-16T21:45:00+03:00\n> Rye bread.\n<!-- UID: 20250616214500-0a1b2c3d-agent -->\n"
)
_CONFIG = (
    'vault_id = "selftest"\n\n'  # and the shortest training that there is
    "[train]\nepochs = 0.34\ntasks = 0.0\nmax_tokens = 64\nrank = 1\nval = 0.2\nnewest = 0.0\ntest = 0.0\n"
)


def make(vault: Path) -> None:
    """Write the vault, set up, into a folder that is not there yet."""
    for path, text in {**_NOTES, "vaultllm/Answers/What did I bake.md": _ANSWER, ".vaultllm/config.toml": _CONFIG}.items():
        (vault / path).parent.mkdir(parents=True, exist_ok=True)
        (vault / path).write_text(text, encoding="utf-8")


def change(vault: Path) -> None:
    """A day of its owner: notes that are edited, renamed, deleted and new."""
    pump = vault / "Work/Pump.md"
    pump.write_text(pump.read_text(encoding="utf-8").replace("second board", "third board") + "\n## Noise\n\nIt hums at 50 Hz.\n", "utf-8")
    journal = vault / "Журнал.md"
    journal.write_text(journal.read_text(encoding="utf-8") + "2025-06-17 гроза, 31 мм\n", encoding="utf-8")
    (vault / "Work/Bread.md").rename(vault / "Хлеб.md")
    (vault / "Work/Meeting.md").unlink()
    (vault / "বাংলা/মাছ.md").write_text("# মাছ\n\nইলিশ মাছ সরষে দিয়ে। দেখো [[চা]]।\n", encoding="utf-8")
