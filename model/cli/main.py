"""The offline commands: tokenizer, prepare, train, evaluate, export. Mounted by `app.cli.main`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from model.core.bundle import NAME, NAME_RULE, BundleError
from model.report.cli import MISSING, fail, report

if TYPE_CHECKING:
    from model.core.tokenizer import Tokenizer
    from model.data.corpus import Corpus
    from model.training.recipe import RunConfig

offline = typer.Typer()
offline.add_typer(report, name="report")

Files = Annotated[
    list[Path],
    typer.Argument(help="UTF-8 text files, plain, .gz, .xz, .zst or .bz2; a line is a paragraph."),
]
Marker = Annotated[
    str | None,
    typer.Option(
        help="A line that starts with this opens a document; without it, a file is a document."
    ),
]
TokenizerFile = Annotated[Path, typer.Option("--tokenizer", help="A tokenizer.json.")]
CacheOption = Annotated[
    bool, typer.Option("--cache", help="Mix in what a document has said so far.")
]


@offline.command()
def describe(
    recipes: Annotated[list[Path], typer.Argument(help="Recipes, see model/recipes.")],
) -> None:
    """Print what recipes' models are: layers, receptive field, parameters, cost and state."""
    from pydantic import TypeAdapter, ValidationError

    from model.core.config import AnyModelConfig, LSTMConfig, ModelConfig, complaint

    try:
        from model.training.recipe import read_toml
    except ImportError:
        fail(MISSING)

    reader: TypeAdapter[ModelConfig | LSTMConfig] = TypeAdapter(AnyModelConfig)
    typer.echo(
        "| model | layers | receptive field | parameters | multiply-adds per token: trunk, softmax "
        "| state per stream |\n| --- | --- | --- | --- | --- | --- |"
    )
    for path in recipes:
        try:
            config = reader.validate_python(read_toml(path).get("model"))
        except ValidationError as error:
            fail(f"{path}: model: {complaint(error)}")
        except (OSError, ValueError) as error:
            fail(error)
        softmax = config.head_width * config.head_columns
        if isinstance(config, LSTMConfig):
            layers, field = len(config.lstm), "all"
        else:
            layers, field = len(config.layers()), str(config.receptive_field)
        typer.echo(
            f"| {path.stem} | {layers} | {field} "
            f"| {config.parameters() / 1e6:.1f} M | {config.trunk_macs() / 1e6:.1f} M, "
            f"{softmax / 1e6:.1f} M | {config.state_floats * 4 / 1024:.0f} KiB |"
        )


@offline.command()
def tokenizer(
    files: Files,
    out: Annotated[Path, typer.Option(help="The tokenizer.json to write.")],
    kind: Annotated[
        Literal["bpe", "word"],
        typer.Option(help="Byte-level BPE, or the commonest white-space words."),
    ] = "bpe",
    size: Annotated[int, typer.Option(min=300, help="Tokens in the vocabulary.")] = 8192,
    marker: Marker = None,
) -> None:
    """Learn a tokenizer from text files, its tokens in order of falling frequency."""
    try:
        from model.data.corpus import read_documents
    except ImportError:
        fail(MISSING)
    from model.core.tokenizer import by_frequency, train_bpe, train_words

    def lines() -> Iterator[str]:
        empty = True
        for text in read_documents(files, marker):
            empty = False
            yield from text.split("\n")
        if empty:
            raise ValueError(f"{', '.join(map(str, files))}: there is no text")

    try:
        _readable_twice(files)
        _replaceable(out)
        if kind == "bpe":
            made = by_frequency(train_bpe(lines(), size), lines())
        else:
            made = train_words(lines(), size)
        made.save(out)
    except (OSError, ValueError) as error:
        fail(error)
    typer.echo(f"{out}: {made.size} tokens")


def _replaceable(out: Path) -> None:
    """Raises FileExistsError for what a tokenizer may not replace: anything but one, or nothing."""
    from model.core.tokenizer import Tokenizer

    if not out.exists():
        return
    with suppress(ValueError):
        if out.is_file() and (not out.stat().st_size or Tokenizer.load(out)):
            return
    raise FileExistsError(f"{out} exists and is no tokenizer; choose another file")


def _readable_twice(files: list[Path]) -> None:
    """Raises ValueError for what is no file, such as a pipe, which is empty when read again."""
    for path in files:
        if path.exists() and not path.is_file():
            raise ValueError(f"{path} is no regular file, and this command reads it twice")


@offline.command()
def prepare(
    files: Files,
    tokenizer: TokenizerFile,
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    marker: Marker = None,
    each_line: Annotated[
        bool,
        typer.Option("--each-line", help="Every line is a document that ends with a line break."),
    ] = False,
) -> None:
    """Tokenise text files into a corpus that `train` and `evaluate` read."""
    try:
        from model.data import corpus as data
    except ImportError:
        fail(MISSING)
    from model.core.tokenizer import Tokenizer

    try:
        documents = data.read_documents(files, marker, each_line=each_line)
        end = "\n" if each_line else None
        counts = data.prepare(documents, Tokenizer.load(tokenizer), out, end=end)
    except (OSError, ValueError) as error:
        fail(error)
    typer.echo(f"{out}: {counts!r}")


@offline.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe, see model/recipes.")],
    train: Annotated[Path, typer.Option("--train", help="A prepared corpus to learn from.")],
    valid: Annotated[Path, typer.Option(help="A prepared corpus to choose the best by.")],
    out: Annotated[Path, typer.Option(help="The run's folder; goes on from what is there.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's.")] = None,
    init: Annotated[
        Path | None,
        typer.Option(help="A checkpoint or bundle whose weights a new run begins with."),
    ] = None,
) -> None:
    """Train a model. Stop it with Ctrl-C; the same command goes on where it stopped.

    On several GPUs: torchrun --nproc-per-node 4 -m app.cli train ...
    """
    try:
        from model.training import restore
        from model.training.distributed import joined
        from model.training.recipe import RunConfig
        from model.training.trainer import Trainer
    except ImportError:
        fail(MISSING)
    try:
        config = RunConfig.read(recipe)
        if steps is not None:
            config = config.model_copy(
                update={"train": config.train.model_copy(update={"steps": steps})}
            )
        corpora = _corpora(config, train, valid)
        initial = tokenizer = None
        if init is not None:
            initial, tokenizer = restore.load(init), restore.tokenizer_of(init)
        with joined() as group:
            best = Trainer(config, *corpora, out, group, initial, tokenizer).run()
    except KeyboardInterrupt:
        if not (out / "last.pt").exists():
            fail("stopped before there was a checkpoint")
        fail(f"stopped; {out} holds a checkpoint, the same command goes on from it")
    except (OSError, ValueError, FloatingPointError, BundleError) as error:
        fail(error)
    typer.echo(f"{out}: best validation loss {best:.4f} nats per token")


def _corpora(config: RunConfig, train: Path, valid: Path) -> tuple[Corpus, Corpus]:
    """The corpora for a recipe. Raises FileNotFoundError, which says where its text is."""
    from model.data.corpus import Corpus

    try:
        return Corpus(train), Corpus(valid)
    except FileNotFoundError as error:
        if config.data is None:
            raise
        about = f"the recipe is for {config.data.corpus}: {config.data.source}"
        raise FileNotFoundError(f"{error}; {about}") from None


@offline.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A best.pt or last.pt.")],
    corpus: Annotated[Path, typer.Argument(help="A prepared corpus.")],
    cache: CacheOption = False,
) -> None:
    """Print a checkpoint's perplexities and bits per byte on a corpus.

    Every document starts with the start symbol and ends with the end symbol, which is scored and
    counts as a word.
    """
    try:
        from model.data.corpus import Corpus
        from model.evaluation.scoring import evaluate as run
        from model.training.checkpoint import load_model
    except ImportError:
        fail(MISSING)
    try:
        model, _, state = load_model(checkpoint)
        opened = Corpus(corpus)
        opened.check_tokenizer(state.get("tokenizer"))
        totals = run(model, opened, cache=cache)
    except (OSError, ValueError) as error:
        fail(error)
    typer.echo(f"step {state['step']}: {totals}")
    for name in ("perplexity", "word_perplexity", "bits_per_byte"):
        _print(name, getattr(totals, name), digits=4)


def _print(name: str, figure: float | None, digits: int = 2) -> None:
    typer.echo(f"{name}: {'beyond any float' if figure is None else f'{figure:.{digits}f}'}")


def _tokenizer(path: Path, checkpoint: Path, state: dict[str, Any]) -> Tokenizer:
    """A checkpoint's tokenizer. Raises ValueError for another one, if it is known which it was."""
    from model.core.tokenizer import Tokenizer

    made = Tokenizer.load(path)
    if state.get("tokenizer") not in (None, made.fingerprint):
        raise ValueError(f"{path} is another tokenizer than that of {checkpoint}")
    return made


@offline.command()
def wikitext(
    checkpoint: Annotated[Path, typer.Argument(help="A best.pt or last.pt.")],
    tokenizer: TokenizerFile,
    scored: Annotated[Path, typer.Option(help="WikiText-2's test or valid file (text or .xz).")],
    full: Annotated[Path, typer.Option(help="WikiText-103's file of the same articles.")],
    lines: Annotated[bool, typer.Option(help="Score every line on its own.")] = False,
    vocabulary: Annotated[
        Path | None,
        typer.Option(help="Count only words of this file, one a line, as ngram-train writes it."),
    ] = None,
    cache: CacheOption = False,
) -> None:
    """Print the word-level perplexity on WikiText-2.

    The text is turned into ordinary writing first. WikiText-103's words stand where WikiText-2
    has <unk>; words that are <unk> there too are not counted; line ends are.
    """
    try:
        from model.baselines.ngram import read_vocabulary
        from model.evaluation.wikitext import evaluate as run
        from model.training.checkpoint import load_model
    except ImportError:
        fail(MISSING)

    try:
        model, _, state = load_model(checkpoint)
        words = None if vocabulary is None else read_vocabulary(vocabulary)
        options: dict[str, Any] = {"lines": lines, "vocabulary": words, "cache": cache}
        found = run(model, _tokenizer(tokenizer, checkpoint, state), scored, full, **options)
    except (OSError, ValueError) as error:
        fail(error)
    typer.echo(found)
    _print("word_perplexity", found.word_perplexity)


@offline.command()
def wikitext_prose(
    file: Annotated[Path, typer.Argument(help="WikiText's train file, plain or packed.")],
    out: Annotated[Path, typer.Option(help="The text file to write.")],
    fill: Annotated[
        list[Path], typer.Option(help="Ordinary text whose rare words stand where <unk> stood.")
    ],
    marker: Annotated[str, typer.Option(help="The line that opens an article.")] = "%%DOC",
) -> None:
    """Write WikiText's training text as people write it, to learn from beside other prose.

    <unk> becomes a word of the other files that WikiText's file lacks, drawn at random.
    """
    try:
        from model.data.corpus import read_documents
        from model.data.text_files import lines
        from model.data.wikitext_prose import prose, rare_words
    except ImportError:
        fail(MISSING)
    from model.core.outputs import atomic_file

    try:
        _readable_twice([file])
        if out.exists() and any(path.exists() and out.samefile(path) for path in (file, *fill)):
            fail(f"--out: {out} is a file that is read; choose another")
        known = frozenset(word for line in lines(file) for word in line.split())
        if not known:
            raise ValueError(f"{file} holds no word")
        documents = read_documents(fill, marker)
        words = rare_words((line for text in documents for line in text.split("\n")), known)
        with atomic_file(out) as written:
            written.writelines(f"{line}\n".encode() for line in prose(lines(file), words, marker))
    except (OSError, ValueError) as error:
        fail(error)
    typer.echo(f"{out}: {len(words):,} words to draw from stood for <unk>")


@offline.command()
def ptb(
    checkpoint: Annotated[Path, typer.Argument(help="A best.pt or last.pt.")],
    file: Annotated[Path, typer.Argument(help="The treebank's test or valid file, or packed.")],
    tokenizer: TokenizerFile,
    lines: Annotated[bool, typer.Option(help="Score every line on its own.")] = False,
) -> None:
    """Print the word-level perplexity on the Penn Treebank in Mikolov's form.

    The words are joined to ordinary writing first. <unk> and N, for which other words stand, are
    not counted; line ends are.
    """
    try:
        from model.evaluation.ptb import evaluate as run
        from model.training.checkpoint import load_model
    except ImportError:
        fail(MISSING)

    try:
        model, _, state = load_model(checkpoint)
        found = run(model, _tokenizer(tokenizer, checkpoint, state), file, lines=lines)
    except (OSError, ValueError) as error:
        fail(error)
    typer.echo(f"words and line ends counted: {found.word_count:,}")
    _print("word_perplexity", found.word_perplexity)


@offline.command()
def ngram_train(
    files: Files,
    out: Annotated[Path, typer.Option(help="The model's folder.")],
    marker: Annotated[
        str | None, typer.Option(help="Lines that start with this are left out.")
    ] = None,
    order: Annotated[int, typer.Option(min=2, max=6, help="Words in an n-gram.")] = 5,
    least_count: Annotated[
        int, typer.Option(min=1, help="Words seen less often are one word.")
    ] = 3,
    memory: Annotated[str, typer.Option(help="What sorting may take, e.g. 4G.")] = "4G",
    temporary: Annotated[
        Path | None, typer.Option(help="A folder for temporary files; the model's by default.")
    ] = None,
) -> None:
    """Train an n-gram model to compare with: WikiText's words, modified Kneser-Ney, by KenLM."""
    try:
        from model.baselines import ngram
    except ImportError:
        fail(MISSING)
    try:
        made = ngram.train(
            files,
            out,
            marker=marker,
            order=order,
            least_count=least_count,
            memory=memory,
            temporary=temporary,
        )
    except (OSError, ValueError) as error:
        fail(error)
    typer.echo(f"{out}: {made}")


@offline.command()
def ngram_evaluate(
    folder: Annotated[Path, typer.Argument(help="What ngram-train wrote.")],
    scored: Annotated[Path, typer.Option(help="WikiText-2's test or valid file (text or .xz).")],
    full: Annotated[Path, typer.Option(help="WikiText-103's file of the same articles.")],
) -> None:
    """Print an n-gram model's word-level perplexity on WikiText-2, over its vocabulary's words.

    `convlm wikitext --vocabulary` prints a checkpoint's over the same words.
    """
    try:
        from model.baselines import ngram
    except ImportError:
        fail(MISSING)
    try:
        scorer, vocabulary = ngram.load(folder)
        found = ngram.evaluate(scorer, vocabulary, scored, full)
    except (OSError, ValueError) as error:
        fail(error)
    share = found.unknown_count / (found.word_count + found.unknown_count)
    typer.echo(found)
    typer.echo(f"out of vocabulary: {100 * share:.2f} %")
    _print("word_perplexity", found.word_perplexity)


@offline.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A best.pt or last.pt.")],
    tokenizer: TokenizerFile,
    out: Annotated[Path, typer.Option(help="The bundle's folder.")],
    name: Annotated[
        str | None, typer.Option(help="The model's name; the folder's by default.")
    ] = None,
    card: Annotated[Path | None, typer.Option(help="A model card, Markdown.")] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(help="A prepared corpus: write the model in 8 bits too, with scales from it."),
    ] = None,
    grid: Annotated[
        float | None,
        typer.Option(
            min=0.04,
            max=1.0,
            help="Store weights in bytes, as multiples of this part of their root mean square "
            "(0.2, say), not in float16: a smaller bundle that packs better. As in the recipe, by "
            "default.",
        ),
    ] = None,
) -> None:
    """Write a bundle that `convlm serve` runs, if it computes what the checkpoint does."""
    try:
        from model.architecture.gcnn import GCNN
        from model.data.corpus import Corpus
        from model.data.text_files import read
        from model.export import bundle_writer as exporter
        from model.export.float16 import MAX_RATIO as HALF_RATIO
        from model.export.parity import HALF_TOLERANCE, ParityError
        from model.training.checkpoint import load_model
    except ImportError:
        fail(MISSING)

    if not re.fullmatch(NAME, name or out.name):
        fail(f"--name: {name or out.name!r} has other characters than {NAME_RULE}")
    try:
        model, recipe, state = load_model(checkpoint)
        if not isinstance(model, GCNN):
            fail(f"{checkpoint} holds no convolutional model: only those are served")
        grid = recipe.train.grid if grid is None else grid
        text = None if card is None else read(card)
        corpus = None if calibrate is None else Corpus(calibrate)
        made = exporter.export(
            model,
            _tokenizer(tokenizer, checkpoint, state),
            out,
            name or out.name,
            text,
            corpus,
            grid,
        )
    except (OSError, ValueError, ParityError) as error:
        fail(error)
    typer.echo(f"{out}: written; differs from PyTorch by {made.worst:.1e} nats at most")
    if made.grid_perplexity_ratio is not None:
        change = 100 * (made.grid_perplexity_ratio - 1)
        typer.echo(f"on the grid the perplexity changes by {change:+.3f} %")
    if made.int8_perplexity_ratio is not None:
        change = 100 * (made.int8_perplexity_ratio - 1)
        typer.echo(f"in 8 bits the perplexity changes by {change:+.3f} %")
    ratio = made.float16_perplexity_ratio
    if not made.float16_difference <= HALF_TOLERANCE:
        typer.echo(
            f"no graph in float16: it differs by {made.float16_difference:.1e} nats on average"
        )
    elif ratio is not None:
        kept = "" if ratio <= HALF_RATIO else ": no graph in float16"
        typer.echo(f"in float16 the perplexity changes by {100 * (ratio - 1):+.3f} %{kept}")
