"""How a micro model learns: optimisers, dropout, precision, the loop, and what it writes meanwhile.

Muon (Jordan et al. 2024; `torch.optim.Muon`) for the matrices, AdamW for the rest, and a warm-up/constant/decay schedule (Hu et
al. 2024, arXiv:2404.06395) driven by the share of the budget that is used, so that a run always ends annealed. Knows nothing
about notes, files or how large a model should be.
"""

from __future__ import annotations

import contextlib
import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from vaultllm.models import losses, plan
from vaultllm.models.plan import Budget, Recipe, Reporter, Sample, Watched


def _optimizers(model: Any, weight_decay: float) -> list[Any]:
    """Muon for the matrices of the blocks, AdamW for embeddings and norms."""
    import torch

    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=plan.MUON_LR, momentum=0.95, weight_decay=weight_decay, adjust_lr_fn="original"),
        torch.optim.AdamW(rest, lr=plan.ADAM_LR, betas=(0.9, plan.ADAM_BETA2), weight_decay=0.0),
    ]


def _loss(model: Any, windows: Any, dtype: Any) -> Any:
    """Mean cross-entropy (nats per token) of windows [rows, length + 1]; `dtype` None: no autocast."""
    import torch

    with torch.autocast(windows.device.type, dtype=dtype, enabled=dtype is not None):
        hidden = model.model(input_ids=windows[:, :-1], use_cache=False).last_hidden_state
    return losses.mean(hidden.flatten(0, 1), model.lm_head.weight, windows[:, 1:].flatten(), dtype)


@contextlib.contextmanager
def dropout(model: Any, share: float) -> Iterator[None]:
    """Drop this share of the embeddings and of what each layer adds, while the model trains; the architecture has none of its own."""
    import torch

    def drop(module: Any, given: Any, out: Any) -> Any:
        if not isinstance(out, tuple):
            return torch.nn.functional.dropout(out, share, module.training)
        return (torch.nn.functional.dropout(out[0], share, module.training), *out[1:])

    inner = model.model
    parts = [inner.embed_tokens, *(part for layer in inner.layers for part in (layer.self_attn, layer.mlp))] if share else []
    hooks = [part.register_forward_hook(drop) for part in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _speed(model: Any, dtype: Any, report: Reporter) -> float:
    """Tokens per second of whole training steps on random tokens, on a copy of the model; about half a second."""
    import torch

    model = copy.deepcopy(model)
    optimizers = _optimizers(model, plan.WEIGHT_DECAY)
    windows = torch.zeros(plan.STEP_TOKENS // plan.CONTEXT, plan.CONTEXT + 1, dtype=torch.long, device=model.device)
    windows.random_(0, model.config.vocab_size, generator=torch.Generator(model.device).manual_seed(0))
    best, began = 0.0, math.inf
    for i in range(6):
        report("measuring speed")
        started = time.monotonic()
        _loss(model, windows, dtype).backward()
        report("measuring speed")
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.monotonic()
        if i:  # the first step allocates
            best = max(best, windows[:, 1:].numel() / (now - started))
            if now - began > 0.5:
                break
        else:
            began = now
    return best


def faster_dtype(model: Any, report: Reporter) -> tuple[Any, float]:
    """bfloat16 when it is faster here, else None (fp32); and its tokens per second. Never assumed: many CPUs emulate it."""
    import torch

    plain = _speed(model, None, report)
    try:
        short = _speed(model, torch.bfloat16, report)
    except RuntimeError:  # no kernel for it on this machine
        return None, plain
    return (torch.bfloat16, short) if short > 1.05 * plain else (None, plain)


def train(
    model: Any,
    stream: Any,
    recipe: Recipe,
    dtype: Any,
    speed: float,
    budget: Budget,
    seed: int,
    report: Reporter,
    watched: Watched,
    own_words: Callable[[], str],
) -> dict[str, Any]:
    """Train until time, steps or text are used up, or somebody says stop; says what was seen and how it ended."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    optimizers = _optimizers(model, recipe.weight_decay)
    groups = [(group, group["lr"]) for optimizer in optimizers for group in optimizer.param_groups]
    started, training_time = time.monotonic(), budget.left()
    tokens, aside = 0, 0.0  # seconds that writing took

    def show(done: float) -> None:
        nonlocal aside
        if watched.written is not None:
            began = time.monotonic()
            watched.written(Sample(report.step, done, report.loss, report.rate, own_words()))
            aside += time.monotonic() - began

    def step(factor: float, done: float) -> None:
        """One step at a share of the full learning rate."""
        nonlocal tokens
        for group, rate in groups:
            group["lr"] = rate * factor
        length = plan.LONG_CONTEXT if report.step % plan.LONG_EVERY == plan.LONG_EVERY - 1 else plan.CONTEXT
        length = min(length, len(stream) - 1)
        starts = torch.randint(len(stream) - length, (max(1, recipe.step_tokens // length),), generator=generator)
        windows: Any = torch.stack([stream[at : at + length + 1] for at in starts.tolist()]).to(model.device)
        loss = 0.0
        # In parts of about half a second, so that there is something to report.
        rows = max(1, int(min(0.5 * speed, 0.5 * (report.rate or speed), recipe.step_tokens)) // length)
        for part in windows.split(rows):
            partial = _loss(model, part, dtype) * (len(part) / len(windows))
            partial.backward()
            loss += partial.item()
            report("pretraining", done)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        report.step += 1
        tokens += windows[:, 1:].numel()
        share = min(1.0, 0.1 * recipe.step_tokens / 2048)  # about the last 20,000 tokens
        report.loss = loss if report.loss is None else (1 - share) * report.loss + share * loss
        report.rate = tokens / max(1e-9, time.monotonic() - started - aside)

    enough = max(plan.MAX_EPOCHS * (len(stream) - 1), plan.MIN_STEPS * recipe.step_tokens)
    seconds, factor, stopped = recipe.step_tokens / speed, 1.0, False
    durations: list[float] = []
    due = [one for one in plan.SAMPLES if watched.written is not None]
    while budget.left() > seconds or report.step == 0:
        # What will be used in the middle of this step.
        if budget.steps is not None:
            done = (report.step + 0.5) / budget.steps
        else:
            done = max((time.monotonic() - started + 0.5 * seconds) / training_time, (tokens + 0.5 * recipe.step_tokens) / enough)
        if done >= 1:
            if report.step:
                break
            done = 0.5  # the machine is too slow for the time: still one step, in the middle of the schedule
        factor = plan.lr_factor(done)
        began = time.monotonic()
        step(factor, done)
        durations.append(time.monotonic() - began)
        seconds = durations[0] if len(durations) == 1 else 0.8 * seconds + 0.2 * durations[-1]
        if due and done >= due[0]:
            due = [one for one in due if one > done]
            show(done)
        stopped = watched.stop()
        if stopped and done < plan.WORTH_KEEPING:
            raise KeyboardInterrupt(f"stopped after {done:.0%} of the training; nothing is kept")
        if stopped:
            break
    if stopped or (budget.steps is None and factor > 0.1):
        # Stopped, or the machine stalled through the decay: fall in a few steps, a twentieth of the time over it at most.
        spare = 0.05 * budget.seconds
        began, hot = time.monotonic(), factor
        wanted = max(math.ceil(5 * hot), len(durations) // 10)  # the last step of so many has a tenth of the rate
        few = max(1, min(wanted, int(spare / statistics.median(durations))))
        for i in range(few):
            factor = hot * (few - i - 0.5) / few
            step(factor, 1.0)
            if time.monotonic() - began > spare:
                break
    show(1.0)
    return {
        "steps": report.step,
        "tokens_seen": tokens,
        "epochs": round(tokens / (len(stream) - 1), 2),
        "tokens_per_s": None if report.rate is None else round(report.rate, 1),
        "train_loss": report.loss,
        "last_lr_factor": factor,
        "stopped": stopped,
    }


def write(model: Any, tokenizer: Any, seed: int) -> str:
    """The beginning of a note of the model's own; the same for the same weights. Leaves the random numbers of the training alone."""
    import torch

    generator = torch.Generator(model.device).manual_seed(seed)
    ids = [tokenizer.pad_token_id]  # what stands before every note
    training, past = model.training, None
    model.eval()
    with torch.no_grad():
        for _ in range(plan.SAMPLE_TOKENS):
            said = model(input_ids=torch.tensor([ids[-1:]], device=model.device), past_key_values=past, use_cache=True)
            past = said.past_key_values
            likely = torch.topk(said.logits[0, -1].float() / 0.8, min(50, said.logits.shape[-1]))
            chosen = torch.multinomial(torch.softmax(likely.values, 0), 1, generator=generator)
            ids.append(int(likely.indices[chosen]))
            if ids[-1] == tokenizer.pad_token_id:
                break
    model.train(training)
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return text.strip()
