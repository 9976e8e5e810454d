"""Shared fixtures: one tiny random bundle with kernels of several widths and dilations."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from model.architecture.gcnn import GCNN
from model.core import bundle
from model.core.config import Block, HashedNgrams, ModelConfig
from model.core.tokenizer import Tokenizer, train_bpe
from model.data.corpus import Corpus, prepare
from model.export import quantize
from model.export.bundle_writer import export
from tests import texts

os.environ["CONVLM_NOTICE_SECONDS"] = "0"  # no balancer watches the servers that tests stop
TINY_BLOCKS = (
    Block(layers=((3, 24),), residual=False),
    Block(layers=((1, 16), (5, 16), (1, 40))),
    Block(layers=((2, 40),), repeat=2, dilation=3),
)


settings.register_profile("untimed", deadline=None)  # how long an example takes says nothing
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of these tests."""
    parser.addoption(
        "--full-width",
        action="store_true",
        help="run the exactness tests on the paper's models with all their channels (slow)",
    )
    parser.addoption(
        "--cases",
        type=int,
        help="requests of each endpoint that are made of the schema, others each time",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Says how many requests are made of the schema, before the tests are collected."""
    cases = config.getoption("cases")
    settings.register_profile(
        "fuzz", max_examples=cases or 10, derandomize=cases is None, deadline=None, database=None
    )


@pytest.fixture
def anyio_backend() -> str:
    """Async tests run on asyncio, as the server does."""
    return "asyncio"


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Byte-level BPE of 400 tokens."""
    return train_bpe([line for text in texts.ALL for line in text.split("\n")], 400)


@pytest.fixture(scope="session")
def tiny_model(tokenizer: Tokenizer) -> GCNN:
    """A random model, R = 13, confident enough for its choices to differ."""
    torch.manual_seed(1)
    config = ModelConfig(
        vocabulary=tokenizer.size,
        embedding=24,
        input_channels=24,
        head_channels=24,
        tied=True,
        blocks=TINY_BLOCKS,
    )
    model = GCNN(config, tokenizer.start_id)
    with torch.no_grad():
        model.embedding.weight.mul_(10)
    return model.eval()


@pytest.fixture(scope="session")
def calibration(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The tests' texts, to choose the scales of 8-bit graphs by."""
    folder = tmp_path_factory.mktemp("calibration")
    prepare(texts.ALL, tokenizer, folder)
    return Corpus(folder)


@pytest.fixture(scope="session")
def tiny_folder(
    tiny_model: GCNN,
    tokenizer: Tokenizer,
    calibration: Corpus,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The folder of the tiny model's bundle."""
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    export(tiny_model, tokenizer, folder, "tiny", "# tiny\n", calibration)
    return folder


@pytest.fixture(scope="session")
def adaptive_model(tokenizer: Tokenizer) -> GCNN:
    """A random model with hashed n-grams and an adaptive softmax of three tails, R = 18."""
    torch.manual_seed(2)
    config = ModelConfig(
        vocabulary=tokenizer.size,
        embedding=24,
        input_channels=24,
        head_channels=70,
        blocks=TINY_BLOCKS,
        clip=0.5,
        cutoffs=(51, 120, 333),
        ngrams=(
            HashedNgrams(order=2, rows=97, channels=8),
            HashedNgrams(order=6, rows=64, channels=5),
        ),
    )
    model = GCNN(config, tokenizer.start_id)
    with torch.no_grad():
        model.embedding.weight.mul_(10)
        model.output.head.weight.mul_(5)
        for ngram in model.ngrams:
            ngram.table.weight.normal_(std=0.3)
    return model.eval()


@pytest.fixture(scope="session")
def adaptive(
    adaptive_model: GCNN,
    tokenizer: Tokenizer,
    calibration: Corpus,
    tmp_path_factory: pytest.TempPathFactory,
) -> bundle.Bundle:
    """The adaptive model's bundle, whose 8-bit graph has scales by row."""
    folder = tmp_path_factory.mktemp("bundles") / "adaptive"
    calibrate = quantize.calibrate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            quantize,
            "calibrate",
            lambda model, seen: (found := calibrate(model, seen)) | quantize.by_row(model, found),
        )
        export(adaptive_model, tokenizer, folder, "adaptive", calibration=calibration)
    return bundle.load(folder)


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> bundle.Bundle:
    """The tiny model's bundle."""
    return bundle.load(tiny_folder)
