"""A session's inputs and outputs, bound to memory."""

from __future__ import annotations

from collections.abc import Mapping
from operator import is_
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from model.core.config import ModelConfig
from model.core.flat_batch import FlatBatch
from model.core.graph import Floats, Indices, new_pool_name


class Binding:
    """Binds flat batches to a session whose pools stay in their memory.

    config: the model's. pools: values by input name. outputs: the ones to read. multiple, least:
    see `FlatBatch.feeds`.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        config: ModelConfig,
        pools: Mapping[str, ort.OrtValue],
        outputs: list[str],
        multiple: int,
        least: int,
    ) -> None:
        self._config, self._multiple, self._least = config, multiple, least
        self.io = session.io_binding()
        for name, pool in pools.items():
            # one value as input and output: a run touches only the rows of its slots
            self.io.bind_ortvalue_input(name, pool)
            self.io.bind_ortvalue_output(new_pool_name(name), pool)
        self._outputs, self._first = outputs, len(pools)  # in the order of their binding
        self._bound: tuple[Indices, ...] = ()
        """The fixed arrays of the batch that is bound."""
        self._arrays: dict[str, Indices | Floats] = {}
        """Each input's array. ONNX Runtime reads this memory but does not keep it alive."""

    def bind(self, batch: FlatBatch) -> None:
        """Binds a batch's inputs; for the next step of the same streams only those that changed."""
        fixed, config = batch.fixed, self._config
        if len(self._bound) == len(fixed) and all(map(is_, fixed, self._bound)):
            self._bind_arrays(batch.moving())
            if config.cutoffs:
                self._bind_arrays(batch.terms(config, self._least))
        else:
            self._bound = ()  # until all are bound
            self._bind_arrays(batch.feeds(config, self._multiple, self._least))
            self._bound = fixed
        for name in self._outputs:
            self.io.bind_output(name, "cpu")

    def outputs(self) -> dict[str, npt.NDArray[Any]]:
        """The outputs of the last run by name."""
        values = self.io.get_outputs_as_ortvaluevector()
        return {name: values[self._first + n].numpy() for n, name in enumerate(self._outputs)}

    def _bind_arrays(self, arrays: Mapping[str, Indices | Floats]) -> None:
        """Binds inputs, except for those with the same array as before."""
        for name, array in arrays.items():
            if self._arrays.get(name) is not array:
                self._arrays.pop(name, None)  # until it is bound: that may fail
                self.io.bind_cpu_input(name, np.ascontiguousarray(array))
                self._arrays[name] = array
