"""One LoRA training: transformers' Trainer with our loss, our pace, our checkpoints.

Batches are built by length beforehand; the loss is per learnt token of the whole step; the learning rate falls to
nothing by the last step that fits into the time; a checkpoint is complete or absent. Knows nothing about datasets,
evaluation of runs, or where adapters go.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vaultllm import checkpoints, evaluate, processes, replay, signals
from vaultllm.errors import ModelError
from vaultllm.evaluate import Window
from vaultllm.files import saving
from vaultllm.models import hf, packed
from vaultllm.power import Wait
from vaultllm.schema import Progress, Report

CHECKPOINT_SECONDS = 300.0
"""What a power cut can cost."""
SLOW_STEP = 5.0
"""A step that took so long is kept at once: who is told to end need not wait for the end of the next."""
ASK_SECONDS = 30.0
"""How long a training goes on before it asks again whether it may."""


class Paused(KeyboardInterrupt):
    """A training that stopped for a while, with a checkpoint behind it: what to the caller is an interruption that has a reason."""

    def __init__(self, wait: Wait, step: int) -> None:
        """`step`: how many are done."""
        super().__init__(f"{wait.reason}; the next vaultllm retrain goes on at step {step}")
        self.wait, self.step = wait, step


def go_on() -> Wait | None:
    """Nobody asks to wait."""
    return None


@dataclass(slots=True)
class Data:
    """The windows of the training side, in batches: in any order where rows are packed, else of similar length."""

    pieces: list[Window]
    weights: list[float]
    batches: list[list[int]]
    accumulate: int
    cut: int
    """Examples that did not fit into one window."""
    empty: int = 0
    """Examples that hold no token which could be learnt (a single one, with nothing before it)."""
    sequence: int = 0
    """The longest window that there may be, in tokens."""
    own: int = 0
    """So many of the pieces, the last ones, are what the base says of itself; they share no batch with the others."""
    packed: bool = False
    """Whether a batch is read as one row without padding (`models.packed`)."""

    def cells(self, batch: Sequence[int]) -> int:
        """What a batch comes to in tokens, padding included where there is any."""
        lengths = [len(self.pieces[i].ids) for i in batch]
        return sum(lengths) if self.packed else len(lengths) * max(lengths)

    def tokens(self) -> dict[str, int]:
        """Of one pass: `learnt`, `context` (read, not learnt; what windows repeat among it) and `padding`."""
        read = sum(len(piece.ids) for piece in self.pieces)
        learnt = sum(sum(piece.learn) for piece in self.pieces)
        cells = sum(map(self.cells, self.batches))
        return {"learnt": learnt, "context": read - learnt, "padding": cells - read}


class Pace:
    """How much of the training is over: by steps when all of them fit into the time, else by the clock."""

    def __init__(self, seconds: float, steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self.steps, self.clock = max(seconds, 0.001), steps, clock
        self.spent = 0.0
        self.started = self.first_end = self.last_end = 0.0
        self.timed = -1
        self.shown = 0.0

    def start(self, spent: float) -> None:
        """Begin, or go on after `spent` seconds."""
        self.spent, self.started = spent, self.clock()

    def step(self) -> None:
        """A step is over; the first one is not counted, it warms things up."""
        self.timed, self.last_end = self.timed + 1, self.clock()
        if self.timed == 0:
            self.first_end = self.last_end

    @property
    def elapsed(self) -> float:
        """Seconds of training, of the interrupted parts too."""
        return self.spent + self.clock() - self.started

    @property
    def per_step(self) -> float | None:
        """Seconds; None before the second step."""
        return (self.last_end - self.first_end) / self.timed if self.timed > 0 else None

    def share(self, step: int) -> float:
        """0..1, never falling. Looks at the clock only when the steps don't fit: a run with time to spare is repeatable."""
        share = step / self.steps
        if self.per_step is not None and self.elapsed + self.per_step * (self.steps - step) > self.seconds:
            share = max(share, self.elapsed / self.seconds)
        self.shown = min(1.0, max(self.shown, share))
        return self.shown

    def over(self, step: int) -> bool:
        """Whether no further step fits."""
        return step >= self.steps or self.elapsed + (self.per_step or 0.0) > self.seconds

    def left(self, step: int) -> float | None:
        """Seconds that the rest will take."""
        return None if self.per_step is None else max(0.0, min(self.seconds - self.elapsed, self.per_step * (self.steps - step)))


@dataclass(slots=True)
class Log:
    """What has been counted so far; part of every checkpoint."""

    learnt: int = 0
    context: int = 0
    padding: int = 0
    seconds: float = 0.0
    loss: float | None = None
    loss_first: float | None = None
    losses: list[tuple[int, float]] = field(default_factory=list)
    fits: int = 0
    """Tokens, with padding, that one pass may take since the memory was not enough for twice as many; 0: it was always enough."""

    def read(self, real: int, learnt: int, cells: int) -> None:
        self.learnt += learnt
        self.context += real - learnt
        self.padding += cells - real

    def step(self, step: int, loss: float) -> None:
        self.loss_first = loss if self.loss_first is None else self.loss_first
        self.loss = loss if self.loss is None else 0.9 * self.loss + 0.1 * loss
        self.losses.append((step, loss))


@dataclass(slots=True)
class Job:
    """What the Trainer and its callback share."""

    folder: Path
    identity: dict[str, Any]
    pace: Pace
    log: Log
    progress: Report
    rate: float
    seed: int
    data: Data
    ask: Callable[[], Wait | None] = go_on
    kl: float = 0.0
    """How much the adapter is held to the base on its own samples (`replay.token_losses`)."""
    wait: Wait | None = None
    interrupted: bool = False
    finished: bool = False
    unsaved: bool = False
    """Whether a step is done that no checkpoint holds."""
    step_began: float = 0.0
    saved_at: float = 0.0
    spoken_at: float = 0.0
    asked_at: float = 0.0

    def speak(self, step: int) -> None:
        """Progress, at most five times a second."""
        if time.monotonic() - self.spoken_at < 0.2 and step < self.pace.steps:
            return
        self.spoken_at = time.monotonic()
        speed = (self.log.learnt + self.log.context) / max(self.pace.elapsed, 1e-9)
        done = max(self.pace.shown, step / self.pace.steps)
        self.progress(Progress("LoRA", min(1.0, done), step, self.log.loss, round(speed, 1), self.pace.left(step)))


def run(model: Any, job: Job, checkpoint: Path | None) -> int:
    """Train, or go on; returns the number of steps. Raises KeyboardInterrupt, or Paused, with a checkpoint behind it."""
    if checkpoint is not None:
        state = checkpoints.read(checkpoint)
        job.log = Log(**(state["log"] | {"losses": [(step, loss) for step, loss in state["log"]["losses"]]}))
        job.pace.shown = state["shown"]
        if processes.rank() == 0:
            _rewind(job.folder / "metrics.jsonl", state["step"])
        if state["finished"]:
            from peft import load_peft_weights, set_peft_model_state_dict

            set_peft_model_state_dict(model, load_peft_weights(str(checkpoint), device=str(next(model.parameters()).device)))
            processes.home()
            return int(state["step"])
    trainer = _trainer(model, job)
    with packed.applied(model, packs=job.data.packed), _signals(job):
        job.pace.start(job.log.seconds)
        job.saved_at = job.asked_at = time.monotonic()
        try:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        except RuntimeError as error:
            if not processes.lost(error):
                raise
            raise KeyboardInterrupt("another process of this training ended; the same command goes on from the last checkpoint") from error
    processes.home()
    if job.wait is not None:
        raise Paused(job.wait, int(trainer.state.global_step))
    if job.interrupted:
        raise KeyboardInterrupt
    return int(trainer.state.global_step)


@contextlib.contextmanager
def _signals(job: Job) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM ends the step and writes a checkpoint; a second one, or when nothing would be lost, stops at once."""

    def stop(number: int, frame: Any) -> None:
        # Of several processes none may leave alone; and a launcher passes on each signal that it gets.
        if processes.count() == 1 and (job.interrupted or not job.unsaved):
            raise KeyboardInterrupt
        job.interrupted = True

    with signals.taken(stop):
        yield


def _trainer(model: Any, job: Job) -> Any:
    """transformers' Trainer with our loss, our learning rate and our checkpoints; silent."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Order(torch.utils.data.Sampler):  # type: ignore[misc, type-arg, unused-ignore]
        """What `processes.dealt` says; another order in each pass."""

        epoch = 0

        def __len__(self) -> int:
            return len(processes.dealt(len(job.data.batches), job.data.accumulate, 0, 0))

        def __iter__(self) -> Iterator[int]:
            return iter(processes.dealt(len(job.data.batches), job.data.accumulate, self.epoch, job.seed))

    class Loop(Trainer):  # type: ignore[misc, unused-ignore]
        """Loss per learnt token of the whole step, weighted by example."""

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
            given = (inputs["input_ids"], inputs["attention_mask"], inputs["labels"])
            if bool(inputs["own"].any()):
                losses, rows = replay.token_losses(model, self.accelerator.unwrap_model(model), *given, job.kl)
            else:
                losses, rows = evaluate.token_losses(model, *given)
            loss = (losses * inputs["weights"][rows]).sum() / num_items_in_batch
            return loss * self.accelerator.num_processes  # gradients are averaged over processes, tokens were summed

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            """A batch, in as many parts as the memory needs: each adds its share to the gradients, so the step is the same."""
            parts, whole = [inputs], 0.0
            while parts:
                part = parts.pop()
                rows, cells = len(part["input_ids"]), packed.cells(model, part["attention_mask"])
                if rows > 1 and 0 < job.log.fits < cells:
                    parts += _halves(part)
                    continue
                loss = self._tried(model, part, num_items_in_batch)
                if loss is None:
                    if rows == 1 or self.accelerator.num_processes > 1:  # the others wait for as many parts as they have themselves
                        raise ModelError(
                            f"the memory is not enough for {cells} tokens; set train.max_tokens lower or choose a smaller base: "
                            "vaultllm doctor --probe says what fits", path=str(job.folder),
                        )  # fmt: skip
                    job.log.fits = cells // 2
                    job.progress(Progress(f"out of memory: at most {job.log.fits} tokens at once from here", job.pace.shown))
                    parts.append(part)
                    continue
                whole = whole + loss
                mask, labels = part["attention_mask"], part["labels"]
                if bool((labels != -100).any()):
                    job.log.read(int(mask.sum()), int((labels != -100).sum()), cells)
            self.step_loss += float(whole) / self.accelerator.num_processes
            return whole

        def _tried(self, model: Any, part: Any, num_items_in_batch: Any) -> Any:
            """The loss of a part, its gradients added; None, and the gradients as they were, when the memory was not enough."""
            learnt = [weight for weight in model.parameters() if weight.requires_grad]
            before = [None if weight.grad is None else weight.grad.clone() for weight in learnt]  # a backward pass may end halfway
            try:
                return super().training_step(model, part, num_items_in_batch)
            except (RuntimeError, MemoryError) as error:
                if not hf.out_of_memory(error):
                    raise
            # Only here, for while an exception is handled it holds on to what filled the memory.
            for weight, gradient in zip(learnt, before, strict=True):
                weight.grad = gradient
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            return None

        def get_train_dataloader(self) -> Any:
            """Our order: the same steps in any number of processes."""
            self.order = Order()
            return torch.utils.data.DataLoader(
                self.train_dataset, batch_size=1, sampler=self.order, collate_fn=self.data_collator,
                pin_memory=self.args.dataloader_pin_memory,
            )  # fmt: skip

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            warm = min(10, max(1, job.pace.steps // 20))

            def factor(step: int) -> float:
                (job.pace.shown,) = processes.most([job.pace.share(step)])
                return min(1.0, (step + 1) / (warm + 1)) * (1.0 - job.pace.shown)

            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
            self._created_lr_scheduler = True
            return self.lr_scheduler

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            """Complete or absent (`checkpoints`)."""
            root = job.folder / "checkpoints"
            aside = root / "writing.tmp"
            if self.args.should_save:
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir(parents=True)
            processes.most([])  # the others put their random state there
            with saving(aside):
                super()._save_checkpoint(model, trial)
            processes.most([])
            if not self.args.should_save:
                job.unsaved = False
                return
            state = {
                "identity": job.identity,
                "step": self.state.global_step,
                "log": asdict(job.log),
                "finished": job.finished,
                "shown": job.pace.shown,
            }
            checkpoints.put(aside / f"checkpoint-{self.state.global_step}", root, state)
            job.unsaved = False
            shutil.rmtree(aside)

        def _get_output_dir(self, trial: Any) -> str:
            return str(job.folder / "checkpoints" / "writing.tmp")

    class Watch(TrainerCallback):  # type: ignore[misc, unused-ignore]
        """After each step: count, log, report, save, stop."""

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            loop.order.epoch = state.global_step // math.ceil(len(job.data.batches) / job.data.accumulate)

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if job.interrupted and not job.unsaved and processes.count() == 1:  # while the checkpoint was written
                raise KeyboardInterrupt
            self.before = (job.log.learnt, job.log.context, job.log.padding)
            job.step_began = time.monotonic()

        def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._speak(state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            step, log, pace = state.global_step, job.log, job.pace
            job.unsaved = True
            pace.step()
            log.seconds = pace.elapsed
            mine = (log.learnt, log.context, log.padding)
            *read, loss = processes.total([*(now - then for now, then in zip(mine, self.before, strict=True)), loop.step_loss])
            log.learnt, log.context, log.padding = (then + int(count) for then, count in zip(self.before, read, strict=True))
            if not math.isfinite(loss):
                message = f"the loss is not a number at step {step}; set train.learning_rate below {job.rate:g}"
                raise ModelError(message, path=str(job.folder))
            log.step(step, loss)
            loop.step_loss = 0.0
            if state.is_world_process_zero and (step % max(1, pace.steps // 500) == 0 or pace.over(step)):
                line = {"step": step, "loss": round(log.losses[-1][1], 5), "lr": loop.used_rate, "seconds": round(log.seconds, 3)}
                line["tokens_per_s"] = round((log.learnt + log.context) / max(log.seconds, 1e-9), 1)
                with (job.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            self._speak(step)
            now = time.monotonic()
            due = now - job.saved_at > CHECKPOINT_SECONDS or now - job.step_began > SLOW_STEP
            job.finished = pace.over(step)
            if not job.finished and not job.interrupted and time.monotonic() - job.asked_at >= ASK_SECONDS:
                job.wait, job.asked_at = job.ask(), time.monotonic()
            stops = [bool(flag) for flag in processes.most([job.finished, job.interrupted, job.wait is not None, due])]
            job.finished, job.interrupted, waits, due = stops
            if job.interrupted or job.finished or waits:
                control.should_training_stop = due = True
            if due:
                control.should_save, job.saved_at = True, time.monotonic()

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            loop.used_rate = loop.lr_scheduler.get_last_lr()[0]

        def _speak(self, step: int) -> None:
            try:
                job.speak(step)
            except KeyboardInterrupt:  # the caller's way to stop; the step is whole here or will be
                job.interrupted = True

    arguments = TrainingArguments(
        output_dir=str(job.folder / "checkpoints"),
        max_steps=job.pace.steps,
        per_device_train_batch_size=1,  # an item of the data is a batch already
        gradient_accumulation_steps=processes.each(job.data.accumulate),
        learning_rate=job.rate,
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=job.seed,
        data_seed=job.seed,
        use_cpu=hf.device() == "cpu",
        bf16=False,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=hf.device() == "cuda",
        remove_unused_columns=False,
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        label_names=["labels"],
    )
    loop = Loop(model=model, args=arguments, train_dataset=[*job.data.batches, []], data_collator=_collator(job.data))
    loop.model_accepts_loss_kwargs = True  # so that the Trainer counts the learnt tokens of a step for us
    loop.loss_is_scaled_for_ga = True
    loop.step_loss, loop.used_rate = 0.0, job.rate
    for callback in list(loop.callback_handler.callbacks):
        if type(callback).__name__ == "PrinterCallback":
            loop.remove_callback(callback)
    loop.add_callback(Watch())
    return loop


def _halves(part: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a batch in two parts, each as wide as its longest row."""
    middle = len(part["input_ids"]) // 2
    halves = [{name: rows[side] for name, rows in part.items()} for side in (slice(None, middle), slice(middle, None))]
    for half in halves:
        width = int(half["attention_mask"].sum(1).max())
        half |= {name: rows[:, :width] for name, rows in half.items() if rows.ndim == 2}
    return halves


def _collator(data: Data) -> Callable[[list[list[int]]], dict[str, Any]]:
    def collate(batches: list[list[int]]) -> dict[str, Any]:
        import torch

        chosen = [i for batch in batches for i in processes.rows(batch, data.accumulate)]
        if not chosen:  # this process has nothing of it, and reads along for the others' sake
            ids, mask, labels = evaluate.pad([Window([0, 0], [False, False])])
            given = {"input_ids": ids, "attention_mask": mask, "labels": labels, "weights": torch.ones(1)}
            return given | {"own": torch.zeros(1, dtype=torch.bool)}
        ids, mask, labels = evaluate.pad([data.pieces[i] for i in chosen])
        own = torch.tensor([i >= len(data.pieces) - data.own for i in chosen])
        weights = torch.tensor([data.weights[i] for i in chosen])
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, "weights": weights, "own": own}

    return collate


def _rewind(path: Path, step: int) -> None:
    """Leave out what was logged after the checkpoint."""
    if path.is_file():
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if json.loads(line)["step"] <= step]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
