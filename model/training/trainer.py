"""The training loop."""

from __future__ import annotations

import ctypes
import json
import math
import platform
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from model.architecture import rounding
from model.architecture.causal import CausalModel
from model.architecture.gcnn import GCNN, build
from model.core.outputs import check_folder, cut_torn_line, lock, naming
from model.data.corpus import Corpus, windows
from model.evaluation.scoring import validation_loss
from model.training import checkpoint, optim, restore
from model.training.distributed import Group, alone
from model.training.recipe import RunConfig

METRICS = "metrics.jsonl"
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


class Trainer:
    """One run in one folder: `last.pt`, `best.pt` and `metrics.jsonl`.

    A new run begins with the weights of `initial`, if given, instead of random ones; `tokenizer` is
    the fingerprint of its tokenizer, if that is known. Opened on a
    folder with a `last.pt` it goes on from there, to the same losses as a run that
    was never stopped: batches and dropout follow from the seed and the step alone. Several
    processes take rows of each batch in turn; without dropout the losses are those of one.
    """

    def __init__(
        self,
        config: RunConfig,
        train: Corpus,
        valid: Corpus,
        folder: Path,
        group: Group | None = None,
        initial: GCNN | None = None,
        tokenizer: str | None = None,
    ) -> None:
        check_folder(folder, checkpoint.LAST)
        _only_a_run(folder)
        for corpus in (train, valid):
            tokenizer = tokenizer or corpus.tokenizer
            corpus.check(config.model.vocabulary, config.start_id, tokenizer)
        self.tokenizer = tokenizer
        self.config, self.train_corpus, self.valid_corpus = config, train, valid
        self.folder = folder
        self.group = group or alone()
        self.device = self.group.device
        if config.train.batch_rows % self.group.size:
            raise ValueError(
                f"train.batch_rows is {config.train.batch_rows}, which {self.group.size} processes "
                "cannot share evenly"
            )
        _keep_freed_memory()
        torch.manual_seed(config.train.seed)
        self.model = build(config.model, config.start_id)
        if config.train.identity_blocks:
            if not isinstance(self.model, GCNN):
                raise ValueError("identity_blocks is for convolutional models")
            self.model.begin_as_identity()
        if initial is not None:
            if not isinstance(self.model, GCNN):
                raise ValueError("only a convolutional model can begin with another's weights")
            restore.copy(initial, self.model)
        if config.train.keep_ngrams:
            self._keep_ngrams(initial)
        if config.train.grid is not None:
            if not isinstance(self.model, GCNN):
                raise ValueError("a grid is for convolutional models")
            self.model.gridded()  # raises where there can be none
        self.model.dropout = config.train.dropout
        self.model.to(self.device)
        self.optimizers = optim.build(config.optim, self.model)
        self.average = self._average_model()
        self.step, self.best, self.rate = 0, math.inf, 1.0
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / checkpoint.LAST).exists():
            self._resume(folder / checkpoint.LAST)
        self.wrapped = self.group.wrapped(self.model)

    def _keep_ngrams(self, initial: GCNN | None) -> None:
        resumed = (self.folder / checkpoint.LAST).exists()
        if not len(self.model.ngrams) or (initial is None and not resumed):
            raise ValueError(
                "keep_ngrams needs a model with n-grams, and one to begin with: --init"
            )
        for ngram in self.model.ngrams:
            ngram.table.requires_grad_(False)

    def run(self) -> float:
        """Trains to the last step; returns the best validation loss, in nats per token.

        A keyboard interrupt ends the update under way, saves a checkpoint and is raised then.
        """
        settings = self.config.train
        saved = time.monotonic()
        with (
            self._metrics() as metrics,
            self._bar() as bar,
            _interrupts() as interrupted,
        ):
            if not self.step:
                self._save()  # a kill behind the first `best.pt` leaves what to go on from
            while self.step < settings.steps:
                loss = self.advance()
                bar.update(settings.batch_rows * settings.row_tokens)
                bar.set_postfix(step=self.step, loss=f"{loss:.3f}", refresh=False)
                if self.step % settings.validate_every == 0 or self.step == settings.steps:
                    self._validate(loss, metrics)
                    saved = self._save()
                elif interrupted.is_set() or time.monotonic() - saved > settings.checkpoint_seconds:
                    saved = self._save()
                if interrupted.is_set():
                    raise KeyboardInterrupt
        return self.best

    @contextmanager
    def _metrics(self) -> Iterator[IO[str]]:
        """The file of metrics to add to, which no other run has open meanwhile."""
        path = self.folder / METRICS
        with path.open("a") as file:
            if self.group.first:
                lock(file, path)
                cut_torn_line(path)
            yield file

    def advance(self) -> float:
        """One optimiser step; the mean loss of its batch, in nats per token."""
        settings = self.config.train
        seed = (settings.seed * 1_000_003 + self.step) * self.group.size + self.group.rank
        torch.manual_seed(seed)  # dropout
        rng = np.random.default_rng([settings.seed, self.step])
        inputs, targets = windows(
            self.train_corpus,
            settings.batch_rows,
            settings.row_tokens,
            self.config.start_id,
            rng,
        )
        counted = int((targets >= 0).sum()) / self.group.size
        own = slice(self.group.rank, None, self.group.size)
        factor = self.rate
        if self.config.optim.schedule == "trapezoid":
            factor = optim.trapezoid(self.config.optim, self.step, settings.steps)
        for group in (g for optimizer in self.optimizers for g in optimizer.param_groups):
            group["lr"] = self.config.optim.learning_rate * factor * group.get(optim.RATE, 1.0)
        self.model.train()
        self.model.zero_grad()
        value = 0.0
        parts = list(self._parts(inputs[own], targets[own]))
        early = self.step < self.config.train.grid_after
        with nullcontext() if early else self._gridded(self.model):
            for part in parts:
                with self.group.gathering(self.wrapped, last=part is parts[-1]):
                    with self._precision():
                        total = self.wrapped(*part)
                    loss = total / counted  # the mean over processes is that over the batch
                    loss.backward()
                value += float(loss.detach())
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.step += 1
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss became {value} at step {self.step}")
        return value

    def _parts(
        self, inputs: npt.NDArray[np.int64], targets: npt.NDArray[np.int64]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """This process's rows, `rows_at_once` at a time, on its device."""
        size = self.config.train.rows_at_once or len(inputs)
        for begin in range(0, len(inputs), size):
            rows = slice(begin, begin + size)
            yield (
                torch.from_numpy(inputs[rows]).to(self.device),
                torch.from_numpy(targets[rows]).to(self.device),
            )

    def _validate(self, train_loss: float, metrics: IO[str]) -> None:
        loss = 0.0
        if self.group.first:
            with self._gridded(self._best_guess()), self._precision():
                loss = validation_loss(
                    self._best_guess(), self.valid_corpus, self.config.train.validate_tokens
                )
        loss = self.group.shared(loss)
        if loss < self.best:
            self.best = loss
            weights = self._best_guess().state_dict()
            self._write(self.folder / checkpoint.BEST, self._state(weights))
        elif self.config.optim.schedule == "plateau":
            self.rate /= 2
        record = {
            "step": self.step,
            "tokens": self.step * self.config.train.batch_rows * self.config.train.row_tokens,
            "train_loss": train_loss,
            "valid_loss": loss,
            "valid_perplexity": math.exp(min(loss, 700.0)),
            "learning_rate": self.optimizers[0].param_groups[0]["lr"],
            "time": time.time(),
        }
        if not self.group.first:
            return
        with naming(self.folder / METRICS):
            metrics.write(json.dumps(record) + "\n")
            metrics.flush()
        tqdm.write(f"step {self.step}: validation perplexity {record['valid_perplexity']:.2f}")

    def _save(self) -> float:
        state = self._state(self.model.state_dict())
        state["optimizers"] = [optimizer.state_dict() for optimizer in self.optimizers]
        if self.average is not None:
            state["average"] = self.average.state_dict()
        self._write(self.folder / checkpoint.LAST, state)
        return time.monotonic()

    def _write(self, path: Path, state: dict[str, Any]) -> None:
        if self.group.first:
            checkpoint.save(path, state)

    def _state(self, weights: dict[str, Any]) -> dict[str, Any]:
        return {
            "config": self.config.model_dump_json(),
            "model": weights,
            "step": self.step,
            "best": self.best,
            "rate": self.rate,
            "tokenizer": self.tokenizer,
        }

    def _resume(self, path: Path) -> None:
        state = checkpoint.load(path)
        before = checkpoint.config_of(path, state)
        own_text = (self.config.model, self.config.start_id)
        empty = not state["step"] and not (self.folder / checkpoint.BEST).exists()
        if empty and (before.model, before.optim) != (self.config.model, self.config.optim):
            return  # it stopped before its first update; nothing is lost
        if (before.model, before.start_id) != own_text:
            raise ValueError(f"{self.folder} holds a run of another model; choose another folder")
        kept, own = before.optim, self.config.optim
        if kept.name != own.name or bool(kept.average_decay) != bool(own.average_decay):
            raise ValueError(
                f"{self.folder} holds a run with another optimiser or averaging; choose another "
                "folder, or --init to begin with its weights"
            )
        if "optimizers" not in state:
            raise ValueError(
                f"{self.folder} holds a run of an older version; choose another folder"
            )
        self.tokenizer = state.get("tokenizer") or self.tokenizer
        for corpus in (self.train_corpus, self.valid_corpus):
            corpus.check_tokenizer(self.tokenizer)
        with checkpoint.restoring(path):
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            self.step = state["step"]
            self.best, self.rate = float(state["best"]), float(state["rate"])
        if before.train.grid != self.config.train.grid:
            self.best = math.inf  # was another model's

    def _average_model(self) -> AveragedModel | None:
        decay = self.config.optim.average_decay
        if not decay:
            return None
        return AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(decay))

    def _best_guess(self) -> CausalModel:
        """The averaged weights if there are any, else the current ones."""
        return self.model if self.average is None else cast(CausalModel, self.average.module)

    @property
    def dtype(self) -> torch.dtype:
        """What products are computed in."""
        wanted = self.config.train.precision
        if wanted == "auto":
            fast = self.device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
            wanted = "bfloat16" if fast else "float32"
        return torch.bfloat16 if wanted == "bfloat16" else torch.float32

    @contextmanager
    def _precision(self) -> Iterator[None]:
        enabled = self.dtype == torch.bfloat16
        with torch.autocast(self.device.type, torch.bfloat16, enabled=enabled):
            yield

    @contextmanager
    def _gridded(self, model: CausalModel) -> Iterator[None]:
        """Within it the weights of a model are on the recipe's grid, if it has one.

        Gradients there are taken for those of the weights behind (Bengio et al. 2013, sec. 2.3).
        """
        grid = self.config.train.grid
        if grid is None:
            yield
            return
        weights = cast(GCNN, model).gridded()
        rounded = [rounding.on_grid(weight, grid) for weight in weights]
        behind = [weight.data for weight in weights]
        try:
            for weight, data in zip(weights, rounded, strict=True):
                weight.data = data
            yield
        finally:
            for weight, data in zip(weights, behind, strict=True):
                weight.data = data

    def _bar(self) -> tqdm[None]:
        tokens = self.config.train.batch_rows * self.config.train.row_tokens
        return tqdm(
            total=self.config.train.steps * tokens,
            initial=self.step * tokens,
            unit="tok",
            unit_scale=True,
            smoothing=0.05,
            disable=not self.group.first,
        )


def _only_a_run(folder: Path) -> None:
    """Raises FileExistsError for files that a run would replace or add to, but not go on from."""
    if (folder / checkpoint.LAST).exists():
        return
    for name in (checkpoint.BEST, METRICS):
        path = folder / name
        if path.exists() and (not path.is_file() or path.stat().st_size):
            raise FileExistsError(
                f"{folder} holds {name}, but no {checkpoint.LAST} to go on from; "
                f"choose another folder, or move {name} away"
            )


def _keep_freed_memory() -> None:
    """Tells glibc not to give back what an update frees and the next one asks for again.

    Handing it out anew, page by page, would take several hundredths of an update. What is larger
    than 32 MiB is given back all the same.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 25)


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Set by the first Ctrl-C, so that it cannot fall inside an update; a second one is as ever."""
    asked = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    listens = threading.current_thread() is threading.main_thread()
    if listens and before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        if listens:
            signal.signal(signal.SIGINT, before)
