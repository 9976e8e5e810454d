"""The commands that evaluate a checkpoint, and those of the n-gram model to compare with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from model.cli.options import (
    CacheOption,
    CheckpointFile,
    Files,
    FullFile,
    LinesOption,
    ScoredFile,
    TokenizerFile,
    errors_in_one_line,
)

if TYPE_CHECKING:
    from model.core.tokenizer import Tokenizer


@errors_in_one_line()
def evaluate(
    checkpoint: CheckpointFile,
    corpus: Annotated[Path, typer.Argument(help="A prepared corpus.")],
    cache: CacheOption = False,
) -> None:
    """Print a checkpoint's perplexities and bits per byte on a corpus.

    Every document begins with the start symbol and ends with the end symbol, which is scored and
    counts as a word.
    """
    from model.data.corpus import Corpus
    from model.evaluation import scoring
    from model.training.checkpoint import load_model

    model, _, state = load_model(checkpoint)
    documents = Corpus(corpus)
    documents.check_tokenizer(state.get("tokenizer"))
    totals = scoring.evaluate(model, documents, cache=cache)
    typer.echo(f"step {state['step']}: {totals}")
    for name in ("perplexity", "word_perplexity", "bits_per_byte"):
        _print(name, getattr(totals, name), digits=4)


def _print(name: str, value: float | None, digits: int = 2) -> None:
    typer.echo(f"{name}: {'beyond any float' if value is None else f'{value:.{digits}f}'}")


def load_tokenizer(path: Path, checkpoint: Path, state: dict[str, Any]) -> Tokenizer:
    """A checkpoint's tokenizer. Raises ValueError if it is known to be a different one."""
    from model.core.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(path)
    if state.get("tokenizer") not in (None, tokenizer.fingerprint):
        raise ValueError(f"{path} is another tokenizer than that of {checkpoint}")
    return tokenizer


@errors_in_one_line()
def wikitext(
    checkpoint: CheckpointFile,
    tokenizer: TokenizerFile,
    scored: ScoredFile,
    full: FullFile,
    lines: LinesOption = False,
    vocabulary: Annotated[
        Path | None,
        typer.Option(help="Count only words of this file, one a line, as ngram-train writes it."),
    ] = None,
    cache: CacheOption = False,
) -> None:
    """Print the word-level perplexity on WikiText-2.

    The text is first converted to ordinary writing. WikiText-103's words replace <unk> of
    WikiText-2; words that are <unk> there too are not counted; line ends are.
    """
    from model.baselines.ngram import read_vocabulary
    from model.evaluation import wikitext as task
    from model.training.checkpoint import load_model

    model, _, state = load_model(checkpoint)
    words = None if vocabulary is None else read_vocabulary(vocabulary)
    loaded = load_tokenizer(tokenizer, checkpoint, state)
    totals = task.evaluate(model, loaded, scored, full, lines=lines, vocabulary=words, cache=cache)
    typer.echo(totals)
    _print("word_perplexity", totals.word_perplexity)


@errors_in_one_line()
def ptb(
    checkpoint: CheckpointFile,
    file: Annotated[
        Path, typer.Argument(help="The treebank's test or valid file, plain or compressed.")
    ],
    tokenizer: TokenizerFile,
    lines: LinesOption = False,
) -> None:
    """Print the word-level perplexity on the Penn Treebank in Mikolov's form.

    The words are first joined to ordinary writing. <unk> and N, which other words replace, are not
    counted; line ends are.
    """
    from model.evaluation import ptb as task
    from model.training.checkpoint import load_model

    model, _, state = load_model(checkpoint)
    loaded = load_tokenizer(tokenizer, checkpoint, state)
    totals = task.evaluate(model, loaded, file, lines=lines)
    typer.echo(f"words and line ends counted: {totals.word_count:,}")
    _print("word_perplexity", totals.word_perplexity)


@errors_in_one_line()
def ngram_train(
    files: Files,
    out: Annotated[Path, typer.Option(help="The model's folder.")],
    marker: Annotated[
        str | None, typer.Option(help="Lines that start with this are left out.")
    ] = None,
    order: Annotated[int, typer.Option(min=2, max=6, help="Words in an n-gram.")] = 5,
    least_count: Annotated[
        int, typer.Option(min=1, help="Less frequent words are treated as one word.")
    ] = 3,
    memory: Annotated[str, typer.Option(help="Memory for sorting, e.g. 4G.")] = "4G",
    temporary: Annotated[
        Path | None, typer.Option(help="A folder for temporary files; the model's by default.")
    ] = None,
) -> None:
    """Train an n-gram model to compare with: WikiText's words, modified Kneser-Ney, by KenLM."""
    from model.baselines import ngram

    made = ngram.train(
        files,
        out,
        marker=marker,
        order=order,
        least_count=least_count,
        memory=memory,
        temporary=temporary,
    )
    typer.echo(f"{out}: {made}")


@errors_in_one_line()
def ngram_evaluate(
    folder: Annotated[Path, typer.Argument(help="A folder that ngram-train wrote.")],
    scored: ScoredFile,
    full: FullFile,
) -> None:
    """Print an n-gram model's word-level perplexity on WikiText-2, over its vocabulary's words.

    `convlm wikitext --vocabulary` prints a checkpoint's over the same words.
    """
    from model.baselines import ngram

    totals = ngram.evaluate(*ngram.load(folder), scored, full)
    share = totals.unknown_count / (totals.word_count + totals.unknown_count)
    typer.echo(totals)
    typer.echo(f"out of vocabulary: {100 * share:.2f} %")
    _print("word_perplexity", totals.word_perplexity)
