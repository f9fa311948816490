"""How well a model predicts held-out notes: bits per UTF-8 byte, with and without memory, and whether a difference is real.

Bits per byte are comparable across tokenizers; intervals are over notes, because the scenes of one note are not
independent. Knows nothing about training, runs or promotion; what is scored is encoded here exactly as it is learnt.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vaultllm import tokenizer as bpe
from vaultllm.errors import DataError, ModelError
from vaultllm.files import write_whole
from vaultllm.models import hf, losses, packed
from vaultllm.schema import Example, Message
from vaultllm.text import encodable

MIN_NOTES = 30
"""With fewer notes nobody is called better or worse: a percentile bootstrap of few notes comes out too narrow."""

Context = Sequence[Message] | str


@dataclass(frozen=True, slots=True)
class Score:
    """What the learnt text of one example costs."""

    example: str
    """Its id."""
    path: str
    """Its note."""
    bits: float
    """Negative log-likelihood of its learnt tokens, the end of the turn included."""
    bytes: int
    """UTF-8 bytes of its learnt text."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A difference in bits per byte (after minus before: negative is better) and its 95 % interval."""

    mean: float
    """As observed."""
    low: float
    """2.5 % of the resampled differences lie below."""
    high: float
    """97.5 % lie below."""
    notes: int
    """Held-out notes behind it."""

    @property
    def decided(self) -> bool:
        """Whether there are enough notes and the interval leaves out zero."""
        return self.notes >= MIN_NOTES and (self.low > 0 or self.high < 0)

    @property
    def words(self) -> str:
        """The verdict as a person reads it."""
        figures = f"{self.mean:+.3f} bits per byte (95 %: {self.low:+.3f} to {self.high:+.3f}) on {self.notes} held-out notes"
        if self.notes < MIN_NOTES:
            return f"not enough to decide: {figures}, and it takes {MIN_NOTES}"
        if not self.decided:
            return f"not enough to decide: {figures}"
        return f"{'better' if self.high < 0 else 'worse'}: {figures}"


class Window(NamedTuple):
    """A stretch of ids that is read at once."""

    ids: list[int]
    """At most `max_tokens`."""
    learn: list[bool]
    """Which of them are targets; the first never is."""


def encode(tokenizer: Any, example: Example, before: Context = ()) -> tuple[list[int], list[bool]]:
    """Ids of an example and which of them count; `before` is read first and never counts.

    Prose begins with the tokenizer's start of text, so that its first word is predicted too. A string before a talk
    is put in front of its first question: every chat template allows that.
    """
    messages = [_plain(message) for message in example.messages]
    if example.form == "prose":
        told = before if isinstance(before, str) else "\n\n".join(message.text for message in before)
        ids = start_of_text(tokenizer) + (bpe.encode_text(tokenizer, encodable(told) + "\n\n") if told else [])
        learnt = [False] * len(ids)
        for i, message in enumerate(messages):
            piece = bpe.encode_text(tokenizer, ("\n\n" if i else "") + message.text)
            ids += piece
            learnt += [message.learn] * len(piece)
        return ids, learnt
    if isinstance(before, str):
        if before and messages and messages[0].role == "user":
            messages[0] = replace(messages[0], text=f"{encodable(before)}\n\n{messages[0].text}")
        elif before:
            messages.insert(0, Message("user", encodable(before), False))
    else:
        messages = [replace(_plain(message), learn=False) for message in before] + messages
    return bpe.encode_chat(tokenizer, messages)


def _plain(message: Message) -> Message:
    return replace(message, text=encodable(message.text))


def start_of_text(tokenizer: Any) -> list[int]:
    """What stands before a text: BOS, else the separator that texts were trained with."""
    if tokenizer.bos_token_id is not None:
        return [tokenizer.bos_token_id]
    between = tokenizer.get_vocab().get(bpe.END_OF_TEXT, tokenizer.eos_token_id)
    return [] if between is None else [between]


def windows(ids: Sequence[int], learn: Sequence[bool], max_tokens: int) -> list[Window]:
    """A sequence in pieces of at most `max_tokens`; each learnt token but a sequence's first is a target exactly once.

    A piece begins with the last quarter of the piece before it, as context. Pieces with no target are left out.
    """
    last = max((i for i, one in enumerate(learn) if one), default=-1)
    ids, learn = list(ids[: last + 1]), list(learn[: last + 1])
    overlap = max_tokens // 4
    found = []
    start = 0
    while True:
        known = overlap if start else 1  # the first token of all has nothing before it
        piece = Window(ids[start : start + max_tokens], [False] * known + learn[start + known : start + max_tokens])
        if any(piece.learn):
            found.append(piece)
        if start + max_tokens >= len(ids):
            return found
        start += max_tokens - overlap


def batches(lengths: Sequence[int], *, tokens: int, rows: int) -> list[list[int]]:
    """Indices grouped by length, shortest first: at most `rows` in a batch, and `tokens` with padding (or one row)."""
    found: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if found and len(found[-1]) < rows and (len(found[-1]) + 1) * lengths[i] <= tokens:
            found[-1].append(i)
        else:
            found.append([i])
    return found


def packs(lengths: Sequence[int], *, tokens: int, rows: int) -> list[list[int]]:
    """Indices in their order, grouped: at most `rows` in a batch, and `tokens` without padding (or one row)."""
    found: list[list[int]] = []
    held = 0
    for i, length in enumerate(lengths):
        if found and len(found[-1]) < rows and held + length <= tokens:
            found[-1].append(i)
            held += length
        else:
            found.append([i])
            held = length
    return found


def pad(pieces: Sequence[Window], filler: int = 0) -> tuple[Any, Any, Any]:
    """Windows as tensors `input_ids`, `attention_mask`, `labels` (B, T), padded on the right; labels are -100 where nothing is learnt."""
    import torch

    width = max(len(piece.ids) for piece in pieces)
    ids = torch.full((len(pieces), width), filler, dtype=torch.long)
    mask = torch.zeros((len(pieces), width), dtype=torch.long)
    labels = torch.full((len(pieces), width), -100, dtype=torch.long)
    for row, piece in enumerate(pieces):
        n = len(piece.ids)
        ids[row, :n] = torch.tensor(piece.ids)
        mask[row, :n] = 1
        labels[row, :n] = torch.where(torch.tensor(piece.learn), ids[row, :n], -100)
    return ids, mask, labels


def laid(model: Any, ids: Any, mask: Any, labels: Any) -> tuple[dict[str, Any], Any, Any, Any]:
    """A batch as the model reads it: its arguments; and of each label that is not -100 where it is predicted, itself, and its row.

    The places count the cells of what is read, laid end to end: of one packed row where the model reads those, else of the batch.
    """
    import torch

    wanted = labels[:, 1:] != -100
    if packed.on(model):
        given, where = packed.row(ids, mask), packed.places(mask)
    else:
        given, where = {"input_ids": ids, "attention_mask": mask}, torch.arange(ids.numel(), device=ids.device).view_as(ids)
    return given, where[:, :-1][wanted], labels[:, 1:][wanted], wanted.nonzero()[:, 0]


def token_losses(model: Any, ids: Any, mask: Any, labels: Any) -> tuple[Any, Any]:
    """Negative log-likelihood in nats of each target, fp32, and its row: two vectors with one entry per label that is not -100."""
    given, places, targets, rows = laid(model, ids, mask, labels)
    return losses.of(model, given, places, targets), rows


def score(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    max_tokens: int,
    context: Mapping[str, Context] | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> list[Score]:
    """What each example's learnt text costs the model, in the order of the examples.

    Long examples are read in overlapping windows (`windows`): nothing is dropped. `context` maps example ids to what
    is read before them. `progress` gets the share that is done after each batch. Out of memory, batches are halved from there on;
    raises ModelError when a single window does not fit.
    """
    import torch

    pieces: list[Window] = []
    owners: list[int] = []
    for i, example in enumerate(examples):
        found = windows(*encode(tokenizer, example, (context or {}).get(example.id, ())), max_tokens)
        pieces += found
        owners += [i] * len(found)
    bits = [0.0] * len(examples)
    where = next(model.parameters()).device
    was_training = model.training
    model.eval()
    lengths = [len(piece.ids) for piece in pieces]
    total, done, most = sum(lengths), 0, 0
    waiting = batches(lengths, tokens=batch_tokens(model), rows=64)[::-1]
    try:
        while waiting:
            batch = waiting.pop()
            cells = len(batch) * max(lengths[i] for i in batch)
            if len(batch) > 1 and 0 < most < cells:
                waiting += [batch[len(batch) // 2 :], batch[: len(batch) // 2]]
                continue
            found_costs = _costs(model, [pieces[i] for i in batch], where)
            if found_costs is None:
                if len(batch) == 1:
                    raise ModelError(
                        f"the memory is not enough to read {cells} tokens; set train.max_tokens lower or choose a smaller base"
                    )
                most = cells // 2
                waiting.append(batch)
                continue
            costs, rows = found_costs
            sums = torch.zeros(len(batch), dtype=torch.float64).index_add_(0, rows.cpu(), costs.double().cpu())
            for row, i in enumerate(batch):
                bits[owners[i]] += float(sums[row]) / math.log(2)
            done += sum(lengths[i] for i in batch)
            progress(done / total)
    finally:
        model.train(was_training)
    scored = set(owners)
    return [Score(example.id, example.path, bits[i], learnt_bytes(example) if i in scored else 0) for i, example in enumerate(examples)]


def _costs(model: Any, pieces: Sequence[Window], where: Any) -> tuple[Any, Any] | None:
    """`token_losses` of windows, for measuring; None when the memory was not enough."""
    import torch

    try:
        with torch.inference_mode():
            return token_losses(model, *(tensor.to(where) for tensor in pad(pieces)))
    except (RuntimeError, MemoryError) as error:
        if not hf.out_of_memory(error):
            raise
    if torch.cuda.is_available():  # not while the error is handled, which holds on to what filled the memory
        torch.cuda.empty_cache()
    return None


def batch_tokens(model: Any) -> int:
    """How many tokens are read at once: what keeps the logits (fp32) under half a gigabyte, on a GPU under eight."""
    return tokens_at_once(model.get_input_embeddings().weight.shape[0], next(model.parameters()).device.type)


def tokens_at_once(vocabulary: int, where: str) -> int:
    """`batch_tokens` of a model with so many words on a device of this type (`cuda`, `mps`, `cpu`)."""
    elements = 2**31 if where == "cuda" else 2**27
    return int(min(max(elements // vocabulary, 256), 32768 if elements > 2**27 else 4096))


def learnt_bytes(example: Example) -> int:
    """UTF-8 bytes of the text that an example learns."""
    return sum(len(message.text.encode("utf-8", "replace")) for message in example.messages if message.learn)


def bits_per_byte(scores: Sequence[Score]) -> float:
    """Of all of them together. Raises DataError when nothing was scored."""
    total = sum(one.bytes for one in scores)
    if total == 0:
        raise DataError("there is nothing to measure: no held-out text")
    return sum(one.bits for one in scores) / total


def per_note(scores: Sequence[Score]) -> dict[str, tuple[float, int]]:
    """Note -> its bits and bytes, in the order of their first scores."""
    found: dict[str, tuple[float, int]] = {}
    for one in scores:
        bits, size = found.get(one.path, (0.0, 0))
        found[one.path] = (bits + one.bits, size + one.bytes)
    return found


def write_scores(path: Path, scores: Mapping[str, Sequence[Score]]) -> None:
    """Keep scores, named by who was measured, so that others can be compared with them later."""
    plain = {name: [astuple(one) for one in several] for name, several in scores.items()}
    write_whole(path, json.dumps(plain, ensure_ascii=False) + "\n")


def read_scores(path: Path) -> dict[str, list[Score]]:
    """What `write_scores` wrote; {} when there is no such file. Raises DataError when it is damaged."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        return {
            name: [Score(str(one), str(note), float(bits), int(size)) for one, note, bits, size in rows] for name, rows in plain.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"the scores cannot be read ({error}); train again", path=str(path)) from error


def paired_bootstrap(before: Sequence[Score], after: Sequence[Score], *, samples: int = 2000, seed: int = 0) -> Interval:
    """Difference in bits per byte (after minus before) with its 95 % percentile interval, notes resampled in pairs.

    Paired bootstrap (Koehn 2004, W04-3250). Raises DataError when the two did not score the same examples.
    """
    if sorted(one.example for one in before) != sorted(one.example for one in after):
        raise DataError("two models can only be compared on the same examples")
    old, new = per_note(before), per_note(after)
    notes = [note for note, (_, size) in old.items() if size]
    if not notes:
        raise DataError("there is nothing to measure: no held-out text")
    gain = np.array([new[note][0] - old[note][0] for note in notes])
    sizes = np.array([old[note][1] for note in notes], dtype=float)
    drawn = np.random.default_rng(seed).integers(len(notes), size=(samples, len(notes)))
    differences = gain[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.percentile(differences, [2.5, 97.5])
    return Interval(float(gain.sum() / sizes.sum()), float(low), float(high), len(notes))


def arms(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    recalled: Mapping[str, str],
    *,
    max_tokens: int,
    memory_tokens: int = 256,
    progress: Callable[[float], None] = lambda share: None,
) -> dict[str, list[Score]]:
    """The assistant's held-out turns by `base`, `base+memory`, `trained` and `trained+memory`.

    `model` wears its adapter (peft); without one there are only the first two arms. `recalled` maps example ids to
    what memory found, of which `memory_tokens` at most are read. All arms read windows of the same length.
    """
    talks = [example for example in examples if example.form == "dialogue"]
    width = min(max_tokens + memory_tokens, getattr(model.config, "max_position_embeddings", None) or sys.maxsize)
    return four_arms(model, tokenizer, talks, recalled, max_tokens=width, memory_tokens=memory_tokens, progress=progress)


def four_arms(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    recalled: Mapping[str, str],
    *,
    max_tokens: int,
    memory_tokens: int,
    memory: bool = True,
    progress: Callable[[float], None] = lambda share: None,
) -> dict[str, list[Score]]:
    """`arms` of any examples, in windows of `max_tokens` with what memory found in them; `memory` off: without those two."""
    told = {example.id: _cut(tokenizer, recalled.get(example.id, ""), memory_tokens) for example in examples} if memory else {}
    plan: list[tuple[str, bool, Mapping[str, Context]]] = []
    for name in ("base", "trained") if hasattr(model, "disable_adapter") else ("base",):
        plan += [(name, name == "trained", {})] + ([(f"{name}+memory", name == "trained", told)] if memory else [])
    found: dict[str, list[Score]] = {}
    for i, (name, trained, context) in enumerate(plan):
        share = _part(progress, i, len(plan))
        with contextlib.nullcontext() if trained else base_only(model):
            found[name] = score(model, tokenizer, examples, max_tokens=max_tokens, context=context, progress=share)
    return found


def _part(progress: Callable[[float], None], i: int, n: int) -> Callable[[float], None]:
    return lambda share: progress((i + share) / n)


@contextlib.contextmanager
def base_only(model: Any) -> Iterator[None]:
    """The model without its adapter, exactly the base; a model that has none is itself."""
    with model.disable_adapter() if hasattr(model, "disable_adapter") else contextlib.nullcontext():
        yield


def _cut(tokenizer: Any, text: str, most: int) -> str:
    """The first `most` tokens of a text."""
    ids = bpe.encode_text(tokenizer, encodable(text))
    if len(ids) <= most:
        return text
    kept: str = tokenizer.decode(ids[:most], clean_up_tokenization_spaces=False)
    return kept.rstrip("\ufffd")
