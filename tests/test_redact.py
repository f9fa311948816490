"""Redaction: every kind is caught wherever it stands, prose and ids stay, lines are kept, twice is once, time is linear."""

from __future__ import annotations

import importlib.util
import random
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic_core import SchemaValidator, core_schema

from tests.timing import assert_linear
from vaultllm import config, steps
from vaultllm.config import RedactSettings
from vaultllm.errors import ConfigError
from vaultllm.redact import KINDS, Finding, forms, labels, numbers, redact, sieve

SETTINGS = RedactSettings()
ROOT = Path(__file__).resolve().parents[1]


def _bench() -> ModuleType:
    """benchmarks/redact.py: it makes the planted secrets."""
    spec = importlib.util.spec_from_file_location("bench_redact", ROOT / "benchmarks" / "redact.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


BENCH = _bench()


def clean(text: str) -> str:
    return redact(text, SETTINGS)[0]


def test_there_are_kinds_enough_and_each_is_planted() -> None:
    assert len(KINDS) == len(set(KINDS)) >= 30
    assert set(BENCH.MAKERS) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_planted_secret_is_caught_and_named(kind: str) -> None:
    texts = list(BENCH.planted(kind, 40, seed=7))
    assert [text for text, secret in texts if not BENCH.caught(text, secret, SETTINGS)] == []
    named = sum(kind in {one.kind for one in redact(text, SETTINGS)[1]} for text, _ in texts)
    assert named >= 38, "another kind took it"


PLACES = [
    "{}", "{} in front", "in the middle {} of it", "at the end {}", "{}.", "{},", "{}!", "{}?", "({})", "[{}]", '"{}"', "'{}'", "`{}`",
    "«{}»", "“{}”", "**{}**", "*{}*", "| {} | b |", "| a | {} |", "|{}|", "```\n{}\n```", "~~~yaml\n{}\n~~~", "    {}", "\t{}", "> {}",
    "- {}", "- [ ] {}", "1. {}", "после русского {} текста", "বাংলা লেখার পরে {} আরও", "это {}, и точка", "সে বলল {}।", "\u200b{}",
    "😀 {} 😀", "%%{}%%", "<p>{}</p>", "==({})==", "x:\n{}\ny",
]  # fmt: skip


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("private-key", "aws-secret")])
def test_no_place_hides_a_secret(kind: str) -> None:
    rng = random.Random(kind)
    for place in PLACES:
        written, secret = BENCH.MAKERS[kind](rng)
        while BENCH.is_placeholder(secret):
            written, secret = BENCH.MAKERS[kind](rng)
        text = place.format(written)
        assert BENCH.caught(text, secret, SETTINGS), text


STAYS = """пароль: должен быть длинным
пароль: минимум восемь символов
Пароль — это тайна двоих.
Пароль это секретная строка, которую знает один человек.
пароль от почты нужно сменить
ключ — это идея
Ключ: значение
ключ к пониманию: внимание
токен — это единица текста
токен: 151643
token: "привет"
{"token": "ing", "id": 287}
token_ids: [1, 2, 3]
max_tokens=256
tokens: 512
tokenizer: AutoTokenizer
password is required
password: string
password: str | None = None
password = getpass.getpass()
password=os.environ["DB_PASSWORD"]
password: ${DB_PASSWORD}
secret: ${{ secrets.API_KEY }}
api_key = YOUR_API_KEY
api_key: sk-...
OPENAI_API_KEY=sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
Authorization: Bearer <token>
Authorization: Bearer YOUR_TOKEN_HERE
export RESTIC_PASSWORD_FILE="$HOME/.config/restic/pass"
Password manager: Bitwarden
Secret: the key is patience
The secret is out: they married in spring.
PIN — четыре цифры
пин-код: 4-значный
Секрет прост: муки поменьше, воды побольше
পাসওয়ার্ড: বড় হতে হবে আর সহজ নয়
চাবি হলো ধৈর্য
টোকেন মানে শব্দের টুকরো
login: обязательно
Логин и пароль выдаёт секретарь
key: session-2024-05-12
key="layers.12.attention.weight"
<!-- UID: 8db2f0f0-5565-45b2-89ff-d816f3582685 -->
uid: 8db2f0f0-5565-45b2-89ff-d816f3582685
key: 8db2f0f0-5565-45b2-89ff-d816f3582685
commit 3f786850e387550fdab836ed7e6dc881de23001b
sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
https://chatgpt.com/c/67f1b2c3-0000-8005-9abc-def012345678
https://claude.ai/chat/8db2f0f0-5565-45b2-89ff-d816f3582685
https://chatgpt.com/g/g-p-67f1b2c3d4e5f6a7b8c9-notes/c/67f1b2c3-0000-8005-9abc-def012345678
[[пароль: qwerty12 и другие]]
[[+7 916 123-45-67]]
somebody@example.com and other@mail.example.org
git@github.com:someone/notes.git
![[foto@2x.png]]
icon@3x.png
https://user:password@host/path
npm install package@1.2.3
2024-05-12 10:20:30
12.05.2024-13.05.2024
2025-06-15T06:20:00+03:00
1718000000 1718000000000
ISBN 978-5-17-118366-1
ISBN 5-17-118366-1
версия 10.15.7.1234
8 000 000 000 рублей
+10 000 000 000 рублей
55.755811, 37.617617
телефон Samsung 2024-05-12
https://vk.com/photo89161234567
https://example.com/order/89161234567
4111 1111 1111 1112
1234 5678 9012 3456
DE89 3704 0044 0532 0130 01
СНИЛС 112-233-445 96
ИНН 7707083894
1.234.567.890,00
3.14159265358979323846
0123456789012345678901234567890123456789
the task-oriented, risk-averse disk-based approach
![x](data:image/png;base64,iVBORw0KGgoAKIAIOSFODNN7ABCDEFGHghp_0123456789012345678901234567890123456789==)
$2 - $10 is the price; 10-12 раз; 5-6-7
ключ=«сцепка»
пароль длиной 12 символов
пароль Windows
the pin 13 of the board
пин 7 и пин 12
код двери 5
pass 2 of 3
serial number of the pump
лицензия на 3 года
call me 2024-05-12
звони после 10:30 или в 12:45
backup codes are printed
curl -u user:password https://x.org
mysql -u root -p notes
a:b@1.2.3.4 and 10:20@10.0.0.5""".split("\n")


@pytest.mark.parametrize("line", STAYS)
def test_prose_ids_code_and_placeholders_stay(line: str) -> None:
    for text in (line, f"> {line}", f"a\n{line}\nb"):
        assert redact(text, SETTINGS) == (text, ())


GOES = [
    ("пароль: qwerty12", "пароль: ⟨password⟩"),
    ("Пароль — Qwerty!23 от почты", "Пароль — ⟨password⟩ от почты"),
    ("пароль от вайфая: слон77.", "пароль от вайфая: ⟨password⟩."),
    ("пароль: слон", "пароль: ⟨password⟩"),
    ("**Пароль:** `слонвлесу`", "**Пароль:** `⟨password⟩`"),
    ("- **Password:** hunter2", "- **Password:** ⟨password⟩"),
    ("| пароль | qwerty12 | x |", "| пароль | ⟨password⟩ | x |"),
    ('{"password": "hunter2", "port": 5432}', '{"password": "⟨password⟩", "port": 5432}'),
    ("DB_PASSWORD=s3cr3t", "DB_PASSWORD=⟨password⟩"),
    ("dbPassword: 's3cr3t!'", "dbPassword: '⟨password⟩'"),
    ("логин/пароль: vasya / qwerty12", "логин/пароль: ⟨login⟩ / ⟨password⟩"),
    ('passphrase: "correct horse battery staple"', 'passphrase: "⟨password⟩"'),
    ("পাসওয়ার্ড হলো `abc123`", "পাসওয়ার্ড হলো `⟨password⟩`"),
    ("গোপন চাবি: Xk29dkQ0pL3m", "গোপন চাবি: ⟨password⟩"),
    ("ПИН-код от карты — 4821.", "ПИН-код от карты — ⟨pin⟩."),
    ("api_key: 8db2f0f0-5565-45b2-89ff-d816f3582685", "api_key: ⟨secret⟩"),
    ("https://user:p4ss@word@host/x", "https://user:⟨url-password⟩@host/x"),
    ("звони 8 (4822) 12-34-56 вечером", "звони ⟨phone⟩ вечером"),
    ("https://wa.me/79161234567", "https://wa.me/⟨phone⟩"),
    ("ফোন: ০১৭১১-১২৩৪৫৬।", "ফোন: ⟨phone⟩।"),
    ("+7 916 123-45-67 2024 год", "⟨phone⟩ 2024 год"),
    ("тел. 8-916-123-45-67/8-903-765-43-21", "тел. ⟨phone⟩/⟨phone⟩"),
    ("карта 4111 1111 1111 1111 до 12/27", "карта ⟨card⟩ до 12/27"),
    ("DE89 3704 0044 0532 0130 00 OR CASH", "⟨iban⟩ OR CASH"),
    ('text = "first\\nghp_0a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R"', 'text = "first\\n⟨github⟩"'),
    ("[письмо](mailto:vasya@mail.ru)", "[письмо](mailto:⟨email⟩)"),
]


@pytest.mark.parametrize(("text", "expected"), GOES)
def test_only_the_secret_goes(text: str, expected: str) -> None:
    assert clean(text) == expected


# Written by hand, as people write to themselves; not made by the benchmark.
BY_HAND = r"""Wi-Fi дома: сеть Keenetic-4455, пароль R7hq2Lmx|R7hq2Lmx
пароль 4yhnMKO0 не менять|4yhnMKO0
пин 4821|4821
пин карты 4821|4821
домофон 12к4587|12к4587
код от подъезда 45К1289|45К1289
код домофона: 1289#|1289#
pass: Zima2023|Zima2023
пасс - zima_2023|zima_2023
mail vasya@yandex.ru pass Qaz123wsx|Qaz123wsx
login: admin password: admin123|admin123
root:Hj7&kk2p@192.168.1.1|Hj7&kk2p
ssh root@10.0.0.5 пароль root1234|root1234
новый пароль (с 12 мая): Lenta-88-more|Lenta-88-more
Пароль на архив - медведь2019|медведь2019
password for router is Tplink#4412|Tplink#4412
my password's Tr0ub4dor|Tr0ub4dor
pw: hunter22|hunter22
pwd=hunter22;uid=sa|hunter22
Server=db;User Id=sa;Password=Secr3t!1;|Secr3t!1
mysql -u root -pS3cret99 notes|S3cret99
curl -u vasya:s3cretPass https://x.ru|s3cretPass
set PGPASSWORD=Gr4nit99|Gr4nit99
"passwd" : "Gr4nit99"|Gr4nit99
<password>Gr4nit99</password>|Gr4nit99
password=Gr4nit99&user=1|Gr4nit99
পাসওয়ার্ড দিয়েছি abc12345|abc12345
ওয়াইফাই পাসওয়ার্ড - shapla2020|shapla2020
আমার পিন ৪৮২১|৪৮২১
বিকাশ পিন: 48215|48215
ফোন ০১৭১১১২৩৪৫৬|০১৭১১১২৩৪৫৬
মায়ের নম্বর 01911-334455|01911-334455
позвони на 9161234567|9161234567
мамин номер: 8(916)123 45 67|123 45 67
паспорт серия 4508 номер 123456 выдан|123456
СНИЛС: 11223344595|11223344595
снилс 112-233-445-95|112-233
API ключ OpenWeather: 4f3c2b1a09d8e7f6a5b4c3d2e1f00912|4f3c2b1a
WEATHER_KEY=4f3c2b1a09d8e7f6a5b4c3d2e1f00912|4f3c2b1a
X-Api-Key: 4f3c2b1a09d8e7f6a5b4c3d2e1f00912|4f3c2b1a
токен: y0_AgAAAABkZ1x2AAhJ3QAAAADZx1234567890abcdefghi|AgAAAAB
бот токен 712345678:AAHk3j4h5kj6h7kj8h9kj0hkj1hkj2hkj3h|AAHk
секрет: 3kTMd-1xVbQ-9mmPz|3kTMd
2FA backup codes: 8371-2938 1234-9987|8371-2938
Recovery code: ABCD-EF12-9XKQ-22PL|ABCD-EF12
License: XK2P9-77HQM-4TRW8-PLM3N-QQ2ZX|XK2P9
госуслуги: логин 89161234567 пароль Ljvjdjq_99|Ljvjdjq_99
пароль поменял на kotiki2024!|kotiki2024
wi-fi "Dacha" ключ сети 77889900aa|77889900aa
GITHUB_TOKEN="ghp_0a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R"|ghp_0a1B
export AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMIK7MDENGbPxRfiCYzz9KEYabcdef|wJalrXUt
my pin is 9034, don't tell|9034
the alarm code is 5521|5521
код сейфа 7734|7734
код из смс 482913|482913
номер карты 4276 3800 1234 5672|4276 3800
IBAN: GB29NWBK60161331926819|GB29NWBK
ivan.petrov@yandex.ru|ivan.petrov
тг @ivan, тел +79031234567|+79031234567
mobile: 0044 7911 123456|7911 123456
call Priya on 98300 12345|98300 12345
বাবার ফোন +৮৮০১৭১১-২২৩৩৪৪|২২৩৩৪৪
ব্যাংক পিন ৭৩৫১|৭৩৫১
ফেসবুক পাসওয়ার্ড: Amar@Desh71|Amar@Desh71
NID 1990123456789|1990123456789
паспорт РФ 4510 987654, выдан|987654
СНИЛС 11223344595|11223344595
conn = psycopg2.connect("dbname=x user=y password=Q7pLm2zz")|Q7pLm2zz
spring.datasource.password=Q7pLm2zz|Q7pLm2zz
{"apiKey":"AIzaSyA1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q"}|AIzaSy
Authorization: Token 9944b09199c62bcf9418ad846dd0e4bbdfc6ee4b|9944b091
?access_token=Zx81kQ02mNv77pLs&v=5.131|Zx81kQ02
ssh-keygen passphrase was Zima-blizko-7|Zima-blizko-7
кодовое слово: берёза|берёза
-----BEGIN OPENSSH PRIVATE KEY----- b3BlbnNzaC1rZXktdjEAAAAA|b3BlbnNza
otpauth://totp/x?secret=JBSWY3DPEHPK3PXP|JBSWY3DP
license key: 7YH2-KK91-PLQ8-00XM|7YH2
bot: 5566778899:AAF3kd92kdLs02ldPq8ZmXnv73hsKq1LsQw|AAF3kd
""".strip().split("\n")


@pytest.mark.parametrize("row", BY_HAND)
def test_what_people_write_to_themselves_is_caught(row: str) -> None:
    text, _, secret = row.rpartition("|")
    assert secret not in clean(text)


def test_checksums_agree_with_published_examples() -> None:
    assert [numbers.is_verhoeff(code) for code in ("2363", "2364")] == [True, False]
    assert [numbers.is_snils(code) for code in ("11223344595", "11223344596")] == [True, False]
    assert [numbers.is_inn(code) for code in ("7707083893", "7707083894", "500100732259", "500100732258")] == [True, False, True, False]
    assert clean("GB29 NWBK 6016 1331 9268 19") == "⟨iban⟩"
    assert clean("378282246310005 и 6011-1111-1111-1117") == "⟨card⟩ и ⟨card⟩"


PEM = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nMIIabc/def+\nabcd==\n-----END RSA PRIVATE KEY-----"


def test_a_private_key_goes_line_by_line() -> None:
    text, findings = redact(f"a\nkey: {PEM} b\nc", SETTINGS)
    mark = "⟨private-key⟩"
    assert text == f"a\nkey: {mark}\n{mark}\n\n{mark}\n{mark}\n{mark} b\nc"
    assert findings == (Finding("private-key", 2),)


def test_a_private_key_without_its_end_goes_as_far_as_it_looks_like_one() -> None:
    begin = "-----BEGIN PRIVATE KEY-----"
    assert clean(f"> {begin}\n> MIIabc\n> q1+/\n\nТекст дальше.") == "> ⟨private-key⟩\n> ⟨private-key⟩\n> ⟨private-key⟩\n\nТекст дальше."
    body = "b3BlbnNzaC1rZXktdjEAAAAABG5vbmU\nAAAAB3NzaC1yc2E="
    assert clean(f"{body}\nthe end.") == "⟨private-key⟩\n⟨private-key⟩\nthe end."
    assert clean(f"{begin}\nMIIa\n{PEM}") == "\n".join(["⟨private-key⟩"] * 4 + [""] + ["⟨private-key⟩"] * 3)


def test_a_finding_is_a_kind_and_a_line_and_never_the_secret() -> None:
    _, findings = redact("a\nпароль: Zk3-Qwerty и vasya@mail.ru\n\nb vasya@mail.ru", SETTINGS)
    assert findings == (Finding("password", 2), Finding("email", 2), Finding("email", 4))
    assert not re.search("Zk3|vasya", repr(findings))


def test_a_kind_that_is_off_and_what_is_allowed_stay() -> None:
    text = "vasya@mail.ru 8 916 123-45-67"
    assert redact(text, RedactSettings(off=("email",)))[0] == "vasya@mail.ru ⟨phone⟩"
    assert redact(text, RedactSettings(allow=(r"@mail\.ru$", "^8 916")))[0] == text
    assert redact(text, RedactSettings(allow=("@other",)))[0] == "⟨email⟩ ⟨phone⟩"


@pytest.mark.parametrize(
    ("body", "line", "part"),
    [
        ('vault_id = "v"\n[redact]\nallow = ["ok", "(broken"]\n', 3, "no regular expression"),
        ('vault_id = "v"\n\n[redact]\noff = ["emial"]\n', 4, "Did you mean 'email'"),
    ],
)
def test_a_wrong_setting_is_an_error_with_its_line(tmp_path: Path, body: str, line: int, part: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(body, encoding="utf-8")
    with pytest.raises(ConfigError, match=re.escape(part)) as caught:
        config.load_settings(path)
    assert caught.value.line == line


EVERYWHERE = """---
title: "Итог: {written}"
key: "{written}"
---
# {written} и насос

Вода стояла низко, и насос молчал весь день. {written} %%{written}%%

## Внутри {written}

| a | {written} |
|---|---|
| Тут #{tag} | вода |
"""


def test_no_planted_secret_is_anywhere_in_the_state(tmp_path: Path) -> None:
    secrets = []
    kinds = [kind for kind in KINDS if kind != "pin"]  # so short that it stands in any file
    for kind in kinds:
        rng = random.Random(kind)
        written, secret = BENCH.MAKERS[kind](rng)
        while BENCH.is_placeholder(secret) or len(secret) < 8:
            written, secret = BENCH.MAKERS[kind](rng)
        tag = secret if clean(secret).startswith("⟨") and " " not in secret else "вода"
        if "\n" in written:
            note = f"Вода стояла низко.\n\n```\n{written}\n```\n"
        else:
            note = EVERYWHERE.format(written=written.replace('"', ""), tag=tag)
        chat = f">[!nexus_user] **User** - 16.06.2025 at 21:34\n> Запомни: {written.splitlines()[-1]}\n<!-- UID: {kind} -->\n"
        (tmp_path / "vault").mkdir(exist_ok=True)
        (tmp_path / "vault" / f"{kind}.md").write_text(note, "utf-8")
        (tmp_path / "vault" / f"{kind} chat.md").write_text(chat, "utf-8")
        secrets.append((kind, secret.splitlines()[0]))
    job = steps.Job(config.init_workspace(tmp_path / "vault", str(tmp_path / "state")))
    assert steps.ingest(job)["notes"]["parsed"] == 2 * len(kinds)
    job.close()
    stored = b"".join(path.read_bytes() for path in (tmp_path / "state").rglob("*") if path.is_file())
    assert "насос молчал".encode() in stored, "the state holds the notes"
    assert [(kind, secret) for kind, secret in secrets if secret.encode() in stored] == []


PIECES = st.one_of(
    st.sampled_from(
        'пароль password pass token ключ api_key логин/пароль логин пин pin পাসওয়ার্ড это is — - : = := | ` " « » ( ) [[ ]] ** _ / @ . '
        ", ; ! \\n + 8 +7 916 123-45-67 4111 1111 vasya@mail.ru a@b :// https://u:p1w@h sk-proj- ghp_ AKIA eyJ xoxb- ⟨email⟩ ⟨ ⟩ "
        "b3BlbnNzaC1rZXktdjE data:image/png;base64, паспорт инн тел. seed Bearer Basic dXNlcjpwYXNz".split()
    ),
    st.just("-----BEGIN PRIVATE KEY-----"),
    st.sampled_from([" ", "\n", "  ", "\t"]),
    st.from_regex(r"[A-Za-z0-9_\-]{1,40}", fullmatch=True),
    st.from_regex(r"[0-9 ()\-.]{1,20}", fullmatch=True),
    st.text(max_size=8),
    st.sampled_from([written for kind in KINDS for written, _ in BENCH.planted(kind, 1, seed=3)]),
)


@given(st.lists(PIECES, max_size=25).map("".join))
@example("логин/пароль|-----BEGIN PRIVATE KEY-----")
@example("> паспорт: 45 57 059898,000000000")
@example("логин/пароль: qwerty12")
@example("İ пароль: qwerty12 İ")
@example("пароль: см.vasya@mail.ru a123:vasya@mail.ru(x)")
@example(PEM.replace("\n", "\r\n"))
def test_twice_is_once_and_the_lines_stay(text: str) -> None:
    once, findings = redact(text, SETTINGS)
    assert once.count("\n") == text.count("\n")
    assert (once == text) == (not findings)
    rows = once.split("\n")
    assert all(f"⟨{one.kind}⟩" in rows[one.line - 1] for one in findings)
    assert redact(once, SETTINGS)[0] == once


def everything(text: str) -> sieve.Held:
    return sieve.Held(True, True, True)


def searched_in_full(text: str) -> tuple[str, tuple[Finding, ...]]:
    """`redact` when nothing is ruled out beforehand."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sieve, "look", everything)
        return redact(text, SETTINGS)


TABLES = (labels.LABELS, labels.NUMBERED, labels.SIGNLESS, labels.SEEDS)
LABEL = st.sampled_from([stem + rest for table in TABLES for stem, rest, _ in table]).flatmap(
    lambda row: st.from_regex(row, fullmatch=True)
)
SPELLED = st.one_of(LABEL, LABEL, LABEL.map(str.upper), LABEL.map(str.capitalize), LABEL.map(lambda label: label.replace("k", "\u212a")))
BEFORE = st.sampled_from(
    ["", " ", "\n", "api ", "api_", "my", "db", "_", "к", "1", "(", '"', "секретный ", "⟨", "ঙ", "\\n", "é", "api\n", "٣"]
)
SIGN = st.one_of(
    st.sampled_from(
        [":", "=", ": ", " — ", " - ", " ", "", " is ", " is : ", " হলো ", "হলো ", " := ", " => ", " -> ", "：", '": "', "'s "]
    ),
    st.sampled_from(["_x=", "2: ", ") - ", " (a b): ", " от почты: ", "** — `", " | ", ">", " это :", " for the router is ", " — «"]),
)
VALUES = """qwerty12|4821|12к45|- 1234|--1-2-3|a b c1d2e3»|слон|abcdefabcdefabcdef|sha256:abcdefabc|sha٣٣٣٣٣٣٣٣:abcdefg|১২৩৪|٣٤٥٦|1289#
aB3dE5fG7hK9|8db2f0f0-5565-45b2-89ff-d816f3582685|ABCDEF-ab12-cd34|77889900aa|+7 916 123-45-67|45 10 987654|ivan@x!y|4yhnMKO0
correct horse battery staple” b|anna / qwerty12|river letter garden stone winter orange bridge copper silent market planet window"""
VALUE = st.sampled_from(re.split(r"[|\n]", VALUES))
PLANTED = st.sampled_from([text for kind in KINDS for text, _ in BENCH.planted(kind, 6, seed=11)])


@settings(max_examples=300)
@given(st.one_of(st.tuples(BEFORE, SPELLED, SIGN, VALUE).map("".join), PLANTED))
@example("пин: -1234")
@example("MY_KEY Xk29dkQ0pL3m\nx: y")
@example("секрет: x7y8k2m9")
@example("my\u212aey: aB3dE5fG7hK9")
@example("curl https://x.org -u anna:s3cretPass")
@example("token is : aB3dE5fG7hK9")
@example("টোকেন হলো aB3dE5fG7hK9")
@example("api\nkey Xk29dkQ0pL3m\nx: y")
@example("8-(4822)-1-23-45")
@example("секрет: sha٣٣٣٣٣٣٣٣:abcdefg")
@example("тел.: номер: (916) 123 45 67")
@example("паспорт, выдан давно: 45 № 1234567")
def test_a_text_that_the_sieve_rules_out_holds_nothing(text: str) -> None:
    assert redact(text, SETTINGS) == searched_in_full(text)


def test_the_sieve_knows_every_form_of_a_token() -> None:
    """Each alone in its text: another's form does not let it through."""
    rng = random.Random(3)
    for kind in KINDS:
        for written, _ in (BENCH.MAKERS[kind](rng) for _ in range(20)):
            for text in (written, f"({written})", f'a\\n{written}"', f"слово\n> {written}"):
                held = sieve.look(text)
                assert held.tokens or not list(forms.tokens(text)), text
                assert redact(text, SETTINGS) == searched_in_full(text)


def test_the_sieve_folds_every_letter_that_python_lowers_into_a_label_s() -> None:
    letters = {letter for table in TABLES for stem, _, _ in table for letter in stem}
    odd = [chr(code) for code in range(0x110000) if chr(code).lower() in letters and chr(code) not in letters]
    assert {"K", "П", "\u212a"} <= set(odd)
    for letter in odd:
        assert SchemaValidator(core_schema.str_schema(pattern=f"(?i)^{letter.lower()}$")).isinstance_python(letter)


def test_a_lone_surrogate_hides_nothing() -> None:
    assert clean("\ud800 пароль: qwerty12") == "\ud800 пароль: ⟨password⟩"
    assert sieve.look("\ud800") == everything("")


def test_most_texts_are_ruled_out_at_once() -> None:
    texts = [path.read_text("utf-8") for path in ROOT.joinpath("vault_example").rglob("*.md")]
    assert sum(any(sieve.look(text)) for text in texts) < len(texts) / 4


BOMBS: dict[str, Callable[[int], str]] = {
    "letters": lambda n: "a" * n,
    "digits": lambda n: "1" * n,
    "digits apart": lambda n: "8 " * (n // 2),
    "plus": lambda n: "+7" * (n // 2),
    "labels": lambda n: "password=" * (n // 9),
    "labels apart": lambda n: "пароль: " * (n // 8),
    "labels of values": lambda n: "token: abc_def-" * (n // 15),
    "labels of all kinds": lambda n: "token пароль pin логин телефон seed curl pan паспорт secret " * (n // 61),
    "labels and numbers": lambda n: "тел 1 key a1 код 2 " * (n // 19),
    "at": lambda n: "a@" * (n // 2),
    "dots": lambda n: "a@" + "a." * (n // 2),
    "jwt": lambda n: "eyJ-" * (n // 4),
    "jwt dots": lambda n: "eyJhbGciOi.eyJhbGciOi" * (n // 21),
    "marks": lambda n: "sk-ghp_t1." * (n // 10),
    "begin": lambda n: "-----BEGIN PRIVATE KEY-----\n" * (n // 28),
    "begin and text": lambda n: ("-----BEGIN PRIVATE KEY-----" + "A" * 60 + "\n") * (n // 88),
    "urls": lambda n: "://a:" * (n // 5),
    "pictures": lambda n: "data:image/png;base64," * (n // 22) + "vasya@mail.ru",
    "wikilinks": lambda n: "[[a" * (n // 3) + "vasya@mail.ru]]",
    "iban": lambda n: "DE89" * (n // 4),
    "hex": lambda n: "0123456789abcdef-" * (n // 17),
    "discord": lambda n: ("M" + "a" * 24 + ".") * (n // 26),
    "bearer": lambda n: "Bearer " * (n // 7),
    "heroku": lambda n: "heroku " * (n // 7) + "1" * 30,
    "passport": lambda n: "паспорт 12 34 " * (n // 14),
    "seed": lambda n: "seed: " + "abc " * (n // 4),
    "commands": lambda n: "curl -u a: mysql -p " * (n // 20),
    "no sign": lambda n: "пароль от a1b2 " * (n // 15),
    "codes": lambda n: "backup codes: " + "ab12-cd34 " * (n // 10),
    "hosts": lambda n: "a:b12@1.1.1." * (n // 12),
    "found": lambda n: "vasya@mail.ru пароль: qwerty12 +7 916 123-45-67\n" * (n // 48),
}


@pytest.mark.parametrize("name", BOMBS)
def test_time_is_linear_in_hostile_text(name: str) -> None:
    assert_linear(BOMBS[name], lambda text: redact(text, SETTINGS), 40_000)


def test_an_ordinary_note_costs_next_to_nothing() -> None:
    text = "The well was low this morning and the garden needs water before noon; we wrote a letter. " * 23
    redact(text, SETTINGS)
    times = []
    for _ in range(20):
        start = time.process_time()
        redact(text, SETTINGS)
        times.append(time.process_time() - start)
    assert len(text) > 2_000
    assert min(times) < 0.0005  # 0.03 ms measured; room for a busy machine


def test_the_example_vault_holds_nothing_to_redact() -> None:
    found = [
        f"{path.name}:{one.line} {one.kind}"
        for path in ROOT.joinpath("vault_example").rglob("*.md")
        for one in redact(path.read_text("utf-8"), SETTINGS)[1]
    ]
    assert found == []


def test_what_is_found_alone_is_found_among_other_texts() -> None:
    """A note is looked at once, all its texts joined: nothing beside a secret may hide it there."""
    rng = random.Random(5)
    beside = [
        "слово и дело",
        "[[",
        "]]",
        "data:image/png;base64,AAAA",
        "```",
        "-----BEGIN",
        "пароль",
        "key:",
        "https://x/",
        "@",
        "⟨",
        "⟩",
        "<!--",
    ]
    for kind in BENCH.MAKERS:
        for text, _ in BENCH.planted(kind, 5, 7):
            texts = [*rng.choices(beside, k=2), text, *rng.choices(beside, k=2)]
            assert not redact(text, SETTINGS)[1] or redact("\n\n".join(texts), SETTINGS)[1], (kind, texts)
