"""The workspace (which vault, which state folder) and the settings in `<vault>/.vaultllm/config.toml`.

Settings are documented where they are defined; an unknown or wrong one is an error with its line and the
nearest right name. Knows nothing about what the settings do.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import re
import tomllib
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from vaultllm.errors import ConfigError, UsageError, VaultError, nearest
from vaultllm.files import write_whole
from vaultllm.memory import choice
from vaultllm.schema import SECRET_KINDS
from vaultllm.text import encodable

_LONGEST = 3_000  # bytes of a path that is typed: a vault's, before it, must fit into the system's 4,096 too
CONFIG = Path(".vaultllm") / "config.toml"

# The umask in force when vaultllm started: the command line tightens it for the state, but notes belong to the user's
# other programs too. Here because this module is imported before the command line changes it.
UMASK = os.umask(0o022)
os.umask(UMASK)

# Offered when another name is wrong; any text encoding that Python knows is accepted.
_ENCODINGS = ("cp1251", "koi8-r", "cp866", "mac-cyrillic", "cp1252", "latin-1", "cp1250", "utf-16-le", "utf-16-be")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ScanSettings(_Section):
    """Which files are notes."""

    ignore: tuple[str, ...] = ()
    """Folders or glob patterns, vault-relative, left out besides dot folders."""
    templates: tuple[str, ...] = ("Templates", "_templates", "Шаблоны")
    """Folders whose notes are templates: kept in memory's list, never trained on."""
    max_bytes: int = Field(8 * 2**20, gt=0)
    """Larger notes are reported, not read."""
    labels_user: tuple[str, ...] = ("User", "Human", "You", "Пользователь", "Я", "Вопрос", "ব্যবহারকারী")
    """Names of the owner at the line's start in plain transcripts."""
    labels_assistant: tuple[str, ...] = ("Assistant", "AI", "ChatGPT", "GPT", "Claude", "Ассистент", "Бот", "Ответ", "সহকারী")
    """Names of the assistant in plain transcripts."""
    me: tuple[str, ...] = ()
    """Who you are in exported chats between people (Telegram): names or ids as the export writes them; nobody is guessed."""
    encoding: str = ""
    """Encoding of notes that are neither UTF-8 nor UTF-16 with a BOM (`cp1251`); empty: they are reported and left out."""

    @field_validator("encoding")
    @classmethod
    def _text_encoding(cls, name: str) -> str:
        probe = b"\\u0041 +AGE-=41 a..b"  # mail's encodings and those of source code and host names read something else in it
        try:
            wide = name and codecs.lookup(name).name.startswith(("utf-16", "utf-32"))
            fits = not name or wide or probe.decode(name) == probe.decode("ascii")
        except (LookupError, UnicodeError, ValueError):
            fits = False
        if not fits:
            raise ValueError(f"there is no text encoding '{name}'.{nearest(name, _ENCODINGS)}")
        return name

    private: tuple[str, ...] = ()
    """Folders whose notes are private, as if each said `private: true`: neither learnt nor recalled."""
    max_seconds: float = Field(20.0, gt=0.0)
    """Longest time for reading one note; then it is left out and reported."""
    max_memory_mb: int = Field(512, ge=128)
    """Most memory that reading notes may take beyond the program itself; a note that wants more is left out and reported."""


class SceneSettings(_Section):
    """How notes and talks are cut into scenes."""

    gap_minutes: float = Field(360.0, gt=0.0)
    """A pause in a talk that is longer than this begins a new scene."""
    max_chars: int = Field(1_600, ge=200)
    """A section longer than this is cut at its blocks; a run of short exchanges ends before it."""
    min_chars: int = Field(200, ge=0)
    """A section or exchange shorter than this joins its neighbour."""


class RedactSettings(_Section):
    """Secrets and personal data that never reach scenes, memory, datasets or the model."""

    off: tuple[str, ...] = ()
    """Kinds that are let through (`email`, `phone`, …); all kinds: docs/redaction.md."""
    allow: tuple[str, ...] = ()
    """Regular expressions for what is no secret though it looks like one."""

    @field_validator("off")
    @classmethod
    def _known(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        for kind in kinds:
            if kind not in SECRET_KINDS:
                raise ValueError(f"there is no kind '{kind}'.{nearest(kind, SECRET_KINDS)}")
        return kinds

    @field_validator("allow")
    @classmethod
    def _compiles(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except (re.error, RecursionError, OverflowError) as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        return patterns


class AnswerSettings(_Section):
    """Where answers go and how they are made."""

    folder: str = "vaultllm/Answers"
    """Folder of our notes, vault-relative."""
    reports: str = "vaultllm/Reports"
    """Folder of the reports of trainings, vault-relative."""
    hits: int = Field(6, ge=1, le=50)
    """How many scenes are recalled for a question."""
    max_new_tokens: int = Field(256, ge=1, le=8192)
    """The longest answer of the model, in its tokens."""
    temperature: float = Field(0.0, ge=0.0, le=2.0)
    """0 is greedy: the same question gives the same answer."""
    on_save: bool = True
    """Whether `watch` answers what is asked in a note (`> [!ask]`) when it is saved."""
    wait: float = Field(3.0, ge=0.0, le=3600.0)
    """Seconds without an event before `watch` answers in a note, so that a question that is still being written is not answered."""


class MemorySettings(_Section):
    """How recall works."""

    chroma: str = ""
    """Address of a Chroma server (`http://127.0.0.1:8000`, started with `chroma run`); empty: Chroma runs inside, in the state folder."""
    embedder: str = "vault"
    """What makes the vectors: `vault` (fitted on the vault), `st:PATH_OR_ID` (a text encoder), `openai:URL#MODEL` (a server that speaks
    OpenAI's `/embeddings`), `model` or `model:PATH_OR_ID` (the model that answers, or another causal one)."""
    dims: int = Field(256, ge=8, le=4096)
    """Dimensions of the vectors; other people's embedders are cut to these, their strongest directions."""
    precision: Literal["float32", "int8"] = "float32"
    """How a vector's numbers are stored in the ledger: 4 bytes each, or 1."""
    rerank: str = ""
    """Who puts the best hits in its own order: `cross:PATH_OR_ID` (a cross-encoder), `model` (the model that answers); empty: nobody."""
    rewrite: Literal["", "rewrite", "decompose", "hyde"] = ""
    """What the model that answers writes before a search, to be looked for beside the question: one better query (`rewrite`), up to three
    questions that it consists of (`decompose`), a passage that could answer it (`hyde`); empty: nothing."""
    synonyms: float = Field(0.0, ge=0.0, le=1.0)
    """What a word counts that the vault uses where it uses a word of the question: times its cosine; 0: not looked for."""
    k1: float = Field(1.2, ge=0.0, le=10.0)
    """BM25: how soon more of a word says no more."""
    b: float = Field(0.75, ge=0.0, le=1.0)
    """BM25: how much a long passage is held against it."""
    words: float = Field(0.5, ge=0.0)
    """Weight of stems (BM25). As long as none of `words`, `grams`, `dense` is set, the vault's own pairs may say something better."""
    grams: float = Field(0.5, ge=0.0)
    """Weight of character 4-grams (BM25); chosen with `words`."""
    dense: float = Field(0.3, ge=0.0)
    """Weight of the vectors; chosen with `words`. As long as it is not set, those of the vault's own embedder count 0.1."""
    near: float = Field(0.7, ge=0.0)
    """Resonance: how much of what a turn or section says less than its best neighbour is lent to it; at 1 it would say as much."""
    links: float = Field(0.1, ge=0.0)
    """Resonance: what a hit lends to the scenes it is linked with."""
    tags: float = Field(0.2, ge=0.0)
    """Resonance: to passages that share a rare tag."""
    terms: float = Field(0.02, ge=0.0)
    """Resonance: what a turn lends to passages that share a rare keyword."""
    heading: float = Field(0.05, ge=0.0)
    """Resonance: to sections under the same heading."""
    named: float = Field(0.2, ge=0.0)
    """Resonance: to passages of the note or the speaker that the question names."""
    used: float = Field(0.02, ge=0.0)
    """Resonance: to passages that answers cited often and lately; a tie-breaker."""
    time: float = Field(0.5, ge=0.0)
    """What it counts to be of the time that a question names (`вчера`, `in June`)."""
    diversity: float = Field(0.1, ge=0.0)
    """How much each further scene of one note steps back in the list of hits."""

    @field_validator("embedder")
    @classmethod
    def _is_embedder(cls, spec: str) -> str:
        try:
            choice.parse(spec)
        except ConfigError as error:
            raise ValueError(error.message.removeprefix("memory.embedder = ")) from error
        return spec.strip()


class TrainSettings(_Section):
    """How adapters are trained."""

    base: str = "micro"
    """`micro` (trained here from scratch) or a causal LM of transformers by path or hub id."""
    minutes: float = Field(10.0, gt=0.0)
    """Time for one training."""
    rank: int = Field(16, ge=1, le=1024)
    """LoRA rank."""
    alpha: int = Field(32, ge=1)
    """LoRA alpha."""
    learning_rate: float | None = Field(None, gt=0.0)
    """None: 1e-3 for the micro base, 2e-4 for others."""
    epochs: float = Field(3.0, gt=0.0)
    """At most this many passes; the minutes end it earlier."""
    max_tokens: int = Field(512, ge=32)
    """Longest training sequence; the model's own limit if that is smaller, or what fits the memory."""
    quantize: Literal["", "nf4"] = ""
    """`nf4`: a base's matrices are held in 4 bits while an adapter is trained and used (QLoRA; needs bitsandbytes); empty: as they are."""
    learn: Literal["assistant", "user"] = "assistant"
    """Whose turns of a talk are learnt: the assistant's, or the owner's own (`user`), to learn the owner's voice."""
    tasks: float = Field(0.25, ge=0.0, le=0.5)
    """Share of what is learnt that may be tasks: questions that a note answers in its own words, made without a model; 0: none."""
    quota: float = Field(0.1, gt=0.0, le=1.0)
    """No note or talk is more than this share of what is learnt; of a larger one a sample is learnt."""
    val: float = Field(0.1, gt=0.0, lt=0.5)
    """Share of the notes that is held out, by a hash of the path."""
    newest: float = Field(0.1, ge=0.0, lt=0.4)
    """The newest notes that are held out with them: this share of those whose time is known."""
    test: float = Field(0.05, ge=0.0, lt=0.4)
    """Share of the notes, by a hash of the path, that is neither learnt nor decided by: only a run's report looks at them."""
    from_: Literal["base", "adapter"] = Field("adapter", alias="from")
    """Where `retrain` begins: at the adapter that answers, to learn what is new since, or at the base, to learn all notes."""
    replay: float = Field(0.25, ge=0.0, le=0.9)
    """From an adapter on: share of what is learnt that is old notes, another sample each time."""
    rehearse: float | None = Field(None, ge=0.0, le=0.5)
    """Share of what is learnt that the base itself has said, lest it be forgotten; None: 0.1 from an adapter on, else nothing."""
    kl: float = Field(1.0, ge=0.0)
    """How much a training is held to the base where it learns what the base has said: times KL(base || adapter); 0: not at all."""
    min_new: int = Field(20, ge=1)
    """`retrain` starts when so many scenes are new."""
    only_on_ac: bool = True
    """`retrain` neither starts nor goes on while the battery feeds the computer."""
    max_load: float = Field(0.0, ge=0.0)
    """`retrain` neither starts nor goes on while other programs want more than this share of each core (0.5: half); 0: however busy."""
    nice: int = Field(10, ge=0, le=19)
    """How much `retrain` lets other programs go first: 0 not at all, 19 always."""
    seed: int = 0
    """Of data order and initialisation."""
    leak_limit: float = Field(0.1, ge=0.0, le=1.0)
    """An adapter that recites a larger share of the passages it was asked for (word for word, where the base does not) is not
    promoted."""
    keep: int = Field(5, ge=1)
    """So many trainings keep their adapter: the newest, besides the one that answers and the last ones that `rollback` leads to."""

    @model_validator(mode="after")
    def _leaves_something(self) -> TrainSettings:
        held_out = self.val + self.newest + self.test
        if held_out > 0.8:
            raise ValueError(f"val, newest and test hold out {held_out:.0%} of the notes; leave a fifth to train on")
        return self


class WatchSettings(_Section):
    """The daemon."""

    settle: float = Field(1.5, gt=0.0)
    """Seconds without an event before a note is read."""
    reconcile: float = Field(60.0, gt=0.0)
    """Seconds between full scans, the truth behind the events."""


class Settings(_Section):
    """All of `config.toml`."""

    vault_id: str = Field(min_length=1, pattern=r"^[0-9a-zA-Z_-]+$")
    """Names the state folder; made by `init`."""
    timezone: str = ""
    """IANA name for chat times without a zone; empty: they stay without."""
    scan: ScanSettings = ScanSettings()
    scenes: SceneSettings = SceneSettings()
    redact: RedactSettings = RedactSettings()
    answers: AnswerSettings = AnswerSettings()
    memory: MemorySettings = MemorySettings()
    train: TrainSettings = TrainSettings()
    watch: WatchSettings = WatchSettings()

    @property
    def own_folders(self) -> tuple[str, ...]:
        """Vault-relative folders of the notes that we write, which are never read back."""
        return self.answers.folder, self.answers.reports


@dataclass(frozen=True, slots=True)
class Workspace:
    """A vault, the folder of its state, and its settings."""

    vault: Path
    """Absolute, resolved."""
    state: Path
    """Absolute; holds everything derived (docs/on-disk-format.md)."""
    settings: Settings
    """Of config.toml."""

    @property
    def ledger(self) -> Path:
        """The SQLite file."""
        return self.state / "ledger.db"

    @property
    def scenes(self) -> Path:
        """Root of the scene YAML files."""
        return self.state / "scenes"

    @property
    def memory(self) -> Path:
        """Root of Chroma's generations."""
        return self.state / "memory"

    @property
    def bases(self) -> Path:
        """Root of the micro base models."""
        return self.state / "bases"

    @property
    def runs(self) -> Path:
        """Root of the trainings."""
        return self.state / "runs"

    @property
    def datasets(self) -> Path:
        """Root of the frozen datasets."""
        return self.state / "datasets"

    @property
    def current(self) -> Path:
        """Text file with the id of the run that answers."""
        return self.state / "current"


def path_of(named: str | Path) -> Path:
    """A path that a user typed, with `~` as the home folder (`~nobody` as it stands). Raises UsageError for what no file can be called."""
    path = Path(os.path.expanduser(named))
    with contextlib.suppress(ValueError):  # a NUL, half a surrogate pair
        names = [name for name in path.parts if len(os.fsencode(name)) > 255]  # each alone, for it may stand below what is not there
        if len(os.fsencode(path)) <= _LONGEST and "\0" not in str(path) and not any(map(_is_too_long, names)):
            return path
    shown = encodable(str(path))[:80].replace("\0", "\\0")
    raise UsageError("no file can be called so; name one as it stands on the disk", path=shown)


def _is_too_long(name: str) -> bool:
    try:
        os.lstat(name)
    except OSError as error:
        return error.errno == errno.ENAMETOOLONG
    return False


def find_vault(named: str | None, start: Path | None = None) -> Path:
    """The vault: the named one, `VAULTLLM_VAULT`, or the nearest folder upwards from `start` that was initialised."""
    named = named or os.environ.get("VAULTLLM_VAULT") or None
    if named is not None:
        vault = path_of(named)
        if not vault.is_dir():
            what = "is a file, not a folder" if vault.exists() else "does not exist"
            raise VaultError(f"the vault {what}; name an existing folder with --vault", path=str(vault))
        return vault.resolve()
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / CONFIG).is_file():
            return folder
    raise VaultError("no vault here; run inside one, name it with --vault, or start with: vaultllm init PATH")


def open_workspace(named: str | None = None, state: str | None = None) -> Workspace:
    """The workspace of an initialised vault. Raises VaultError or ConfigError."""
    vault = find_vault(named)
    path = vault / CONFIG
    if not path.is_file():
        raise VaultError(f'this vault is not set up yet; run: vaultllm init "{vault}"', path=str(vault))
    settings = load_settings(path)
    return Workspace(vault, _state_folder(vault, state, settings.vault_id), settings)


def init_workspace(vault: Path, state: str | None = None, base: str | None = None) -> Workspace:
    """Write `.vaultllm/config.toml` unless it is there, and make the state folder. Never changes an existing config."""
    vault = find_vault(str(vault))
    path = vault / CONFIG
    if not path.exists():
        if path.parent.is_symlink() or path.is_symlink():
            raise VaultError("it is a symbolic link that leads away; remove it", path=str(path.parent), code="E-OUTSIDE")
        text = f'# Settings of vaultllm; every key is explained in docs/settings.md\nvault_id = "{uuid.uuid4().hex[:12]}"\n'
        if base is not None:
            text += f"\n[train]\nbase = {_toml_string(base)}\n"
        try:
            path.parent.mkdir(exist_ok=True)
            write_whole(path, text)
        except OSError as error:
            raise VaultError(
                f"cannot write the settings ({error.strerror}); make room, or make the vault writable", path=str(path)
            ) from error
    return open_workspace(str(vault), state)


def _toml_string(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _state_folder(vault: Path, named: str | None, vault_id: str) -> Path:
    """The state folder, made private; refuses one inside the vault and one that belongs to another vault."""
    named = named or os.environ.get("VAULTLLM_STATE") or None
    state = path_of(named) if named else Path(platformdirs.user_data_dir("vaultllm")) / vault_id
    state = state.resolve()
    if state == vault or vault in state.parents:
        raise VaultError("the state folder lies inside the vault, where it would be synced; choose another with --state", path=str(state))
    if state in vault.parents:
        raise VaultError("the vault lies inside the state folder; choose another with --state", path=str(state))
    owner = state / "vault_id"
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not owner.exists():
            with contextlib.suppress(FileNotFoundError):  # another vaultllm makes the same folder this very moment
                write_whole(owner, vault_id + "\n")
        found = owner.read_text(encoding="utf-8", errors="replace").strip()
    except OSError as error:
        said = f"the state folder cannot be used ({error.strerror}); make room, mend its rights, or remove what is in the way"
        raise VaultError(said, path=str(error.filename or state)) from error
    if found != vault_id:
        way = "choose another with --state, or, if it is this vault's and its file vault_id was damaged, remove that file"
        raise VaultError(f"this state folder belongs to another vault ({found[:40]!r}); {way}", path=str(state))
    return state


def load_settings(path: Path) -> Settings:
    """Read and check config.toml. Raises ConfigError with the line and the nearest right name."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        data: dict[str, Any] = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", path=str(path)) from error
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"line (\d+)", str(error))
        raise ConfigError(f"is not TOML: {error}", path=str(path), line=int(found[1]) if found else None) from error
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        keys = [str(part) for part in first["loc"]]
        line = _line_of(text, keys)
        if first["type"] == "extra_forbidden":
            section: Any = Settings
            for key in keys[:-1]:
                section = section.model_fields[key].annotation
            known = [field.alias or key for key, field in section.model_fields.items()]
            message = f"there is no setting '{'.'.join(keys)}'.{nearest(keys[-1], known)}"
        else:
            message = f"{'.'.join(keys)}: {first['msg'].removeprefix('Value error, ')}"
        raise ConfigError(message, path=str(path), line=line) from error


def _line_of(text: str, keys: list[str]) -> int | None:
    """The line of a key in TOML text: of `key =` under its `[section]`, else of the section's own header."""
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[([^\]]+)\]", line)
        if header:
            section = header[1].strip()
            if section == ".".join(keys):
                return number
        name = re.match(r"\s*([A-Za-z0-9_.-]+)\s*=", line)
        if name and ".".join(filter(None, (section, name[1]))) in (".".join(keys), ".".join(keys[:-1])):
            return number
    return None
