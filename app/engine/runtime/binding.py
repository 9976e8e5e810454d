"""A session's inputs and outputs bound to memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import is_
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from model.core.config import ModelConfig
from model.core.flat_batch import FlatBatch
from model.core.graph import Floats, Indices, new_pool_name


class Binding:
    """Runs flat batches on a session whose pools stay where they are.

    config: the model's. pools: values by input name. outputs: those that are read. multiple: what
    rows are filled up to a multiple of. least: entries that lists have (see `FlatBatch.feeds`).
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        config: ModelConfig,
        pools: Mapping[str, ort.OrtValue],
        outputs: Sequence[str],
        multiple: int,
        least: int,
    ) -> None:
        self._session, self._config = session, config
        self._multiple, self._least = multiple, least
        self._binding = session.io_binding()
        for name, pool in pools.items():
            # one value as input and output: a run touches only the rows of its own slots
            self._binding.bind_ortvalue_input(name, pool)
            self._binding.bind_ortvalue_output(new_pool_name(name), pool)
        self._outputs, self._first = outputs, len(pools)  # in the order of their binding
        self._bound: tuple[Indices, ...] = ()
        """What the inputs that steps have in common were bound to, or made of."""
        self._held: dict[str, Indices | Floats] = {}
        """What each input is bound to: the runtime reads its memory, but keeps alive only what it
        was offered last, be it bound or not."""

    def run(self, batch: FlatBatch) -> dict[str, npt.NDArray[Any]]:
        """The outputs by name. Raises what the runtime raises."""
        binding = self._binding
        self._bind(batch)
        for name in self._outputs:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        found = binding.get_outputs_as_ortvaluevector()
        return {name: found[self._first + n].numpy() for n, name in enumerate(self._outputs)}

    def _bind(self, batch: FlatBatch) -> None:
        """Binds the inputs, of a step of the same streams as the last one those that moved."""
        arrays, config = batch.fixed, self._config
        if len(self._bound) == len(arrays) and all(map(is_, arrays, self._bound)):
            self._hold(batch.moving())
            if config.cutoffs:
                self._hold(batch.terms(config, self._least))
            return
        self._bound = ()  # until all of it is
        self._hold(batch.feeds(config, self._multiple, self._least))
        self._bound = arrays

    def _hold(self, values: Mapping[str, Indices | Floats]) -> None:
        """Binds inputs, but for those that have the same array still."""
        for name, array in values.items():
            if self._held.get(name) is not array:
                self._held.pop(name, None)  # until it is bound: that may fail
                self._binding.bind_cpu_input(name, np.ascontiguousarray(array))
                self._held[name] = array
