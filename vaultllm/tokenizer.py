"""The vault's own tokenizer, and how texts and talks become token ids for any causal language model.

Byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909): every string without lone surrogates survives
encoding and decoding unchanged, there is no unknown token. Knows nothing about notes, models or training;
which messages are learnt is said by the caller.
"""

from __future__ import annotations

import contextlib
import math
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from vaultllm.schema import Message

# llama.cpp's pre-tokenizer `qwen35`, byte for byte, so that an exported model splits text there as it does here.
# \p{M} next to \p{L} keeps vowel signs and viramas with their consonants (Bengali, Hindi).
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIALS = (END_OF_TEXT, TURN_START, TURN_END)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_NAMES = {"user": "User", "assistant": "Assistant", "system": "System"}
_PLACEHOLDER = re.compile(r"vaultllmcontent(\d+)end")

# Whether special tokens are parsed is a switch of the shared Rust object, not of the call: two threads that
# encode at once could flip it under each other, and a control token typed in a note would become real.
_switch = threading.Lock()


def vocabulary_size(n_bytes: int) -> int:
    """How many tokens a vault of so many UTF-8 bytes deserves: 2k at 0.2 MB, growing with the square root, 512..16384.

    Multiples of 64 below 4096, of 256 above. Vocabulary should grow slower than text
    (Tao et al. 2024, arXiv:2407.13623).
    """
    wanted = min(max(2048 * math.sqrt(n_bytes / 200_000), 512), 16384)
    unit = 64 if wanted < 4096 else 256
    return round(wanted / unit) * unit


def train(texts: Iterable[str], size: int | None = None) -> Any:
    """A byte-level BPE `tokenizers.Tokenizer` trained on the texts.

    The same texts give the same file, byte for byte. `size` is the number of tokens with the three specials
    (ids 0-2) and the 256 bytes; default: `vocabulary_size` of the texts. A small text may give fewer.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    if size is None:
        texts = list(texts)
        size = vocabulary_size(sum(len(text.encode()) for text in texts))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN35), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def wrap(tokenizer: Any) -> Any:
    """A `tokenizers.Tokenizer` of `train` as a transformers tokenizer with our specials and chat template."""
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START],
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def save(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer of `train` as an ordinary transformers tokenizer folder (`AutoTokenizer` reloads it)."""
    wrap(tokenizer).save_pretrained(folder)


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text by any transformers tokenizer; control tokens typed in it stay text; no BOS or EOS is added."""
    return _encode(tokenizer, text, parse_specials=False)


def encode_chat(tokenizer: Any, messages: Sequence[Message], reply: bool = False) -> tuple[list[int], list[bool]]:
    """Ids of a talk in the tokenizer's own chat template, and for each id whether it is learnt.

    Learnt are the tokens of the messages with `learn`, and after each of them the template's tokens up to and
    including the first special one (the end of the turn). Contents are stripped and encoded as plain text, so
    nothing typed in a note can open or close a turn. `reply` adds what precedes the assistant's answer. A
    tokenizer without a template, or with one that refuses these messages (a system role, two turns by the same
    speaker) or changes more than the white space around them, gets `User: …\\n\\nAssistant: …` with EOS after
    each of the assistant's turns.
    """
    fixed = _template_pieces(tokenizer, messages, reply)
    if fixed is None:
        return _encode_plain(tokenizer, messages, reply)
    specials = _special_ids(tokenizer)
    ids = _encode(tokenizer, fixed[0], parse_specials=True)
    learnt = [False] * len(ids)
    for message, piece in zip(messages, fixed[1:], strict=True):
        content = encode_text(tokenizer, message.text.strip())
        after = _encode(tokenizer, piece, parse_specials=True)
        end = next((i + 1 for i, token in enumerate(after) if token in specials), 0) if message.learn else 0
        ids += content + after
        learnt += [message.learn] * len(content) + [True] * end + [False] * (len(after) - end)
    return ids, learnt


def _encode(tokenizer: Any, text: str, *, parse_specials: bool) -> list[int]:
    with _switch:
        ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=not parse_specials, verbose=False)["input_ids"]
    return list(ids)


def _special_ids(tokenizer: Any) -> set[int]:
    """Every id that is a control token: the named ones and those only marked so in the tokenizer's file."""
    marked = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    return marked | set(tokenizer.all_special_ids)


def _template_pieces(tokenizer: Any, messages: Sequence[Message], reply: bool) -> list[str] | None:
    """What the template writes before, between and after the contents (one more than messages); None if it cannot be used."""
    if not tokenizer.chat_template or not messages:
        return None
    # The contents never meet the template: it could trim, escape or cut them, and would parse their control tokens.
    turns = [{"role": message.role, "content": f"vaultllmcontent{i}end"} for i, message in enumerate(messages)]
    try:
        with _bounded():
            text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=reply, enable_thinking=False)
    except (_EndlessError, MemoryError):
        tokenizer.chat_template = None  # it need not be waited for again
        return None
    except Exception:  # it refuses these messages, or is broken: a template is somebody's code, and may raise anything
        return None
    if len(text) > _LONGEST_TEMPLATE:
        return None
    parts = _PLACEHOLDER.split(text)
    if parts[1::2] != [str(i) for i in range(len(messages))]:
        return None
    return parts[::2]


_TEMPLATE_LINES, _TEMPLATE_SECONDS = 200_000, 5.0
_LONGEST_TEMPLATE = 1_000_000  # characters around the messages
_TEMPLATE_BYTES = 512 << 20


class _EndlessError(Exception):
    """A template that writes and writes."""


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Bounds what a chat template may do in it: so many of its lines, seconds, and (on Linux) new memory.

    jinja's sandbox keeps a template from the interpreter's insides; it does not keep it from running for ever.
    """
    until, lines = time.monotonic() + _TEMPLATE_SECONDS, 0

    def count(frame: FrameType, event: str, _: object) -> Any:
        nonlocal lines
        lines += 1
        if lines > _TEMPLATE_LINES or time.monotonic() > until:
            raise _EndlessError
        return count

    before = sys.gettrace()
    sys.settrace(lambda frame, event, arg: count if frame.f_code.co_filename == "<template>" else None)
    try:
        with _little_memory():
            yield
    finally:
        sys.settrace(before)


@contextlib.contextmanager
def _little_memory() -> Iterator[None]:
    """No more than `_TEMPLATE_BYTES` of new address space; nothing where the system does not say how much is taken."""
    try:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        taken = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        most = taken + _TEMPLATE_BYTES
        if soft != resource.RLIM_INFINITY and soft < most:
            yield
            return
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    except (ImportError, OSError, ValueError):
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _encode_plain(tokenizer: Any, messages: Sequence[Message], reply: bool) -> tuple[list[int], list[bool]]:
    """`User: …\\n\\nAssistant: …<eos>`, for base models and templates that refuse."""
    ids: list[int] = _begin(tokenizer)
    learnt = [False] * len(ids)
    eos: list[int] = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for i, message in enumerate(messages):
        before = _encode(tokenizer, ("\n\n" if i else "") + _NAMES[message.role] + ": ", parse_specials=False)
        content = encode_text(tokenizer, message.text.strip()) + (eos if message.role == "assistant" else [])
        ids += before + content
        learnt += [False] * len(before) + [message.learn] * len(content)
    if reply:
        before = _encode(tokenizer, ("\n\n" if messages else "") + "Assistant: ", parse_specials=False)
        ids += before
        learnt += [False] * len(before)
    return ids, learnt


def _begin(tokenizer: Any) -> list[int]:
    """BOS, if this tokenizer begins every text with it (Llama does, GPT-2 does not)."""
    with _switch:
        empty: list[int] = list(tokenizer("")["input_ids"])
    return empty if empty == [tokenizer.bos_token_id] else []
