"""Secrets that carry their own mark: tokens of services (`ghp_…`), private keys, addresses with a password, mail addresses.

Linear in the text by the form of the patterns: what repeats without a bound is possessive and last, or it is followed by
a character it cannot hold and preceded by a look-behind that lets it begin only once in a run.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import re
from collections.abc import Iterator

from vaultllm.redact.labels import is_code, is_placeholder, is_random
from vaultllm.redact.spans import END, LEFT, Span

# kind, how it may begin, pattern (group 1, when there is one, is what is replaced).
FORMS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("anthropic", ("sk-ant-",), r"sk-ant-[\w-]{20,}+"),
    ("openrouter", ("sk-or-",), r"sk-or-(?:v1-)?[\w-]{32,}+"),
    ("openai", ("sk-",), r"sk-(?=[\w-]{0,60}\d)(?=[\w-]{0,60}[A-Z]|[0-9a-f]{32})[\w-]{20,}+"),
    ("github", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), r"gh[pousr]_[A-Za-z0-9]{30,}+"),
    ("github", ("github_pat_",), r"github_pat_\w{40,}+"),
    ("gitlab", ("glpat-", "gldt-", "glrt-", "glptt-", "glcbt-"), r"gl(?:pat|dt|rt|ptt|cbt)-[\w.-]{20,}+"),
    ("slack", ("xox",), r"xox[a-z](?:\.xox[a-z])?-(?=\D{0,60}\d)[\w-]{10,}+"),
    ("slack", ("xapp-",), r"xapp-\d-[\w-]{20,}+"),
    ("slack-webhook", ("hooks.slack.com/",), r"hooks\.slack\.com/(?:services|workflows|triggers)/([\w/+-]{20,}+)"),
    ("aws-key", ("AKIA", "ASIA", "ABIA", "ACCA"), rf"A(?:KIA|SIA|BIA|CCA)[A-Z0-9]{{16}}{END}"),
    ("google", ("AIza",), r"AIza[\w-]{35,}+"),
    ("google", ("GOCSPX-",), r"GOCSPX-[\w-]{24,}+"),
    ("google", ("ya29.",), r"ya29\.[\w-]{20,}+"),
    ("google", ("1//0",), r"1//0[\w-]{38,}+"),
    ("gcp", ("private_key_id",), r'private_key_id\\?"?\s{0,2}:\s{0,2}\\?"?([0-9a-f]{40})'),
    ("azure", ("AccountKey=", "SharedAccessKey="), r"(?:AccountKey|SharedAccessKey)=([A-Za-z0-9+/]{40,}+={0,2})"),
    ("azure-sas", ("sig=",), r"sig=([A-Za-z0-9%+/_-]{40,}+={0,2})"),
    ("stripe", ("sk_live_", "sk_test_", "rk_live_", "rk_test_"), r"[sr]k_(?:live|test)_[A-Za-z0-9]{16,}+"),
    ("stripe", ("whsec_",), r"whsec_[A-Za-z0-9+/]{24,}+={0,2}"),
    (
        "discord-webhook",
        ("discord.com/api/", "discordapp.com/api/"),
        r"discord(?:app)?\.com/api/(?:v\d+/)?webhooks/(\d{15,20}/[\w-]{40,}+)",
    ),
    ("twilio", ("SK", "AC"), rf"(?:SK|AC)[0-9a-f]{{32}}{END}"),
    ("sendgrid", ("SG.",), r"SG\.[\w-]{16,32}\.[\w-]{16,}+"),
    ("mailgun", ("key-",), rf"key-[0-9a-f]{{32}}{END}"),
    ("npm", ("npm_",), r"npm_[A-Za-z0-9]{36,}+"),
    ("npm", ("_authToken=",), r"_authToken=([\w+/.-]{20,}+={0,2})"),
    ("pypi", ("pypi-Ag",), r"pypi-Ag[\w-]{40,}+"),
    ("huggingface", ("hf_",), r"hf_(?=[A-Za-z0-9]{0,34}[A-Z0-9])[A-Za-z0-9]{30,}+"),
    ("huggingface", ("api_org_",), r"api_org_[A-Za-z0-9]{30,}+"),
    ("digitalocean", ("dop_v1_", "doo_v1_", "dor_v1_"), r"do[opr]_v1_[0-9a-f]{60,}+"),
    ("heroku", ("HRKU-",), r"HRKU-[\w-]{30,}+"),
    ("heroku", ("heroku", "Heroku", "HEROKU"), r"[Hh](?:eroku|EROKU)[^\n⟨⟩]{0,40}?\b([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"),
    ("yandex", ("AQVN",), r"AQVN[\w-]{30,}+"),
    ("yandex", ("y0_", "y1_", "y2_", "y3_"), r"y[0-3]_[\w-]{30,}+"),
    ("yandex", ("t1.",), r"(?<![.-])t1\.[\w-]{10,}+={0,2}\.[\w-]{40,}+={0,2}"),
    ("vk", ("vk1.",), r"vk1\.[a-z]\.[\w-]{40,}+"),
    ("groq", ("gsk_",), r"gsk_[A-Za-z0-9]{40,}+"),
    ("xai", ("xai-",), r"xai-[A-Za-z0-9]{60,}+"),
    ("perplexity", ("pplx-",), r"pplx-(?=[A-Za-z0-9]{0,40}\d)[A-Za-z0-9]{40,}+"),
    ("replicate", ("r8_",), r"r8_[A-Za-z0-9]{30,}+"),
    ("notion", ("ntn_",), r"ntn_[A-Za-z0-9]{40,}+"),
    ("notion", ("secret_",), rf"secret_[A-Za-z0-9]{{43}}{END}"),
    ("linear", ("lin_api_",), r"lin_api_[A-Za-z0-9]{32,}+"),
    ("shopify", ("shp",), r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32,}+"),
    ("docker", ("dckr_pat_",), r"dckr_pat_[\w-]{20,}+"),
    ("figma", ("figd_",), r"figd_[\w-]{30,}+"),
    ("airtable", ("pat",), r"pat[A-Za-z0-9]{14}\.[0-9a-f]{64}"),
    ("grafana", ("glsa_", "glc_"), r"gl(?:sa|c)_[\w+/-]{30,}+={0,2}"),
    ("databricks", ("dapi",), r"dapi[0-9a-f]{32}(?:-\d)?"),
    ("vault", ("hvs.", "hvb."), r"hv[sb]\.[\w-]{40,}+"),
    ("supabase", ("sbp_",), r"sbp_[0-9a-f]{40,}+"),
    ("postman", ("PMAK-",), r"PMAK-[0-9a-f]{24}-[0-9a-f]{34}"),
    ("age", ("AGE-SECRET-KEY-1",), r"AGE-SECRET-KEY-1[0-9A-Z]{50,}+"),
    ("jwt", ("eyJ",), r"(?<!-)eyJ[\w-]{8,}+\.[\w-]{8,}+\.[\w-]*+"),
    ("bearer", ("Bearer ", "bearer "), r"[Bb]earer[ ]{1,3}(?=[A-Za-z._~+/-]{0,60}\d)([\w.~+/-]{16,}+={0,2})"),
    ("bearer", ("Authorization: ",), r"Authorization: (?:Token|ApiKey|Key)[ ]{1,3}([\w.~+/-]{16,}+={0,2})"),
    ("wallet", ("xprv", "yprv", "zprv"), r"[xyz]prv[1-9A-HJ-NP-Za-km-z]{90,}+"),
)
_APART = frozenset(("gcp", "heroku", "bearer"))  # their mark is a word of its own
_SHORTEST = 20  # no token of a service is shorter, and few words of a sentence are longer

_TELEGRAM = re.compile(LEFT + r"(?:bot)?(\d{8,10}:AA[A-Za-z0-9_-]{30,}+)")
_AZURE = re.compile(LEFT + r"[A-Za-z0-9_~.-]{3}8Q~[A-Za-z0-9_~.-]{31,34}")
_MAILCHIMP = re.compile(rf"{LEFT}[0-9a-f]{{32}}-us\d{{1,2}}{END}")
_BASIC = re.compile(LEFT + r"[Bb]asic[ ]{1,3}([A-Za-z0-9+/]{8,}+={0,2})")
_DISCORD = re.compile(rf"(?<![\w.-])[MNO][A-Za-z0-9_-]{{22,28}}+\.[A-Za-z0-9_-]{{6}}\.[A-Za-z0-9_-]{{27,}}+{END}")
_MAILGUN = re.compile(rf"{LEFT}[0-9a-f]{{32}}-[0-9a-f]{{8}}-[0-9a-f]{{8}}(?!-){END}")
_WIF = re.compile(rf"{LEFT}[5KL][1-9A-HJ-NP-Za-km-z]{{50,51}}{END}")
# What has no mark of its own to look for.
OTHERS = (_TELEGRAM, _AZURE, _MAILCHIMP, _BASIC, _DISCORD, _MAILGUN, _WIF)
_AWS_SECRET = re.compile(r"(?<![A-Za-z0-9+/=⟩])[A-Za-z0-9+/]{40}(?![A-Za-z0-9+/=⟨])")
_URL_PASSWORD = re.compile(r"://(?:[^\s/:@?#⟨⟩]{0,200}+:(?P<password>[^\s/⟨⟩]{1,300})|(?P<user>[^\s/:@?#⟨⟩]{16,200}))@")
_HOST_PASSWORD = re.compile(r":(?<=[\w.-]:)([^\s@/:⟨⟩]{4,64})@\d{1,3}(?:\.\d{1,3}){3}")
# A run of letters of the local part can begin only where none stands before it: one try for each run.
_EMAIL = re.compile(r"(?<![\w.+%⟩-])[\w.+%-]++@(?!\d+(?:\.\d+)*(?:[^\w.]|$))(?:[\w-]{1,63}\.){1,8}([^\W\d_]{2,24})(?![\w⟨-])")
_NO_MAIL = frozenset("png jpg jpeg gif svg webp avif pdf md js mjs ts tsx jsx json css scss html py rs go yaml yml toml txt".split())
_HARMLESS_MAIL = re.compile(r"@(?:[\w-]+\.)*example\.(?:com|org|net)$|@(?:[\w-]+\.)*(?:example|test|invalid|localhost)$|^git@", re.I)
_PEM = re.compile(r"-----(BEGIN|END) (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----")
OPENSSH = "b3BlbnNzaC1rZXktdjE"  # base64 of "openssh-key-v1": a private key without its armour
_KEY_LINE = re.compile(r"[ \t>]*(?:[A-Za-z0-9+/=]{1,}+|[A-Za-z-]{3,30}: [^\n]*+|)[ \t\r\\]*$")


def tokens(text: str) -> Iterator[Span]:
    """Secrets whose form alone says what they are."""
    if "PRIVATE KEY" in text or OPENSSH in text:
        yield from _private_keys(text)
    long_words = [word for word in text.split() if len(word) >= _SHORTEST]
    if long_words:
        yield from _services(text, long_words)
    if "asic " in text:
        yield from _basic(text)
    if "@" in text and ":" in text:
        yield from _url_passwords(text)


@functools.cache
def _table() -> tuple[tuple[str, tuple[str, ...], re.Pattern[str]], ...]:
    """The table, compiled on first use: starting the program needs none of it."""
    return tuple((kind, marks, re.compile(LEFT + pattern, re.ASCII)) for kind, marks, pattern in FORMS)


def _of(kind: str, pattern: re.Pattern[str], text: str) -> Iterator[Span]:
    """All matches; only the group is meant when there is one."""
    for match in pattern.finditer(text):
        yield Span(*match.span(match.lastindex or 0), kind)


def _services(text: str, long_words: list[str]) -> Iterator[Span]:
    """Tokens of services."""
    keys = []
    words = " ".join(long_words)
    for kind, marks, pattern in _table():
        for mark in marks:
            at = text.find(mark) if mark in words or kind in _APART else -1
            while at >= 0:
                match = pattern.match(text, at)
                if match and not _is_sample(match[0]):
                    span = Span(*match.span(match.lastindex or 0), kind)
                    yield span
                    keys += [span] if kind == "aws-key" else []
                at = text.find(mark, match.end() if match else at + len(mark))
    done = 0
    for key in keys:  # the secret half stands beside the id
        area = (max(done, key.start - 300), min(len(text), key.end + 300))
        for match in _AWS_SECRET.finditer(text, *area):
            if all(re.search(letters, match[0]) for letters in ("[0-9]", "[a-z]", "[A-Z]")):
                yield Span(*match.span(), "aws-secret")
        done = max(done, key.end)
    if ":AA" in words:
        yield from _of("telegram-bot", _TELEGRAM, text)
    if "8Q~" in words:
        yield from _of("azure", _AZURE, text)
    if "-us" in words:
        yield from _of("mailchimp", _MAILCHIMP, text)
    at = 0
    for word in long_words:
        if len(word) < 50:
            continue
        at = text.index(word, at)
        for kind, pattern in (("discord", _DISCORD), ("mailgun", _MAILGUN), ("wallet", _WIF)):
            for match in pattern.finditer(text, at, at + len(word)):
                if kind != "wallet" or _is_base58check(match[0]):
                    yield Span(*match.span(), kind)
        at += len(word)


def _is_sample(found: str) -> bool:
    """Whether a token is a documented example or crosses filled in."""
    return len(set(found[-12:])) < 4 or re.search(r"x{5,}|example|your[_-]|\.\.\.", found, re.IGNORECASE) is not None


def _private_keys(text: str) -> Iterator[Span]:
    """Private keys from mark to mark; without an end mark, as far as the lines look like one."""
    opened: re.Match[str] | None = None
    for match in _PEM.finditer(text):
        if opened is not None and match[1] == "END":
            yield Span(opened.start(), match.end(), "private-key")
            opened = None
        elif match[1] == "BEGIN":
            if opened is not None:
                yield Span(opened.start(), _key_end(text, opened.end(), match.start()), "private-key")
            opened = match
    if opened is not None:
        yield Span(opened.start(), _key_end(text, opened.end(), len(text)), "private-key")
    at = text.find(OPENSSH)
    while at >= 0:
        end = _key_end(text, at, len(text))
        yield Span(at, end, "private-key")
        at = text.find(OPENSSH, end)


def _key_end(text: str, start: int, limit: int) -> int:
    """Where the lines end that look like a key; what follows on its first line belongs to it."""
    end = text.find("\n", start, limit)
    if end < 0:
        return limit
    last = end
    while end < limit:
        following = text.find("\n", end + 1, limit)
        following = limit if following < 0 else following
        if not _KEY_LINE.match(text, end + 1, following):
            break
        if text[end + 1 : following].strip(" \t>\r"):
            last = following
        end = following
    return last


def _basic(text: str) -> Iterator[Span]:
    for match in _BASIC.finditer(text):
        try:
            plain = base64.b64decode(match[1][:400] + "=" * (-len(match[1][:400]) % 4))
        except (binascii.Error, ValueError):
            continue
        if re.fullmatch(rb"[\x20-\x7e]+:[\x20-\x7e]+", plain[:300]):
            yield Span(*match.span(1), "basic-auth")


def _url_passwords(text: str) -> Iterator[Span]:
    for match in _URL_PASSWORD.finditer(text):
        group = "password" if match["password"] else "user"
        if is_placeholder(match[group]) or is_code(match[group]) or (group == "user" and not is_random(match[group], strict=False)):
            continue
        yield Span(*match.span(group), "url-password")
    yield from _of("url-password", _HOST_PASSWORD, text)


def mails(text: str) -> Iterator[Span]:
    """Mail addresses, save those of documentation and of `git@` remotes."""
    at = text.find("@")
    while at >= 0:  # only on the lines that have a sign
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        for match in _EMAIL.finditer(text, text.rfind("\n", 0, at) + 1, end):
            if match[1].lower() not in _NO_MAIL and not _HARMLESS_MAIL.search(match[0]):
                yield Span(*match.span(), "email")
        at = text.find("@", end)


def _is_base58check(code: str) -> bool:
    """A Bitcoin private key in wallet import format: the last four bytes are the double SHA-256 of the others."""
    number = 0
    for letter in code:
        number = number * 58 + "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz".index(letter)
    data = number.to_bytes(max(38, (number.bit_length() + 7) // 8), "big").lstrip(b"\0")
    return hashlib.sha256(hashlib.sha256(data[:-4]).digest()).digest()[:4] == data[-4:]
