"""Redaction: recall per kind on planted secrets, false positives on clean text, seconds per MB; beside detect-secrets.

    python benchmarks/redact.py [--clean FOLDER] [--each 60] [--list]

The secrets are drawn by a seed with the forms and checksums of real ones, and put into Russian, Bengali and English
sentences: first, in the middle and last on a line, in table cells, quotes, backticks, fences and calls. A secret counts
as caught when nothing of it is left. Clean text is `vault_example` and, with --clean, any folder of notes; every finding
there counts as false unless it stands in TRUE below. `pip install detect-secrets` adds the peer's column.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import random
import re
import string
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from vaultllm.config import RedactSettings
from vaultllm.redact import KINDS, redact
from vaultllm.redact.labels import is_placeholder
from vaultllm.redact.numbers import is_inn, is_snils, is_verhoeff

LOWER, UPPER, DIGITS = string.ascii_lowercase, string.ascii_uppercase, string.digits
WORD = LOWER + UPPER + DIGITS
URLSAFE = WORD + "-_"
BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
HEX = "0123456789abcdef"
NAMES = "anna ivan rahim priya john olga karim maria petrov tanvir".split()
WORDS = (
    "river letter garden stone winter orange bridge copper silent market planet window engine basket shadow velvet ladder tunnel".split()
)

Rng = random.Random
Secret = tuple[str, str]
"""(what is written, the secret in it)."""


def chars(rng: Rng, alphabet: str, length: int) -> str:
    """Letters drawn by chance; long ones hold a digit, as good as always in a real token."""
    drawn = "".join(rng.choice(alphabet) for _ in range(length - 1))
    return drawn + rng.choice([letter for letter in alphabet if letter.isdigit()] or alphabet)


def digits(rng: Rng, length: int) -> str:
    return "".join(rng.choice(DIGITS) for _ in range(length))


def plain(form: str) -> Callable[[Rng], Secret]:
    """A maker from a form: `{w36}` 36 letters and digits, `u` also - and _, `h` hex, `d` digits, `U` capitals and digits, `b` base64."""
    kinds = {"w": WORD, "u": URLSAFE, "h": HEX, "d": DIGITS, "U": UPPER + DIGITS, "b": WORD + "+/", "c": BASE58}

    def make(rng: Rng) -> Secret:
        parts = form.replace("}", "{").split("{")
        secret = "".join(part if place % 2 == 0 else chars(rng, kinds[part[0]], int(part[1:])) for place, part in enumerate(parts))
        return secret, secret

    return make


def inside(before: str, form: str, after: str = "") -> Callable[[Rng], Secret]:
    """A maker of a secret that stands within a longer piece."""
    make = plain(form)

    def made(rng: Rng) -> Secret:
        secret = make(rng)[0]
        return before + secret + after, secret

    return made


def anyof(*makers: Callable[[Rng], Secret]) -> Callable[[Rng], Secret]:
    return lambda rng: rng.choice(makers)(rng)


def private_key(rng: Rng) -> Secret:
    name = rng.choice(["RSA ", "EC ", "OPENSSH ", "", "ENCRYPTED ", "PGP "])
    block = " BLOCK" if name == "PGP " else ""
    body = "\n".join(chars(rng, WORD + "+/", 64) for _ in range(rng.randint(3, 12)))
    return f"-----BEGIN {name}PRIVATE KEY{block}-----\n{body}\n-----END {name}PRIVATE KEY{block}-----", body


def jwt(rng: Rng) -> Secret:
    head = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').decode().rstrip("=")
    body = base64.urlsafe_b64encode(f'{{"sub":"{rng.randrange(10**10)}","iat":{rng.randrange(10**9)}}}'.encode()).decode().rstrip("=")
    token = f"{head}.{body}.{chars(rng, URLSAFE, 43)}"
    return token, token


def basic(rng: Rng) -> Secret:
    token = base64.b64encode(f"{rng.choice(NAMES)}:{chars(rng, WORD, 12)}".encode()).decode()
    return f"Authorization: Basic {token}", token


def url(rng: Rng) -> Secret:
    secret = password(rng)[1].replace("@", "a").replace("/", "b")
    scheme, host = rng.choice(
        [("https", "git.host.ru/repo"), ("postgres", "db:5432/notes"), ("mongodb+srv", "cluster0.mongo.net"), ("redis", "10.0.0.2:6379")]
    )
    return f"{scheme}://{rng.choice(NAMES)}:{secret}@{host}", secret


def with_check(rng: Rng, length: int, right: Callable[[str], bool], alphabet: str = DIGITS) -> str:
    """Digits whose checks hold: drawn until they do."""
    while True:
        drawn = "".join(rng.choice(alphabet) for _ in range(length))
        if right(drawn) and len(set(drawn)) > 3:
            return drawn


def grouped(rng: Rng, digits: str, sizes: tuple[int, ...]) -> str:
    sign = rng.choice([" ", "-"])
    pieces, at = [], 0
    for size in sizes:
        pieces.append(digits[at : at + size])
        at += size
    return sign.join(pieces)


def luhn_digit(head: str) -> str:
    doubled = sum(sum(divmod(2 * int(digit), 10)) for digit in head[::-2]) + sum(map(int, head[-2::-2]))
    return str(-doubled % 10)


def card(rng: Rng) -> Secret:
    first, length = rng.choice(
        [("4", 16), ("5" + rng.choice("12345"), 16), ("220" + rng.choice("01234"), 16), ("37", 15), ("62", 16), ("6011", 16)]
    )
    head = first + "".join(rng.choice(DIGITS) for _ in range(length - 1 - len(first)))
    digits = head + luhn_digit(head)
    shown = digits if rng.random() < 0.4 else grouped(rng, digits, (4, 6, 5) if length == 15 else (4, 4, 4, 4))
    return shown, shown


def iban(rng: Rng) -> Secret:
    country, length = rng.choice([("DE", 22), ("GB", 22), ("FR", 27), ("NL", 18), ("KZ", 20), ("ES", 24)])
    body = (chars(rng, UPPER, 4) if country in ("GB", "NL") else "") + chars(rng, DIGITS, length)
    body = body[: length - 4]
    number = int("".join(str(int(letter, 36)) for letter in body + country + "00"))
    code = f"{country}{98 - number % 97:02d}{body}"
    shown = code if rng.random() < 0.5 else " ".join(code[at : at + 4] for at in range(0, length, 4))
    return shown, shown


PHONES = """+7 9## ###-##-##|+7(9##)#######|+79#########|8 (9##) ###-##-##|8-9##-###-##-##|89#########|8 (4##) ### ## ##|+880 17##-######
018##-######|017########|+91 9#### #####|9#### #####|+44 20 7### ####|+1 (415) ###-####|(415) ###-####|+49 30 ########|+33 6 ## ## ## ##
০১৭########"""


def phone(rng: Rng) -> Secret:
    form = rng.choice(re.split(r"[|\n]", PHONES))
    shown = re.sub("#", lambda _: rng.choice(DIGITS), form)
    if form.startswith("০"):
        shown = shown.translate(str.maketrans(DIGITS, "০১২৩৪৫৬৭৮৯"))
    return shown, shown


def email(rng: Rng) -> Secret:
    host = rng.choice(["mail.ru", "gmail.com", "ya.ru", "uni.ac.bd", "почта.рф"])
    shown = f"{rng.choice(NAMES)}{rng.choice(['.', '_', '', '+'])}{chars(rng, LOWER + DIGITS, 4)}@{host}"
    return shown, shown


def password(rng: Rng) -> Secret:
    word = rng.choice(WORDS)
    secret = rng.choice(
        [
            f"{word}{rng.randrange(10, 9999)}",
            chars(rng, WORD, rng.randint(8, 16)),
            f"{word.capitalize()}!{rng.randrange(100)}x",
            chars(rng, WORD + "!@$%^*", 12),
            f"{rng.randrange(10**5, 10**8)}",
            f"{word[:4]}@{word[4:]}{rng.randrange(1990, 2020)}",
        ]
    )
    label = rng.choice("пароль,Пароль,password,Password,пароль от почты,পাসওয়ার্ড,pwd,pass,пароль от wi-fi".split(","))
    return f"{label}: {secret}", secret


def labelled(
    labels: str, form: Callable[[Rng], str], signs: tuple[str, ...] = (": ", "=", " = ", " - ", " — ", " это ", " is ")
) -> Callable[[Rng], Secret]:
    def made(rng: Rng) -> Secret:
        secret = form(rng)
        return f"{rng.choice(labels.split(','))}{rng.choice(signs)}{secret}", secret

    return made


def passphrased(rng: Rng) -> str:
    return chars(rng, WORD + "!#%+", 14)


def pan(rng: Rng) -> str:
    return "".join(rng.choice(UPPER) for _ in range(3)) + rng.choice("PCHF") + rng.choice(UPPER) + chars(rng, DIGITS, 4) + rng.choice(UPPER)


def wallet(rng: Rng) -> Secret:
    if rng.random() < 0.5:
        phrase = " ".join(rng.choice(WORDS) for _ in range(rng.choice([12, 24])))
        return f"{rng.choice(['seed phrase', 'сид-фраза', 'mnemonic'])}: {phrase}", phrase
    data = b"\x80" + rng.randbytes(32) + b"\x01"
    data += hashlib.sha256(hashlib.sha256(data).digest()).digest()[:4]
    number, code = int.from_bytes(data, "big"), ""
    while number:
        number, rest = divmod(number, 58)
        code = BASE58[rest] + code
    return code, code


def aws(rng: Rng) -> Secret:
    secret = chars(rng, WORD + "+/", 40)
    return f"aws_access_key_id = AKIA{chars(rng, UPPER + '234567', 16)}\naws_secret_access_key = {secret}", secret


MAKERS: dict[str, Callable[[Rng], Secret]] = {
    "private-key": private_key,
    "anthropic": plain("sk-ant-api03-{u93}AA"),
    "openrouter": plain("sk-or-v1-{h64}"),
    "openai": anyof(plain("sk-proj-{u120}"), plain("sk-{w20}T3BlbkFJ{w20}"), plain("sk-svcacct-{u60}"), plain("sk-{h32}")),
    "github": anyof(*(plain(f"gh{kind}_{{w36}}") for kind in "pousr"), plain("github_pat_{w22}_{w59}")),
    "gitlab": anyof(plain("glpat-{u20}"), plain("gldt-{u20}"), plain("glrt-{u20}")),
    "slack": anyof(plain("xoxb-{d12}-{d12}-{w24}"), plain("xoxp-{d12}-{d12}-{d12}-{h32}"), plain("xapp-1-A{U10}-{d13}-{h64}")),
    "slack-webhook": inside("https://hooks.slack.com/services/", "T{U8}/B{U8}/{w24}"),
    "aws-key": anyof(plain("AKIA{U16}"), plain("ASIA{U16}")),
    "aws-secret": aws,
    "google": anyof(plain("AIza{u35}"), plain("GOCSPX-{u28}"), plain("ya29.{u80}")),
    "gcp": inside('"type": "service_account", "private_key_id": "', "{h40}", '"'),
    "azure": anyof(inside("DefaultEndpointsProtocol=https;AccountName=notes;AccountKey=", "{b86}=="), plain("{w3}8Q~{w34}")),
    "azure-sas": inside("https://notes.blob.core.windows.net/c?sv=2022-11-02&se=2030-01-01&sp=r&sig=", "{w43}%3D"),
    "stripe": anyof(plain("sk_live_{w24}"), plain("rk_live_{w24}"), plain("whsec_{w32}"), plain("sk_test_{w24}")),
    "telegram-bot": plain("71{d8}:AA{u33}"),
    "discord": plain("MT{w22}.{w6}.{u38}"),
    "discord-webhook": inside("https://discord.com/api/webhooks/", "11{d16}/{u68}"),
    "twilio": anyof(plain("SK{h32}"), plain("AC{h32}")),
    "sendgrid": plain("SG.{u22}.{u43}"),
    "mailgun": anyof(plain("key-{h32}"), plain("{h32}-{h8}-{h8}")),
    "mailchimp": plain("{h32}-us21"),
    "npm": anyof(plain("npm_{w36}"), inside("//packages.example.com/:_authToken=", "{w36}")),
    "pypi": plain("pypi-AgEIcHlwaS5vcmc{u120}"),
    "huggingface": plain("hf_{w34}"),
    "digitalocean": anyof(plain("dop_v1_{h64}"), plain("doo_v1_{h64}")),
    "heroku": anyof(plain("HRKU-{u60}"), inside("HEROKU_API_KEY=", "{h8}-{h4}-{h4}-{h4}-{h12}")),
    "yandex": anyof(plain("AQVN{u36}"), plain("y0_AgAAAA{u50}"), plain("t1.{u100}.{u86}")),
    "vk": plain("vk1.a.{u180}"),
    "groq": plain("gsk_{w52}"),
    "xai": plain("xai-{w80}"),
    "perplexity": plain("pplx-{w48}"),
    "replicate": plain("r8_{w37}"),
    "notion": anyof(plain("ntn_{w46}"), plain("secret_{w43}")),
    "linear": plain("lin_api_{w40}"),
    "shopify": plain("shpat_{h32}"),
    "docker": plain("dckr_pat_{u27}"),
    "figma": plain("figd_{u40}"),
    "airtable": plain("pat{w14}.{h64}"),
    "grafana": plain("glsa_{w32}_{h8}"),
    "databricks": plain("dapi{h32}"),
    "vault": plain("hvs.{u95}"),
    "supabase": plain("sbp_{h40}"),
    "postman": plain("PMAK-{h24}-{h34}"),
    "age": plain("AGE-SECRET-KEY-1{U58}"),
    "jwt": jwt,
    "wallet": wallet,
    "basic-auth": basic,
    "bearer": anyof(inside("Authorization: Bearer ", "{u40}"), inside("curl -H 'Authorization: Bearer ", "{w32}", "'")),
    "url-password": url,
    "card": card,
    "iban": iban,
    "snils": labelled("СНИЛС,снилс,СНИЛС мамы", lambda rng: _snils(rng)),
    "passport": anyof(
        labelled("паспорт,Паспорт серия,паспортные данные", lambda rng: f"45 {digits(rng, 2)} {digits(rng, 6)}", (": ", " ", " — ")),
        labelled("passport,passport no,পাসপোর্ট,загранпаспорт", lambda rng: rng.choice(["75", "AB"]) + digits(rng, 7), (": ", " № ")),
    ),
    "inn": labelled("ИНН,инн", lambda rng: with_check(rng, rng.choice([10, 12]), is_inn), (": ", " ", " — ")),
    "aadhaar": labelled("Aadhaar,aadhaar number,আধার", lambda rng: grouped(rng, with_check(rng, 12, is_verhoeff), (4, 4, 4)), (": ", " - ")),
    "pan": labelled("PAN,PAN card,প্যান", pan, (": ", " ", " - ")),
    "nid": labelled("NID,nid number,এনআইডি,জাতীয় পরিচয়পত্র নম্বর", lambda rng: digits(rng, rng.choice([10, 13, 17])), (": ", " ")),
    "ssn": labelled("SSN,social security number", lambda rng: f"{digits(rng, 3)}-{digits(rng, 2)}-{digits(rng, 4)}", (": ", " ", " is ")),
    "email": email,
    "phone": phone,
    "password": password,
    "pin": labelled("PIN,pin code,Пин-код,ПИН-код от карты,পিন,CVV,cvc", lambda rng: digits(rng, rng.choice((3, 4))), (": ", "=", " — ")),
    "secret": labelled(
        "api_key,API key,секретный ключ,client_secret,SECRET_KEY,access token,ключ доступа,токен бота,এপিআই কী,apiKey",
        lambda rng: chars(rng, rng.choice([WORD, HEX]), rng.choice([24, 32, 40])),
    ),
    "token": labelled("токен,Токен,token,ключ,key,টোকেন,চাবি", lambda rng: chars(rng, WORD, rng.choice([20, 32, 40]))),
    "login": labelled("логин,login,Логин,লগইন", lambda rng: f"{rng.choice(NAMES)}_{rng.randrange(100, 9999)}", (": ", "=")),
}  # fmt: skip


def _snils(rng: Rng) -> str:
    head = chars(rng, DIGITS, 9)
    digits = next(head + f"{check:02d}" for check in range(100) if is_snils(head + f"{check:02d}"))
    return f"{digits[:3]}-{digits[3:6]}-{digits[6:9]} {digits[9:]}"


CARRIERS = {
    "ru": "{}|{} записала вчера|Чтобы не забыть: {}|Он прислал {} и сказал хранить|Вот {}.|(см. {})|- [ ] поменять {}, пока не поздно|> {}",
    "bn": "{}|{} লিখে রাখলাম|ভুলে যাব না: {}|সে আমাকে {} পাঠিয়েছে|এই যে {}।|- {}",
    "en": "{}|{} is what he sent|Do not lose this: {}|I keep {} in the drawer|Here: {}.|({})|* {}, change it soon|export THING {}",
}
WRAPS = ["{}", "{}", "`{}`", '"{}"', "| a | {} | b |", "```\n{}\n```", "**{}**", "«{}»", "{},", "{}!", "    {}"]


def planted(kind: str, count: int, seed: int = 0) -> Iterator[tuple[str, str]]:
    """(a text, the secret in it), `count` of them; secrets that are placeholders by chance are drawn again."""
    rng = random.Random(f"{seed}-{kind}")
    for number in range(count):
        written, secret = MAKERS[kind](rng)
        while is_placeholder(secret):
            written, secret = MAKERS[kind](rng)
        carrier = rng.choice(CARRIERS[("ru", "bn", "en")[number % 3]].split("|"))
        wrap = rng.choice(WRAPS)
        if "\n" in written:
            wrap, carrier = "{}", "{}"
        yield carrier.format(wrap.format(written)) if "\n" not in wrap else wrap.format(written), secret


def caught(text: str, secret: str, settings: RedactSettings) -> bool:
    """Whether nothing of a secret is left: no line of it, and no half of a long one."""
    left = redact(text, settings)[0]
    parts = secret.split("\n")
    return not any(
        part in left or (len(part) >= 16 and (part[: len(part) // 2] in left or part[len(part) // 2 :] in left)) for part in parts
    )


def clean(folder: Path) -> tuple[int, int, float, list[str]]:
    """Lines, bytes, CPU seconds, and each finding as `path:line kind: the line`."""
    settings = RedactSettings()
    lines, size, seconds, found = 0, 0, 0.0, []
    for path in sorted(folder.rglob("*.md")):
        data = path.read_bytes()
        text = data.decode("utf-8", "replace")
        start = time.process_time()
        _, findings = redact(text, settings)
        seconds += time.process_time() - start
        rows = text.split("\n")
        lines, size = lines + len(rows), size + len(data)
        found += [f"{path.relative_to(folder)}:{one.line} {one.kind}: {rows[one.line - 1].strip()[:160]}" for one in findings]
    return lines, size, seconds, found


def peer(texts: list[tuple[str, str]]) -> float | None:
    """The share that detect-secrets finds with its default plugins; None when it is not installed."""
    try:
        from detect_secrets.core.secrets_collection import SecretsCollection
        from detect_secrets.settings import default_settings
    except ImportError:
        return None
    hits = 0
    with tempfile.TemporaryDirectory() as folder, default_settings():
        for number, (text, _) in enumerate(texts):
            path = Path(folder) / f"{number}.md"
            path.write_text(text, encoding="utf-8")
            collection = SecretsCollection()
            collection.scan_file(str(path))
            hits += bool(collection.json())
    return hits / len(texts)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--clean", type=Path, action="append", default=[], help="a folder of notes that hold no secrets")
    parser.add_argument("--each", type=int, default=60, help="secrets of each kind")
    parser.add_argument("--list", action="store_true", help="show what was missed and what was found in clean text")
    args = parser.parse_args()
    settings = RedactSettings()
    total = hit = 0
    peers: list[float] = []
    print("| kind | planted | caught | detect-secrets |\n|---|---|---|---|")
    for kind in KINDS:
        texts = list(planted(kind, args.each))
        missed = [text for text, secret in texts if not caught(text, secret, settings)]
        total, hit = total + len(texts), hit + len(texts) - len(missed)
        share = peer(texts)
        peers += [] if share is None else [share]
        print(f"| {kind} | {len(texts)} | {1 - len(missed) / len(texts):.3f} | {'' if share is None else f'{share:.3f}'} |")
        if args.list:
            for text in missed[:5]:
                print(f"    missed: {text!r}")
    print(f"| all | {total} | {hit / total:.4f} | {f'{sum(peers) / len(peers):.4f}' if peers else ''} |\n")
    print("| clean text | lines | findings | per 10,000 lines | CPU ms/MB |\n|---|---|---|---|---|")
    for folder in (Path(__file__).resolve().parents[1] / "vault_example", *args.clean):
        lines, size, seconds, found = clean(folder)
        print(f"| {folder.name} | {lines} | {len(found)} | {10_000 * len(found) / lines:.2f} | {seconds / size * 1e9:.0f} |")
        if args.list:
            print("\n".join(f"    {one}" for one in found))


if __name__ == "__main__":
    main()
