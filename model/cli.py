"""The offline commands: tokenizer, prepare, train, evaluate, export. Mounted by `app.cli`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from model.bundle import NAME, NAME_RULE, BundleError
from model.report.cli import report

if TYPE_CHECKING:
    from model.data import Corpus
    from model.train_config import RunConfig

offline = typer.Typer()
offline.add_typer(report, name="report")

Files = Annotated[
    list[Path],
    typer.Argument(help="UTF-8 text files, plain, .xz or .zst; each line is a paragraph."),
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
_MISSING = "this command needs the training packages, PyTorch among them; `make dev` installs them"


def _fail(error: Exception | str) -> NoReturn:
    typer.echo(f"convlm: {error}", err=True)
    raise typer.Exit(1)


@offline.command()
def describe(
    recipes: Annotated[list[Path], typer.Argument(help="Recipes, see model/recipes.")],
) -> None:
    """Print what recipes' models are: layers, receptive field, parameters, cost and state."""
    import tomllib

    from pydantic import TypeAdapter, ValidationError

    from model.config import AnyModelConfig, LSTMConfig, ModelConfig
    from model.train_config import complaint

    reader: TypeAdapter[ModelConfig | LSTMConfig] = TypeAdapter(AnyModelConfig)
    typer.echo(
        "| model | layers | receptive field | parameters | multiply-adds per token: trunk, softmax "
        "| state per stream |\n| --- | --- | --- | --- | --- | --- |"
    )
    for path in recipes:
        try:
            config = reader.validate_python(tomllib.loads(path.read_text())["model"])
        except ValidationError as error:
            _fail(f"{path}: {complaint(error)}")
        except (OSError, ValueError, KeyError) as error:
            _fail(f"{path}: {error}")
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
        from model.data import read_documents
    except ImportError:
        _fail(_MISSING)
    from model.tokenizer import by_frequency, train_bpe, train_words

    def lines() -> Iterator[str]:
        return (line for text in read_documents(files, marker) for line in text.split("\n"))

    try:
        if kind == "bpe":
            made = by_frequency(train_bpe(lines(), size), lines())
        else:
            made = train_words(lines(), size)
        out.parent.mkdir(parents=True, exist_ok=True)
        made.save(out)
    except (OSError, ValueError) as error:
        _fail(error)
    typer.echo(f"{out}: {made.size} tokens")


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
        from model import data
    except ImportError:
        _fail(_MISSING)
    from model.tokenizer import Tokenizer

    try:
        documents = data.read_documents(files, marker, each_line=each_line)
        end = "\n" if each_line else None
        counts = data.prepare(documents, Tokenizer.load(tokenizer), out, end=end)
    except (OSError, ValueError) as error:
        _fail(error)
    typer.echo(f"{out}: {counts}")


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
        from model import restore
        from model.distributed import joined
        from model.train import Trainer
        from model.train_config import RunConfig
    except ImportError:
        _fail(_MISSING)
    try:
        config = RunConfig.read(recipe)
        if steps is not None:
            config = config.model_copy(
                update={"train": config.train.model_copy(update={"steps": steps})}
            )
        initial = None if init is None else restore.load(init)
        corpora = _corpora(config, train, valid)
        with joined() as group:
            best = Trainer(config, *corpora, out, group=group, initial=initial).run()
    except KeyboardInterrupt:
        _fail(f"stopped; {out} holds a checkpoint, the same command goes on from it")
    except (OSError, ValueError, FloatingPointError, BundleError) as error:
        _fail(error)
    typer.echo(f"{out}: best validation loss {best:.4f} nats per token")


def _corpora(config: RunConfig, train: Path, valid: Path) -> tuple[Corpus, Corpus]:
    """The corpora for a recipe. Raises FileNotFoundError, which says where its text is."""
    from model.data import Corpus

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
        from model.checkpoint import load_model
        from model.data import Corpus
        from model.evaluate import evaluate as run
    except ImportError:
        _fail(_MISSING)
    try:
        model, _, state = load_model(checkpoint)
        totals = run(model, Corpus(corpus), cache=cache)
    except (OSError, ValueError) as error:
        _fail(error)
    typer.echo(f"step {state['step']}: {totals}")
    for name in ("perplexity", "word_perplexity", "bits_per_byte"):
        typer.echo(f"{name}: {getattr(totals, name):.4f}")


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
        from model.checkpoint import load_model
        from model.wikitext import evaluate as run
    except ImportError:
        _fail(_MISSING)
    from model.tokenizer import Tokenizer

    try:
        model, _, _ = load_model(checkpoint)
        words = None if vocabulary is None else read_vocabulary(vocabulary)
        options: dict[str, Any] = {"lines": lines, "vocabulary": words, "cache": cache}
        found = run(model, Tokenizer.load(tokenizer), scored, full, **options)
    except (OSError, ValueError) as error:
        _fail(error)
    typer.echo(found)
    typer.echo(f"word_perplexity: {found.word_perplexity:.2f}")


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
        from model.data import open_text, read_documents
    except ImportError:
        _fail(_MISSING)
    from model.wikitext_prose import prose, rare_words

    try:
        with open_text(file) as text:
            known = frozenset(word for line in text for word in line.split())
        documents = read_documents(fill, marker)
        words = rare_words((line for text in documents for line in text.split("\n")), known)
        out.parent.mkdir(parents=True, exist_ok=True)
        with open_text(file) as text:
            found = prose(text, words, marker)
            with out.open("w", encoding="utf-8", newline="\n") as written:
                written.writelines(line + "\n" for line in found)
    except (OSError, ValueError) as error:
        _fail(error)
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
        from model.checkpoint import load_model
        from model.ptb import evaluate as run
    except ImportError:
        _fail(_MISSING)
    from model.tokenizer import Tokenizer

    try:
        model, _, _ = load_model(checkpoint)
        found = run(model, Tokenizer.load(tokenizer), file, lines=lines)
    except (OSError, ValueError) as error:
        _fail(error)
    typer.echo(f"words and line ends counted: {found.word_count:,}")
    typer.echo(f"word_perplexity: {found.word_perplexity:.2f}")


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
        _fail(_MISSING)
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
        _fail(error)
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
        _fail(_MISSING)
    try:
        scorer, vocabulary = ngram.load(folder)
        found = ngram.evaluate(scorer, vocabulary, scored, full)
    except (OSError, ValueError) as error:
        _fail(error)
    share = found.unknown_count / (found.word_count + found.unknown_count)
    typer.echo(found)
    typer.echo(f"out of vocabulary: {100 * share:.2f} %")
    typer.echo(f"word_perplexity: {found.word_perplexity:.2f}")


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
        from model import export as exporter
        from model.checkpoint import load_model
        from model.data import Corpus
        from model.export_half import MAX_RATIO as HALF_RATIO
        from model.gcnn import GCNN
        from model.parity import HALF_TOLERANCE, ParityError
    except ImportError:
        _fail(_MISSING)
    from model.tokenizer import Tokenizer

    if not re.fullmatch(NAME, name or out.name):
        _fail(f"--name: {name or out.name!r} has other characters than {NAME_RULE}")
    try:
        model, recipe, _ = load_model(checkpoint)
        if not isinstance(model, GCNN):
            _fail(f"{checkpoint} holds no convolutional model: only those are served")
        grid = recipe.train.grid if grid is None else grid
        text = None if card is None else card.read_text()
        corpus = None if calibrate is None else Corpus(calibrate)
        made = exporter.export(
            model, Tokenizer.load(tokenizer), out, name or out.name, text, corpus, grid
        )
    except (OSError, ValueError, ParityError) as error:
        _fail(error)
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
