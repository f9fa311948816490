"""The map: one private file that loads and runs nothing of others, in which near means alike, and which a browser draws."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests import browser
from tests.stored import put
from vaultllm import imports
from vaultllm.errors import DataError, OwnedNoteError, VaultError
from vaultllm.ledger import Ledger
from vaultllm.memory import layout, map
from vaultllm.memory.embed import VaultEmbedder

HOSTILE = "</script><img src=x onerror=window.hacked=1>&amp;\u2028 ${1}"
NOTES = {
    "Дача/Теплица.md": "# Теплица\n\nПомпа поливает теплицу, когда влажность низкая.\n\n## Датчик\n\nДатчик влажности почвы окислился.\n",
    "Дача/Огурцы.md": "---\ndate: 2025-06-15\n---\n# Огурцы\n\nОгурцы в теплице любят влажность. Полив утром. См. [[Теплица]].\n",
    "Хлеб.md": "# Ржаной хлеб\n\nЗакваска для хлеба стоит в банке, выпечка хлеба с паром.\n\n## Мука\n\nМука ржаная, закваска густая.\n",
    "Work/Kayak.md": "# Kayak\n\nThe third rib leaked; epoxy mended the rib. See [[Хлеб]] for the picnic and [[Nowhere]].\n",
    "বাংলা/খিচুড়ি.md": "# খিচুড়ি\n\nমুগ ডাল আগে ভেজে নিতে হয়, তারপর চাল আর শেষে ঘি।\n",
    "Work/Trap.md": f"# {HOSTILE}\n\nThe rib of the kayak, epoxy and {HOSTILE} again.\n",
}
WRONG = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")


def embedded(ledger: Ledger) -> None:
    slots = ledger.without_vector("")
    said = [f"{context}\n{text}" for _, text, context in ledger.texts(slots)]
    embedder = VaultEmbedder.fit(said, 16)
    ledger.put_vectors(embedder.fingerprint, slots, embedder.embed(said))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.db") as opened:
        for path, text in NOTES.items():
            put(opened, path, text)
        embedded(opened)
        yield opened


def data_of(page: Path) -> dict:
    """What the page is told, as its script reads it."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    return json.loads(found[1])


# -- the file


def test_every_scene_stands_on_the_map_with_its_place_in_the_vault(ledger: Ledger, tmp_path: Path) -> None:
    report = map.build(ledger, tmp_path / "map.html", vault=tmp_path / "Мой сейф")
    data = data_of(tmp_path / "map.html")
    scenes_ = list(ledger.scenes())
    assert report["scenes"] == len(scenes_) == len(data["x"]) == len(data["anchor"])
    assert [data["notes"][note] for note in data["note"]] == [scene.source.path for scene in scenes_]
    assert list(zip(data["first"], data["last"], strict=True)) == [scene.source.lines for scene in scenes_]
    assert [data["titles"][title] for title in data["title"]] == [scene.title for scene in scenes_]
    assert [field.split("\n") if field else [] for field in data["field"]] == [list(scene.field) for scene in scenes_]
    assert all(isinstance(number, int) and 0 <= number <= layout.SIDE for number in data["x"] + data["y"])
    assert data["about"] == {"name": "Мой сейф", "vault": str(tmp_path / "Мой сейф"), "colour": "folder", "left_out": 0}
    cucumbers = data["note"].index(data["notes"].index("Дача/Огурцы.md"))
    assert data["day"][cucumbers] == (np.datetime64("2025-06-15") - np.datetime64("1970-01-01")).astype(int)
    assert None in data["day"]
    assert report["bytes"] == (tmp_path / "map.html").stat().st_size
    assert map.lines(report)[0].startswith(str(tmp_path / "map.html"))


def test_links_lead_from_scenes_to_the_notes_they_mean(ledger: Ledger, tmp_path: Path) -> None:
    report = map.build(ledger, tmp_path / "map.html")
    data = data_of(tmp_path / "map.html")
    pairs = zip(data["links"][::2], data["links"][1::2], strict=True)
    assert {(data["notes"][data["note"][scene]], data["notes"][note]) for scene, note in pairs} == {
        ("Дача/Огурцы.md", "Дача/Теплица.md"),
        ("Work/Kayak.md", "Хлеб.md"),
    }
    assert report["links"] == 2


def test_the_file_is_private_and_the_same_ledger_gives_the_same_bytes(ledger: Ledger, tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        map.build(ledger, tmp_path / "sub" / name, colour="time")
    first = tmp_path / "sub" / "a.html"
    assert first.stat().st_mode & 0o777 == 0o600
    assert first.read_bytes() == (tmp_path / "sub" / "b.html").read_bytes()


def test_what_notes_say_is_data_and_never_markup(ledger: Ledger, tmp_path: Path) -> None:
    map.build(ledger, tmp_path / "map.html")
    text = (tmp_path / "map.html").read_text(encoding="utf-8")
    assert "onerror=window.hacked" in text  # it is there, ...
    assert "<img" not in text  # ... but no element
    assert "\u2028" not in text
    assert text.count("</script>") == 2
    data = data_of(tmp_path / "map.html")
    assert any(HOSTILE.split("\u2028")[0] in title for title in data["titles"])


def test_a_name_that_is_no_text_breaks_nothing() -> None:
    page = map._page({"notes": ["a\ud800b"]}).decode("utf-8")
    assert '{"notes":["a?b"]}' in page


def test_the_policy_lets_nothing_run_but_the_pages_own_script_and_style(ledger: Ledger, tmp_path: Path) -> None:
    map.build(ledger, tmp_path / "map.html")
    text = (tmp_path / "map.html").read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    for tag in ("script", "style"):
        own = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[1]
        assert rules[f"{tag}-src"] == f"'sha256-{base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()}'"


def test_the_page_names_no_address_and_writes_no_html() -> None:
    template = Path(map.__file__).with_name("map.html").read_text(encoding="utf-8")
    for forbidden in (
        "http:",
        "https:",
        "src=",
        "@import",
        "url(",
        "fetch(",
        "XMLHttp",
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "eval(",
    ):
        assert forbidden not in template
    assert not re.search(r"\son\w+=|\sstyle=", template)  # the policy would not let them work


def test_a_file_of_somebody_else_is_left_alone_and_our_own_is_replaced(ledger: Ledger, tmp_path: Path) -> None:
    other = tmp_path / "thesis.html"
    other.write_text("<!doctype html><p>mine", encoding="utf-8")
    with pytest.raises(OwnedNoteError, match="--out"):
        map.build(ledger, other)
    assert other.read_text(encoding="utf-8") == "<!doctype html><p>mine"
    map.build(ledger, tmp_path / "map.html")
    put(ledger, "Новая.md", "# Новая\n\nСовсем новая заметка о хлебе.\n")
    assert map.build(ledger, tmp_path / "map.html")["notes"] == len(NOTES) + 1


def test_a_path_that_cannot_be_written_is_named(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for path in (tmp_path, tmp_path / "file" / "map.html"):
        with pytest.raises(VaultError, match="--out"):
            map.build(ledger, path)


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db") as empty:
        with pytest.raises(DataError, match="ingest"):
            map.build(empty, tmp_path / "map.html")
        put(empty, "a.md", "# A\n\nSome text.\n")
        with pytest.raises(DataError, match="ingest"):
            map.build(empty, tmp_path / "map.html")
    assert not (tmp_path / "map.html").exists()


def test_a_scene_without_a_vector_stands_beside_its_note(ledger: Ledger, tmp_path: Path) -> None:
    oven, flour = ledger.db.execute(
        "SELECT p.slot, p.scene FROM passages p JOIN scenes s ON s.slot = p.scene JOIN notes n ON n.id = s.note"
        " WHERE n.path = 'Хлеб.md' ORDER BY s.ordinal"
    ).fetchall()
    ledger.db.execute("DELETE FROM vectors WHERE passage = ?", (flour[0],))
    put(ledger, "Ничего.md", "# Ничего\n\nЗаметка, которую ещё никто не видел.\n")
    assert map.build(ledger, tmp_path / "map.html")["without_vector"] == 2
    data = data_of(tmp_path / "map.html")
    first, second = (index for index, note in enumerate(data["note"]) if data["notes"][note] == "Хлеб.md")
    assert np.hypot(data["x"][first] - data["x"][second], data["y"][first] - data["y"][second]) < layout.SIDE / 20
    assert data["near"][second] == [] != data["near"][first]
    assert oven[1] != flour[1]


def test_a_talk_that_is_no_file_of_the_vault_is_not_offered_to_obsidian() -> None:
    assert map._outside(["a.md", f"{imports.PREFIX}claude/x.json", "b.md"]) == [1]


def test_too_many_scenes_are_thinned_evenly(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map, "MOST_SCENES", 4)
    whole = len(list(ledger.scenes()))
    report = map.build(ledger, tmp_path / "map.html")
    assert report["scenes"] <= 4
    assert report["scenes"] + report["left_out"] == whole
    assert "left out" in map.lines(report)[1]


# -- folders


def test_the_fullest_folder_is_told_apart() -> None:
    paths = ["Чаты/2024/a.md"] * 5 + ["Чаты/2025/b.md"] * 9 + ["Чаты/c.md"] + ["Дом/d.md"] * 2 + ["e.md"]
    names, numbers = map.folders(paths)
    assert names == ["Чаты/2025", "Чаты/2024", "Дом", "/", "Чаты"]
    assert [names[number] for number in numbers] == ["Чаты/2024"] * 5 + ["Чаты/2025"] * 9 + ["Чаты"] + ["Дом"] * 2 + ["/"]


def test_more_than_ten_folders_share_a_colour() -> None:
    names, numbers = map.folders([f"{index:02}/a.md" for index in range(14)] + ["00/b.md"])
    assert names == [f"{index:02}" for index in range(10)] + ["…"]
    assert numbers == [*range(10), 10, 10, 10, 10, 0]


# -- places


def topics(count: int, groups: int, dims: int = 32, noise: float = 0.6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    group = rng.integers(0, groups, count)
    return layout.unit((rng.normal(size=(groups, dims))[group] + noise * rng.normal(size=(count, dims))).astype(np.float32)), group


def test_near_in_space_is_near_in_the_plane() -> None:
    vectors, group = topics(400, 8)
    near = layout.neighbours(vectors, 10)
    places = layout.places(vectors, near).astype(float)
    apart = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1))
    np.fill_diagonal(apart, np.inf)
    nearest = np.argsort(apart, axis=1)[:, :10]
    assert (group[nearest] == group[:, None]).mean() > 0.95
    kept = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(nearest.tolist(), near.tolist(), strict=True)])
    flat = layout._boxed(layout._principal_plane(vectors, np.random.default_rng(0))).astype(float)
    apart = np.hypot(*(flat[:, None] - flat[None]).transpose(2, 0, 1))
    np.fill_diagonal(apart, np.inf)
    of_principal = np.argsort(apart, axis=1)[:, :10]
    assert kept > 1.5 * np.mean([len(set(a) & set(b)) / 10 for a, b in zip(of_principal.tolist(), near.tolist(), strict=True)])


def test_neighbours_by_cells_are_nearly_the_exact_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, _ = topics(3_000, 150)
    exact = layout.neighbours(vectors, 10)
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -9)
    np.testing.assert_array_equal(exact[:, 0], scores.argmax(axis=1))
    monkeypatch.setattr(layout, "_EXACT", 1_500)
    monkeypatch.setattr(layout, "_CELL", 40)
    cells = layout.neighbours(vectors, 10)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact.tolist(), cells.tolist(), strict=True)]) > 0.95
    assert not (cells == np.arange(len(vectors))[:, None]).any()


def test_vectors_that_are_all_alike_are_not_compared_with_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "_EXACT", 100)
    monkeypatch.setattr(layout, "_CELL", 50)
    compared = []
    nearest = layout._nearest
    monkeypatch.setattr(
        layout, "_nearest", lambda vectors, rows, others, k: compared.append(len(others)) or nearest(vectors, rows, others, k)
    )
    near = layout.neighbours(np.full((600, 4), 0.5, dtype=np.float32), 10)
    assert max(compared) <= 100
    assert np.isfinite(layout.places(np.full((600, 4), 0.5, dtype=np.float32), near)).all()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 12])
def test_a_few_vectors_are_placed_apart(count: int) -> None:
    vectors = np.eye(12, dtype=np.float32)[:count]
    near = layout.neighbours(vectors, min(10, count - 1))
    places = layout.places(vectors, near)
    assert places.shape == (count, 2)
    assert ((places >= 0) & (places <= layout.SIDE)).all()
    assert len({tuple(place) for place in places.tolist()}) == count
    np.testing.assert_array_equal(places, layout.places(vectors, near))


def test_a_region_is_named_by_what_its_notes_share() -> None:
    rng = np.random.default_rng(0)
    places = np.concatenate([centre + rng.normal(0, 500, (20, 2)) for centre in ([9_000, 9_000], [50_000, 9_000], [9_000, 50_000])])
    said = [("насос", "вода")] * 20 + [("хлеба", "вода")] * 9 + [("хлеб", "вода")] * 11 + [("चावल", "вода")] * 20
    found = layout.labels(places.astype(np.int32), [f"{index}.md" for index in range(60)], said)
    by_place = {(label["x"] > 30_000, label["y"] > 30_000): label["text"].split(" · ")[0] for label in found}
    assert by_place == {(False, False): "насос", (True, False): "хлеб", (False, True): "चावल"}
    assert sum(label["size"] for label in found) <= 60
    assert all(label["top"] <= label["y"] for label in found)


def test_a_long_note_does_not_name_a_region_alone() -> None:
    places = np.array([[9_000 + 100 * index, 9_000] for index in range(6)] + [[50_000, 50_000], [50_100, 50_000]], dtype=np.int32)
    said = [("тетрадь",)] * 4 + [("огород",)] * 2 + [("мука",)] * 2
    found = layout.labels(places, ["один.md"] * 4 + ["два.md", "три.md", "четыре.md", "пять.md"], said)
    assert [label["text"] for label in found] == ["огород · тетрадь", "мука"]


# -- in a browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    """The map of the notes in a Chromium; skipped where there is none."""
    if browser.found() is None:
        pytest.skip("no Chromium is installed")
    folder = tmp_path_factory.mktemp("page")
    with Ledger(folder / "ledger.db") as ledger:
        for path, text in NOTES.items():
            put(ledger, path, text)
        embedded(ledger)
        map.build(ledger, folder / "map.html", vault=Path("/home/x/Мой сейф"))
    with browser.Browser(folder / "profile") as opened:
        opened.open(folder / "map.html")
        yield opened


@pytest.fixture
def fresh(page: browser.Browser) -> browser.Browser:
    """The page as it was when it was opened."""
    page.js("query.value = ''; search(); fit(); kind = 'folder'; hidden.fill(0); recolour(); document.activeElement.blur()")
    page.mouse("mouseMoved", 3, 3)
    return page


def errors(page: browser.Browser) -> list[str]:
    """What the page, or its policy, found wrong since it was opened (reading a canvas, as tests do, is a mere warning)."""
    said = [event["params"].get("entry", {"level": "error", "text": str(event)}) for event in page.events if event["method"] in WRONG]
    return [entry["text"] for entry in said if entry["level"] == "error"]


def of_title(title: str) -> str:
    return f"D.title.findIndex((t) => D.titles[t].startsWith({json.dumps(title)}))"


def spot(page: browser.Browser, title: str) -> tuple[float, float]:
    box = "over.getBoundingClientRect()"
    x, y = page.js(f"[sx({of_title(title)}) + {box}.left, sy({of_title(title)}) + {box}.top]")
    return x, y


def test_the_page_opens_without_an_error_and_without_the_network(fresh: browser.Browser) -> None:
    asked = [event["params"]["request"]["url"] for event in fresh.events if event["method"] == "Network.requestWillBeSent"]
    assert [url.rpartition("/")[2] for url in asked] == ["map.html"]
    assert [
        event for event in fresh.events if event["method"] in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
    ] == []
    assert fresh.js("document.title") == "Map of Мой сейф"


def test_points_are_drawn_in_their_folders_colours(fresh: browser.Browser) -> None:
    pixel = f"onDots.getImageData(Math.round(sx({of_title('Теплица')})), Math.round(sy({of_title('Теплица')})), 1, 1).data"
    colour = f"colourTable[folderOf[{of_title('Теплица')}]]"
    assert fresh.js(f"[...{pixel}].slice(0, 3)") == fresh.js(f"{colour}.map(Math.round)")
    fresh.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    fresh.drawn()
    dark = fresh.js(f"[...{pixel}].slice(0, 3)")
    assert dark == fresh.js(f"{colour}.map(Math.round)") == fresh.js("rgb(PALETTES.dark.folders[D.folders.indexOf('Дача')])")
    fresh.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
    fresh.drawn()
    fresh.js("document.querySelector('#legend button').click()")  # the first folder is hidden ...
    fresh.drawn()
    hidden = fresh.js("Array.from({length: N}, (_, s) => s).filter((s) => !shown(s)).map((s) => D.folders[D.folder[s]])")
    assert set(hidden) == {fresh.js("D.folders[0]")}
    assert fresh.js("document.querySelector('#legend button').getAttribute('aria-pressed')") == "false"


def test_pointing_at_a_scene_tells_what_it_is(fresh: browser.Browser) -> None:
    fresh.mouse("mouseMoved", *spot(fresh, "Огурцы"))
    tip = fresh.js("tip.hidden ? '' : tip.innerText")
    assert "Огурцы" in tip
    assert "Дача/Огурцы.md:4" in tip
    assert "2025-06-15" in tip
    fresh.mouse("mouseMoved", 3, 3)
    assert fresh.js("tip.hidden")


def test_a_click_keeps_a_scene_and_offers_its_links_and_obsidian(fresh: browser.Browser) -> None:
    fresh.click(*spot(fresh, "Kayak"))
    assert "Kayak" in fresh.js("panel.innerText")
    assert "Ржаной хлеб" in fresh.js("[...panel.querySelectorAll('section')].find((s) => s.innerText.startsWith('Links to')).innerText")
    links = fresh.js("[...document.querySelectorAll('a')].map((a) => a.getAttribute('href'))")
    assert links == ["obsidian://open?path=%2Fhome%2Fx%2F%D0%9C%D0%BE%D0%B9%20%D1%81%D0%B5%D0%B9%D1%84%2FWork%2FKayak.md"]
    assert fresh.js(f"partners({of_title('Ржаной хлеб')}).into.map(titleOf)") == ["Kayak"]
    fresh.key("Escape")
    assert fresh.js("selected") == -1


def test_the_search_filters_as_one_types_in_every_script(fresh: browser.Browser) -> None:
    fresh.key("/")
    assert fresh.js("document.activeElement.id") == "q"
    for typed, titles in (
        ("ржаной", {"Ржаной хлеб"}),
        ("খিচুড়ি", {"খিচুড়ি"}),
        ("дача огурцы", {"Огурцы"}),
        ("WORK/kay", {"Kayak"}),
        ("qqq", set()),
    ):
        fresh.js("query.select()")
        fresh.call("Input.insertText", text=typed)
        assert set(fresh.js("Array.from({length: N}, (_, s) => s).filter(shown).map(titleOf)")) == titles
        assert bool(fresh.js("panel.querySelectorAll('li').length")) == bool(titles)
    assert fresh.js("$('live').textContent") == "0 scenes match"


def test_a_hostile_title_is_shown_as_it_stands(fresh: browser.Browser) -> None:
    fresh.js(f"select({of_title('</script>')})")
    fresh.mouse("mouseMoved", *spot(fresh, "</script>"))
    assert "<img src=x onerror=window.hacked=1>" in fresh.js("panel.textContent")
    assert "<img src=x onerror=window.hacked=1>" in fresh.js("tip.textContent")
    assert fresh.js("[typeof window.hacked, document.images.length, document.scripts.length]") == ["undefined", 0, 2]


def test_the_map_is_moved_and_zoomed_by_wheel_hand_and_keys(fresh: browser.Browser) -> None:
    x, y = spot(fresh, "Kayak")
    before = fresh.js("scale")
    fresh.mouse("mouseWheel", x, y, deltaX=0, deltaY=-200)
    assert fresh.js("scale") > 1.2 * before
    assert spot(fresh, "Kayak") == pytest.approx((x, y), abs=0.5)  # what is under the pointer stays there
    left = fresh.js("left")
    fresh.mouse("mousePressed", 300, 300, button="left", clickCount=1)
    fresh.mouse("mouseMoved", 340, 310, button="left", buttons=1)
    fresh.mouse("mouseReleased", 340, 310, button="left", clickCount=1)
    assert fresh.js("left") == pytest.approx(left + 40)
    fresh.js("over.focus()")
    fresh.key("0", "Digit0", "0")
    assert fresh.js("scale") == pytest.approx(before)
    left = fresh.js("left")
    fresh.key("ArrowRight")
    assert fresh.js("left") == pytest.approx(left - 70)
    fresh.key("+", "Equal", "+")
    assert fresh.js("scale") > before


def test_scenes_are_reached_by_keys_alone(fresh: browser.Browser) -> None:
    fresh.js("over.focus()")
    fresh.key("n", "KeyN", "n")
    assert fresh.js("selected") == 0
    fresh.key("n", "KeyN", "n")
    fresh.key("p", "KeyP", "p")
    assert fresh.js("selected") == 0
    assert fresh.js("place(0)") in fresh.js("$('live').textContent")
    left = fresh.js("(() => { let low = 0; for (let s = 1; s < N; s++) if (X[s] < X[low]) low = s; select(low); return low })()")
    fresh.key("ArrowRight", modifiers=8)
    assert fresh.js(f"selected !== {left} && X[selected] > X[{left}]")


def test_two_fingers_zoom(fresh: browser.Browser) -> None:
    before = fresh.js("scale")

    def touch(kind: str, *points: tuple[int, int]) -> None:
        fresh.call(
            "Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
        )

    touch("touchStart", (300, 400))
    touch("touchStart", (300, 400), (400, 400))
    for step in range(1, 6):
        touch("touchMove", (300 - 10 * step, 400), (400 + 10 * step, 400))
    touch("touchEnd")
    assert fresh.js("scale") == pytest.approx(2 * before, rel=0.15)


def test_a_single_scene_is_a_map_too(fresh: browser.Browser, tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db") as small:
        put(small, "a.md", "# Alone\n\nOne note about a kayak.\n")
        embedded(small)
        map.build(small, tmp_path / "map.html")
    try:
        fresh.open(tmp_path / "map.html")
        fresh.click(*spot(fresh, "Alone"))
        assert fresh.js("panel.querySelector('h2').innerText") == "Alone"
        assert fresh.js("document.querySelectorAll('a').length") == 0  # no vault is named: nothing to open
        assert fresh.js("$('count').textContent") == "1 scene of 1 note"
        assert errors(fresh) == []
    finally:
        fresh.call("Page.navigate", url="about:blank")  # the last test of the page
