"""The architecture as data: blocks of gated causal convolutions, and sizes computed from them."""

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
"""Dilations, each with the number of columns of its tap table."""


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
        """Earlier tokens that the output for a token depends on."""
        return (self.kernel - 1) * self.dilation


@dataclass(frozen=True, slots=True)
class Tail:
    """A cluster of an adaptive softmax: ids `low` to `high` - 1, through `inner` channels.

    `inner` is a quarter of the head's width for the first tail, and a quarter of the previous
    tail's for each further one (Grave et al. 2016, section 4.3, as fairseq sets it).
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
    table 1). A bottleneck is a block of `(1, b), (k, b), (1, n)`. With a `dilation` d, each layer
    reads every d-th token, so that few layers cover a long context (van den Oord et al. 2016,
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
    for n-grams as input of a language model Huang et al. 2025), which are projected to the trunk's
    width. They remember word sequences at hardly any cost in multiply-adds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    order: Annotated[int, Field(ge=2, le=8)]
    rows: Positive
    channels: Positive


class LanguageModelConfig(BaseModel, ABC):
    """The parts that every language model here has: an embedding, a trunk and a softmax.

    The embedding is projected to `input_channels` when given, and `ngrams` are added to it. With
    `head_channels`, the trunk's output is projected to that width before the softmax.
    `cutoffs` are the bounds of the clusters of an adaptive softmax (Grave et al. 2016), ids in
    order of falling frequency; empty means a full softmax. With `tied` the full softmax shares the
    weights of the embedding.
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
        """Input channels of the trunk."""
        return self.input_channels or self.embedding

    @property
    def ngram_order(self) -> int:
        """Tokens that the widest n-gram joins; 1 without n-grams."""
        return max((ngram.order for ngram in self.ngrams), default=1)

    @property
    @abstractmethod
    def trunk_outputs(self) -> int:
        """Output channels of the trunk."""

    @abstractmethod
    def trunk_macs(self) -> int:
        """Multiply-adds per token between embedding and softmax: all weights but biases."""

    @property
    def head_width(self) -> int:
        """Input channels of the softmax."""
        return self.head_channels or self.trunk_outputs

    def projection_macs(self) -> int:
        """Multiply-adds per token of the projections before and after the trunk."""
        total = 0 if self.input_channels is None else self.embedding * self.input_channels
        total += sum(ngram.channels * self.trunk_inputs for ngram in self.ngrams)
        return total + (0 if self.head_channels is None else self.trunk_outputs * self.head_width)

    def table_parameters(self) -> int:
        """Weights of the tables that are looked up: embedding and n-grams."""
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
        """The clusters of an adaptive softmax after the head, in order; none for a full softmax."""
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

    Between embedding and softmax are blocks of convolutions. The input of a block is
    clamped to [-clip, clip], if given: a gate of two halves grows with the square of its input, so
    that a rare sequence of tokens could make numbers grow from block to block. In training a number
    outside still gets the gradients that bring it back (`model.architecture.clip`).
    """

    blocks: Annotated[tuple[Block, ...], Field(min_length=1)]
    gate: GateName = "glu"
    weight_norm: bool = True
    residual_scale: Annotated[float, Field(gt=0)] = 0.5**0.5
    clip: Annotated[float, Field(gt=0)] | None = None

    @property
    def trunk_outputs(self) -> int:
        """Output channels of the last block."""
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
        """The dilations in rising order, each with K, its widest kernel. N-grams count as a kernel
        of dilation 1, which is always the first."""
        widest = {1: self.ngram_order}
        for layer in self.layers():
            if layer.span:
                widest[layer.dilation] = max(layer.kernel, widest.get(layer.dilation, 1))
        return tuple(sorted(widest.items()))

    @property
    def receptive_field(self) -> int:
        """R = 1 + sum of the spans: tokens that a prediction depends on. N-grams are a layer."""
        return self.ngram_order + sum(layer.span for layer in self.layers())

    @property
    def state_floats(self) -> int:
        """Numbers that one stream carries: sum of span * inputs over the layers.

        With n-grams its last tokens as well.
        """
        return self.ngram_order - 1 + sum(layer.span * layer.inputs for layer in self.layers())

    @property
    def conv_width(self) -> int:
        """Columns of a convolution's product for each output channel: 2 for gates of two halves."""
        return GATES[self.gate].halves

    def trunk_macs(self) -> int:
        """Multiply-adds per token between embedding and softmax: all weights but biases."""
        total = self.projection_macs()
        for residual, layers in self.unrolled():
            total += sum(
                layer.kernel * layer.inputs * layer.outputs * self.conv_width for layer in layers
            )
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
    """An LSTM language model (Hochreiter & Schmidhuber 1997), the baseline.

    `lstm` has the widths of its layers.
    """

    lstm: Annotated[tuple[Positive, ...], Field(min_length=1)]

    @property
    def trunk_outputs(self) -> int:
        """Output channels of the last layer."""
        return self.lstm[-1]

    @property
    def state_floats(self) -> int:
        """Numbers that one stream carries: hidden and cell state of every layer."""
        return 2 * sum(self.lstm) + self.ngram_order - 1

    def trunk_macs(self) -> int:
        """Multiply-adds per token between embedding and softmax: all weights but biases."""
        widths = (self.trunk_inputs, *self.lstm)
        return self.projection_macs() + sum(4 * n * (m + n) for m, n in pairwise(widths))

    def parameters(self) -> int:
        """All trainable numbers; PyTorch's LSTM has two bias vectors a layer."""
        biases = 8 * sum(self.lstm) + (self.input_channels or 0) + (self.head_channels or 0)
        biases += self.vocabulary if self.tied else 0
        return self.table_parameters() + self.trunk_macs() + biases + self.softmax_parameters()


MODEL_TAGS = GCNN_TAG, LSTM_TAG = "a convolutional model", "an LSTM"
"""Parts of the location of a pydantic error that are not fields of a file."""


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
