"""The training loop."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from model import checkpoint, optim
from model.data import Corpus, windows
from model.evaluate import validation_loss
from model.gcnn import GCNN
from model.train_config import RunConfig


class Trainer:
    """One run in one folder: `last.pt`, `best.pt` and `metrics.jsonl`.

    Opened on a folder with a `last.pt` it goes on from there, to the same losses as a run that
    was never stopped: batches and dropout follow from the seed and the step alone.
    """

    def __init__(self, config: RunConfig, train: Corpus, valid: Corpus, folder: Path) -> None:
        for corpus in (train, valid):
            if corpus.vocabulary != config.model.vocabulary:
                raise ValueError(
                    f"model.vocabulary is {config.model.vocabulary}, but a corpus was prepared "
                    f"with a tokenizer of {corpus.vocabulary} tokens"
                )
        self.config, self.train_corpus, self.valid_corpus = config, train, valid
        self.folder = folder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(config.train.seed)
        self.model = GCNN(config.model, config.start_id)
        self.model.dropout = config.train.dropout
        self.model.to(self.device)
        self.optimizer = optim.build(config.optim, self.model)
        self.step, self.best, self.rate = 0, math.inf, 1.0
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / checkpoint.LAST).exists():
            self._resume(checkpoint.load(folder / checkpoint.LAST))

    def run(self) -> float:
        """Trains to the last step; returns the best validation loss, in nats per token.

        A keyboard interrupt saves a checkpoint and is raised again.
        """
        settings = self.config.train
        saved = time.monotonic()
        with (self.folder / "metrics.jsonl").open("a") as metrics, self._bar() as bar:
            try:
                while self.step < settings.steps:
                    loss = self._update()
                    bar.update(settings.batch_rows * settings.row_tokens)
                    bar.set_postfix(step=self.step, loss=f"{loss:.3f}", refresh=False)
                    if self.step % settings.validate_every == 0 or self.step == settings.steps:
                        self._validate(loss, metrics)
                        saved = self._save()
                    elif time.monotonic() - saved > settings.checkpoint_seconds:
                        saved = self._save()
            except KeyboardInterrupt:
                self._save()
                raise
        return self.best

    def _update(self) -> float:
        """One optimiser step; the mean loss of its batch, in nats per token."""
        settings = self.config.train
        torch.manual_seed(settings.seed * 1_000_003 + self.step)  # dropout
        rng = np.random.default_rng([settings.seed, self.step])
        inputs, targets = (
            torch.from_numpy(array).to(self.device)
            for array in windows(
                self.train_corpus,
                settings.batch_rows,
                settings.row_tokens,
                self.config.start_id,
                rng,
            )
        )
        factor = self.rate
        if self.config.optim.schedule == "trapezoid":
            factor = optim.trapezoid(self.config.optim, self.step, settings.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.optim.learning_rate * factor
        self.model.train()
        with self._precision():
            losses = self.model.losses(inputs, targets)
        loss = losses.sum() / (targets >= 0).sum()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip_norm)
        self.optimizer.step()
        self.step += 1
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss became {value} at step {self.step}")
        return value

    def _validate(self, train_loss: float, metrics: IO[str]) -> None:
        with self._precision():
            loss = validation_loss(self.model, self.valid_corpus, self.config.train.validate_tokens)
        if loss < self.best:
            self.best = loss
            checkpoint.save(self.folder / checkpoint.BEST, self._state(with_optimizer=False))
        elif self.config.optim.schedule == "plateau":
            self.rate /= 2
        record = {
            "step": self.step,
            "tokens": self.step * self.config.train.batch_rows * self.config.train.row_tokens,
            "train_loss": train_loss,
            "valid_loss": loss,
            "valid_perplexity": math.exp(min(loss, 700.0)),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "time": time.time(),
        }
        metrics.write(json.dumps(record) + "\n")
        metrics.flush()
        tqdm.write(f"step {self.step}: validation perplexity {record['valid_perplexity']:.2f}")

    def _save(self) -> float:
        checkpoint.save(self.folder / checkpoint.LAST, self._state(with_optimizer=True))
        return time.monotonic()

    def _state(self, *, with_optimizer: bool) -> dict[str, Any]:
        state = {
            "config": self.config.model_dump_json(),
            "model": self.model.state_dict(),
            "step": self.step,
            "best": self.best,
            "rate": self.rate,
        }
        return state | ({"optimizer": self.optimizer.state_dict()} if with_optimizer else {})

    def _resume(self, state: dict[str, Any]) -> None:
        if RunConfig.model_validate_json(state["config"]).model != self.config.model:
            raise ValueError(f"{self.folder} holds a run of another model; choose another folder")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.best, self.rate = state["step"], state["best"], state["rate"]

    @contextmanager
    def _precision(self) -> Iterator[None]:
        wanted = self.config.train.precision
        if wanted == "auto":
            fast = self.device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
            wanted = "bfloat16" if fast else "float32"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=wanted == "bfloat16"):
            yield

    def _bar(self) -> tqdm[None]:
        tokens = self.config.train.batch_rows * self.config.train.row_tokens
        return tqdm(
            total=self.config.train.steps * tokens,
            initial=self.step * tokens,
            unit="tok",
            unit_scale=True,
            smoothing=0.05,
        )
