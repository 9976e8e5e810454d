"""The training loop."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from model.architecture import rounding
from model.architecture.causal import CausalModel
from model.architecture.gcnn import GCNN
from model.core.outputs import cut_torn_line, lock, naming
from model.data.corpus import Corpus, windows
from model.evaluation.scoring import validation_loss
from model.training import checkpoint, optim, start
from model.training.process import Group, interrupts, keep_freed_memory, single_process
from model.training.recipe import RunConfig
from model.training.start import METRICS


class Trainer:
    """One run in one folder: `last.pt`, `best.pt` and `metrics.jsonl`.

    A new run begins with the weights of `initial`, if given, instead of random ones; `tokenizer` is
    the fingerprint of its tokenizer, if known. In a folder with a `last.pt` the run is resumed from
    there, with the same losses as a run that was never stopped: batches and dropout depend only on
    the seed and the step. Several processes share the rows of each batch; without dropout the
    losses are those of one process.
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
        start.check_run_folder(folder)
        for corpus in (train, valid):
            tokenizer = tokenizer or corpus.tokenizer
            corpus.check(config.model.vocabulary, config.start_id, tokenizer)
        self.tokenizer = tokenizer
        self.config, self.train_corpus, self.valid_corpus = config, train, valid
        self.folder = folder
        self.group = group or single_process()
        self.device = self.group.device
        if config.train.batch_rows % self.group.size:
            raise ValueError(
                f"train.batch_rows is {config.train.batch_rows}, which {self.group.size} processes "
                "cannot share evenly"
            )
        keep_freed_memory()
        torch.manual_seed(config.train.seed)
        resumes = (folder / checkpoint.LAST).exists()
        self.model = start.new_model(config, initial, resumes=resumes).to(self.device)
        self.optimizers = optim.build(config.optim, self.model)
        decay = config.optim.average_decay
        self.average = (
            AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay else None
        )
        self.step, self.best, self.rate = 0, math.inf, 1.0
        folder.mkdir(parents=True, exist_ok=True)
        if resumes:
            self._resume(folder / checkpoint.LAST)
        self.parallel_model = self.group.parallelize(self.model)

    def run(self) -> float:
        """Trains to the last step; returns the best validation loss, in nats per token.

        A keyboard interrupt is raised after the update under way, with a checkpoint saved.
        """
        settings = self.config.train
        saved = time.monotonic()
        with self._metrics() as metrics, self._bar() as bar, interrupts() as interrupted:
            if not self.step:
                self._save()  # so that a kill after the first `best.pt` leaves a run to resume
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
        """The file of metrics, opened to append and locked against other runs."""
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
            self.train_corpus, settings.batch_rows, settings.row_tokens, self.config.start_id, rng
        )
        counted = int((targets >= 0).sum()) / self.group.size
        shard = slice(self.group.rank, None, self.group.size)
        self._set_learning_rates()
        self.model.train()
        self.model.zero_grad()
        early = self.step < settings.grid_after
        with nullcontext() if early else self._on_grid(self.model):
            loss = self._backward(inputs[shard], targets[shard], counted)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.step += 1
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss became {loss} at step {self.step}")
        return loss

    def _set_learning_rates(self) -> None:
        config = self.config.optim
        factor = self.rate
        if config.schedule == "trapezoid":
            factor = optim.trapezoid(config, self.step, self.config.train.steps)
        for group in (g for optimizer in self.optimizers for g in optimizer.param_groups):
            group["lr"] = config.learning_rate * factor * group.get(optim.RATE, 1.0)

    def _backward(
        self, inputs: npt.NDArray[np.int64], targets: npt.NDArray[np.int64], counted: float
    ) -> float:
        """Adds up gradients over this process's rows; returns the sum of losses over `counted`."""
        value = 0.0
        size = self.config.train.rows_at_once or len(inputs)
        both = (torch.from_numpy(rows).to(self.device).split(size) for rows in (inputs, targets))
        parts = list(zip(*both, strict=True))
        for part in parts:
            with self.group.average_gradients(self.parallel_model, last=part is parts[-1]):
                with self._precision():
                    total = self.parallel_model(*part)
                loss = total / counted  # the mean over processes is that over the batch
                loss.backward()
            value += float(loss.detach())
        return value

    def _validate(self, train_loss: float, metrics: IO[str]) -> None:
        loss = 0.0
        model = self.model if self.average is None else cast(CausalModel, self.average.module)
        if self.group.first:
            with self._on_grid(model), self._precision():
                loss = validation_loss(model, self.valid_corpus, self.config.train.validate_tokens)
        loss = self.group.broadcast(loss)
        if loss < self.best:
            self.best = loss
            if self.group.first:
                checkpoint.save(self.folder / checkpoint.BEST, self._state(model.state_dict()))
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
        if self.group.first:
            checkpoint.save(self.folder / checkpoint.LAST, state)
        return time.monotonic()

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
        if not start.can_resume(self.folder, state, self.config):
            return
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
        before = checkpoint.config_of(path, state)
        if before.train.grid != self.config.train.grid:
            self.best = math.inf  # it was measured on another grid

    @property
    def dtype(self) -> torch.dtype:
        """The type in which matrix products are computed."""
        wanted = self.config.train.precision
        if wanted != "auto":
            return torch.bfloat16 if wanted == "bfloat16" else torch.float32
        fast = self.device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if fast else torch.float32

    def _precision(self) -> torch.autocast:
        enabled = self.dtype == torch.bfloat16
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    @contextmanager
    def _on_grid(self, model: CausalModel) -> Iterator[None]:
        """Inside the block the weights of a model are on the recipe's grid, if it has one.

        Their gradients are used for the unrounded weights (Bengio et al. 2013, sec. 2.3).
        """
        grid = self.config.train.grid
        if grid is None:
            yield
            return
        weights = cast(GCNN, model).gridded()
        rounded = [rounding.on_grid(weight, grid) for weight in weights]
        unrounded = [weight.data for weight in weights]
        try:
            for weight, data in zip(weights, rounded, strict=True):
                weight.data = data
            yield
        finally:
            for weight, data in zip(weights, unrounded, strict=True):
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
