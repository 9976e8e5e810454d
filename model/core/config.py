"""The architecture as data: blocks of gated causal convolutions, and what follows from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from model.core.gates import GATES, GateName

Positive = Annotated[int, Field(ge=1)]

Taps = tuple[tuple[int, int], ...]
"""Dilations, and the columns of the tap table of each."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One causal convolution: `kernel` frames of `inputs` channels to `outputs` channels.

    The frames are `dilation` tokens apart.
    """

    kernel: int
    inputs: int
    outputs: int
    dilation: int = 1

    @property
    def span(self) -> int:
        """Tokens before its own that a frame of the layer depends on."""
        return (self.kernel - 1) * self.dilation


@dataclass(frozen=True, slots=True)
class Tail:
    """A cluster of an adaptive softmax: ids `low` to `high` - 1 behind `inner` channels.

    `inner` is a quarter of the head's width for the first tail and a quarter of the tail's before
    for each further one (Grave et al. 2016, section 4.3, as fairseq sets it).
    """

    low: int
    high: int
    inner: int

    @property
    def size(self) -> int:
        """Tokens in the cluster."""
        return self.high - self.low


class Block(BaseModel):
    """Layers inside one residual connection, `repeat` times.

    `layers` are (kernel width k, output channels n) pairs, the paper's `[k, n]` (Dauphin 2017,
    table 1). A bottleneck is a block of `(1, b), (k, b), (1, n)`. With a `dilation` above 1 each
    layer sees every so manieth token only, so that few layers see far (van den Oord et al. 2016,
    section 2.1).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: Annotated[tuple[tuple[Positive, Positive], ...], Field(min_length=1)]
    repeat: Positive = 1
    dilation: Positive = 1
    residual: bool = True


class HashedNgrams(BaseModel):
    """Embeddings of the last `order` tokens together, added to the trunk's input.

    A hash of the tokens names one of `rows` vectors of `channels` numbers (Svenstrup et al. 2017;
    for n-grams in front of a language model Huang et al. 2025), which are projected to the trunk's
    width. They remember word sequences at hardly any cost in multiply-adds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    order: Annotated[int, Field(ge=2, le=8)]
    rows: Positive
    channels: Positive


class LanguageModelConfig(BaseModel, ABC):
    """What every language model here has: an embedding at one end, a softmax at the other.

    The embedding is projected to `input_channels` when given, and `ngrams` are added to it. When
    `head_channels` is given, a projection to that width stands in front of the softmax.
    `cutoffs` state the clusters of an adaptive softmax (Grave et al. 2016), ids in order of
    falling frequency; empty means a full softmax. `tied` shares the embedding with the full
    softmax.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocabulary: Positive
    embedding: Positive
    input_channels: Positive | None = None
    ngrams: tuple[HashedNgrams, ...] = ()
    head_channels: Positive | None = None
    cutoffs: tuple[Positive, ...] = ()
    tied: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if list(self.cutoffs) != sorted(set(self.cutoffs)):
            raise ValueError("cutoffs must rise")
        if self.cutoffs and not 3 <= self.cutoffs[0] < self.vocabulary:
            raise ValueError("the first cutoff must be 3 or more and below the vocabulary")
        if self.cutoffs and self.cutoffs[-1] > self.vocabulary:
            raise ValueError(
                f"the last cutoff, {self.cutoffs[-1]}, is above the vocabulary, {self.vocabulary}"
            )
        if self.cutoffs and not all(tail.inner for tail in self.tails):
            raise ValueError("cutoffs: the head is too narrow for so many clusters")
        if self.tied and self.cutoffs:
            raise ValueError("an adaptive softmax cannot share the embedding")
        if self.tied and self.head_width != self.embedding:
            raise ValueError(
                f"tied weights need a head of the embedding's width: {self.head_width} is not "
                f"{self.embedding}; set head_channels"
            )
        return self

    @property
    def trunk_inputs(self) -> int:
        """Channels that enter the trunk."""
        return self.input_channels or self.embedding

    @property
    def ngram_order(self) -> int:
        """Tokens that the widest n-gram joins; 1 without n-grams."""
        return max((ngram.order for ngram in self.ngrams), default=1)

    @property
    @abstractmethod
    def trunk_outputs(self) -> int:
        """Channels that leave the trunk."""

    @abstractmethod
    def trunk_macs(self) -> int:
        """Multiply-adds per token between embedding and softmax: all weights but biases."""

    @property
    def head_width(self) -> int:
        """Channels that enter the softmax."""
        return self.head_channels or self.trunk_outputs

    def ends_macs(self) -> int:
        """Multiply-adds per token of what stands between embedding, trunk and softmax."""
        total = 0 if self.input_channels is None else self.embedding * self.input_channels
        total += sum(ngram.channels * self.trunk_inputs for ngram in self.ngrams)
        return total + (0 if self.head_channels is None else self.trunk_outputs * self.head_width)

    def table_parameters(self) -> int:
        """Weights that are looked up: embedding and n-grams."""
        ngrams = sum(ngram.rows * ngram.channels for ngram in self.ngrams)
        return self.vocabulary * self.embedding + ngrams

    def softmax_parameters(self) -> int:
        """Weights of the softmax; 0 for a tied one, whose weights are the embedding's."""
        width = self.head_width
        if not self.cutoffs:
            return 0 if self.tied else (width + 1) * self.vocabulary
        total = width * self.head_columns
        for tail in self.tails:
            total += tail.inner * (width + tail.size)
        return total

    @property
    def tails(self) -> tuple[Tail, ...]:
        """The clusters behind the first of an adaptive softmax, in order; none for a full one."""
        bounds = [*self.cutoffs, self.vocabulary]
        ranges = [(low, high) for low, high in pairwise(bounds) if high > low]
        return tuple(
            Tail(low, high, self.head_width // 4 ** (index + 1))
            for index, (low, high) in enumerate(ranges)
        )

    @property
    def head_columns(self) -> int:
        """Columns of the softmax's first matrix: its tokens and one for each tail."""
        return self.cutoffs[0] + len(self.tails) if self.cutoffs else self.vocabulary


class ModelConfig(LanguageModelConfig):
    """A gated convolutional language model (Dauphin et al. 2017).

    Between embedding and softmax are blocks of convolutions. What enters a block is bounded to
    -clip to clip, if given: a gate of two halves grows with the square of its input, so that a rare
    sequence of tokens could make numbers grow from block to block. In training a number beyond
    still gets the gradients that bring it back (`model.architecture.clip`).
    """

    blocks: Annotated[tuple[Block, ...], Field(min_length=1)]
    gate: GateName = "glu"
    weight_norm: bool = True
    residual_scale: Annotated[float, Field(gt=0)] = 0.5**0.5
    clip: Annotated[float, Field(gt=0)] | None = None

    @property
    def trunk_outputs(self) -> int:
        """Channels that leave the last block."""
        return self.blocks[-1].layers[-1][1]

    def unrolled(self) -> list[tuple[bool, list[Layer]]]:
        """Every block in order, repeats written out, as (residual, layers)."""
        unrolled = []
        width = self.trunk_inputs
        for block in self.blocks:
            for _ in range(block.repeat):
                layers = []
                for kernel, channels in block.layers:
                    layers.append(Layer(kernel, width, channels, block.dilation))
                    width = channels
                unrolled.append((block.residual, layers))
        return unrolled

    def layers(self) -> list[Layer]:
        """Every convolution in order."""
        return [layer for _, layers in self.unrolled() for layer in layers]

    @property
    def taps(self) -> Taps:
        """The dilations that there are, and of each K, the widest kernel. An n-gram is one of
        dilation 1, which is always the first."""
        widest = {1: self.ngram_order}
        for layer in self.layers():
            if layer.span:
                widest[layer.dilation] = max(layer.kernel, widest.get(layer.dilation, 1))
        return tuple(sorted(widest.items()))

    @property
    def receptive_field(self) -> int:
        """R = 1 + sum of the spans: tokens that a prediction depends on. An n-gram is a layer."""
        return self.ngram_order + sum(layer.span for layer in self.layers())

    @property
    def state_floats(self) -> int:
        """Numbers that one stream carries: sum of span * inputs over the layers.

        With n-grams its last tokens too.
        """
        return self.ngram_order - 1 + sum(layer.span * layer.inputs for layer in self.layers())

    @property
    def conv_width(self) -> int:
        """Output columns of a convolution for each output channel: 2 for gates of two halves."""
        return GATES[self.gate].halves

    def trunk_macs(self) -> int:
        """Multiply-adds per token between embedding and softmax: all weights but biases."""
        total = self.ends_macs()
        for residual, layers in self.unrolled():
            total += sum(la.kernel * la.inputs * la.outputs * self.conv_width for la in layers)
            if residual and layers[0].inputs != layers[-1].outputs:
                total += layers[0].inputs * layers[-1].outputs
        return total

    def parameters(self) -> int:
        """All trainable numbers, biases and the gains of the weight normalisation included."""
        biases = (self.input_channels or 0) + (self.head_channels or 0)
        for residual, layers in self.unrolled():
            biases += sum(layer.outputs * self.conv_width for layer in layers)
            if residual and layers[0].inputs != layers[-1].outputs:
                biases += layers[-1].outputs
        vectors = biases * (2 if self.weight_norm else 1) + (self.vocabulary if self.tied else 0)
        return self.table_parameters() + self.trunk_macs() + vectors + self.softmax_parameters()


class LSTMConfig(LanguageModelConfig):
    """An LSTM language model (Hochreiter & Schmidhuber 1997), to compare with.

    `lstm` are the widths of its layers.
    """

    lstm: Annotated[tuple[Positive, ...], Field(min_length=1)]

    @property
    def trunk_outputs(self) -> int:
        """Channels that leave the last layer."""
        return self.lstm[-1]

    @property
    def state_floats(self) -> int:
        """Numbers that one stream carries: hidden and cell state of every layer."""
        return 2 * sum(self.lstm) + self.ngram_order - 1

    def trunk_macs(self) -> int:
        """Multiply-adds per token between embedding and softmax: all weights but biases."""
        widths = (self.trunk_inputs, *self.lstm)
        return self.ends_macs() + sum(4 * n * (m + n) for m, n in pairwise(widths))

    def parameters(self) -> int:
        """All trainable numbers; PyTorch's LSTM has two bias vectors a layer."""
        biases = 8 * sum(self.lstm) + (self.input_channels or 0) + (self.head_channels or 0)
        biases += self.vocabulary if self.tied else 0
        return self.table_parameters() + self.trunk_macs() + biases + self.softmax_parameters()


MODEL_TAGS = GCNN_TAG, LSTM_TAG = "a convolutional model", "an LSTM"
"""What pydantic puts into the place of an error, which no file has."""


def _kind(model: object) -> str:
    named = "lstm" in model if isinstance(model, dict) else isinstance(model, LSTMConfig)
    return LSTM_TAG if named else GCNN_TAG


def complaint(error: ValidationError) -> str:
    """The first complaint about a file, with the field as the file has it. One line."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"] if part not in MODEL_TAGS)
    said = str(first["msg"]).removeprefix("Value error, ")
    return f"{field}: {said}" if field else said


AnyModelConfig = Annotated[
    Annotated[ModelConfig, Tag(GCNN_TAG)] | Annotated[LSTMConfig, Tag(LSTM_TAG)],
    Discriminator(_kind),
]
"""The configuration of a convolutional model, or of an LSTM if there is a field `lstm`."""
