"""The weights of a trained model, from a checkpoint or a bundle, to begin another model with."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from model.architecture.causal import NgramEmbedding
from model.architecture.gcnn import GCNN, CausalConv
from model.architecture.softmax import AdaptiveSoftmax, FullSoftmax
from model.core import bundle, weight_names
from model.core.bundle import BundleError
from model.training import checkpoint


def load(path: Path) -> GCNN:
    """The model of a checkpoint (a file) or bundle (a folder), without weight normalisation.

    Raises FileNotFoundError, ValueError, BundleError.
    """
    if path.is_dir():
        source = bundle.load(path)
        try:
            return from_bundle(source)
        except Exception as error:  # protobuf, onnx and PyTorch raise many kinds
            what = f"{bundle.GRAPH} does not hold the model's weights: {type(error).__name__}"
            raise BundleError(f"corrupt bundle {path}: {what}") from error
    model, _, _ = checkpoint.load_model(path)
    if not isinstance(model, GCNN):
        raise ValueError(f"{path} holds no convolutional model")
    return model.folded()


def tokenizer_of(path: Path) -> str | None:
    """The fingerprint of its tokenizer, if known. Raises the errors of `load`."""
    if path.is_dir():
        return bundle.load(path).tokenizer.fingerprint
    fingerprint: str | None = checkpoint.load(path).get("tokenizer")
    return fingerprint


def from_bundle(source: bundle.Bundle) -> GCNN:
    """A model with the weights that are stored in a bundle's graph."""
    config = source.config.model.model_copy(update={"weight_norm": False})
    model = GCNN(config, source.config.start_id).eval()
    stored = {
        tensor.name: torch.tensor(numpy_helper.to_array(tensor)).float()
        for tensor in onnx.load(source.graph).graph.initializer
    }
    convolutions = [m for m in model.modules() if isinstance(m, CausalConv)]
    for name, scales in stored.items():
        if (weight := weight_names.of_scales(name)) is not None:  # a weight in bytes
            stored[weight] *= scales
    with torch.no_grad():
        model.embedding.weight.copy_(stored[weight_names.EMBEDDING])
        _linear(model.input, weight_names.INPUT, stored)
        for number, ngram in enumerate(cast(list[NgramEmbedding], model.ngrams)):
            ngram.table.weight.copy_(stored[weight_names.ngram_table(number)])
            ngram.mix.weight.copy_(stored[weight_names.ngram_mix(number)].T)
        for number, block in enumerate(model.blocks):
            shortcut = cast(nn.Linear | None, block.projection)
            _linear(shortcut, weight_names.shortcut(number), stored)
        for number, conv in enumerate(convolutions):
            name = weight_names.convolution(number)
            conv.weight.copy_(stored[name].T)
            conv.bias.copy_(stored[weight_names.bias(name)])
        _linear(model.head, weight_names.HEAD, stored)
        _softmax(model.output, stored, tied=config.tied)
    return model


def copy(source: GCNN, target: GCNN) -> None:
    """Copies the weights of `source`, without weight normalisation, to `target`.

    Raises ValueError if the models differ in more than that and `clip`.
    """
    update = {"weight_norm": False, "clip": source.config.clip}
    plain = target.config.model_copy(update=update)
    if source.config != plain or source.start_id != target.start_id:
        raise ValueError("the model to begin with is not the recipe's")
    modules = dict(target.named_modules())
    with torch.no_grad():
        for path, module in source.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                if is_parametrized(modules[path], name):
                    setattr(modules[path], name, parameter.detach())
                else:
                    getattr(modules[path], name).copy_(parameter)


def _linear(layer: nn.Linear | None, name: str, stored: dict[str, Tensor]) -> None:
    if layer is not None:
        layer.weight.copy_(stored[name].T)
        layer.bias.copy_(stored[weight_names.bias(name)])


def _softmax(
    output: FullSoftmax | AdaptiveSoftmax, stored: dict[str, Tensor], *, tied: bool
) -> None:
    if isinstance(output, FullSoftmax):
        output.bias.copy_(stored[weight_names.bias(weight_names.OUTPUT)])
        if not tied:
            output.weight.copy_(stored[weight_names.OUTPUT].T)
        return
    output.head.weight.copy_(stored[weight_names.HEAD_COLUMNS].T)
    for number, tail in enumerate(output.tails):
        narrow, wide = cast(list[nn.Linear], tail)
        narrow.weight.copy_(stored[weight_names.tail_in(number)].T)
        wide.weight.copy_(stored[weight_names.tail_out(number)].T)
