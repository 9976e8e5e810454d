"""The 8-bit graph that is exact on this processor.

x86-64 processors without VNNI instructions (before Ice Lake and Zen 4) multiply unsigned by signed
bytes and add pairs of products in 16 bits, which saturate. Products of unsigned by unsigned bytes
are added in 32 bits and are exact, as all byte products are on Arm. So a bundle has the 8-bit graph
twice, with the weights as signed and as unsigned bytes.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime as ort

from model.core.bundle import Bundle

_PRODUCT = bytes.fromhex(
    "08083a620a180a01610a0162120163220d4d61744d756c496e74656765721201705a150a016112100a0e080212"
    "0a0a0312016e0a0312016b5a150a016212100a0e0803120a0a0312016b0a0312016d62150a016312100a0e0806"
    "120a0a0312016e0a0312016d42040a00100a"
)
"""An ONNX model of one MatMulInteger: a, uint8 [n, k], times b, int8 [k, m], is c, int32 [n, m]. In
bytes, since the server does not depend on the onnx package."""


@cache
def saturate() -> bool:
    """Whether products of unsigned by signed bytes saturate on this processor.

    Tries one product whose exact result is known: the kernel's list of processor features is wrong
    where the processor is emulated.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(_PRODUCT, options, providers=["CPUExecutionProvider"])
    rows, columns = np.full((1, 64), 255, np.uint8), np.full((64, 16), 127, np.int8)
    product = session.run(None, {"a": rows, "b": columns})[0]
    return bool((product != 64 * 255 * 127).any())


def graph_int8(bundle: Bundle) -> Path | None:
    """The 8-bit graph of a bundle that is exact on this processor, if it has one."""
    return bundle.graph_int8_unsigned if saturate() else bundle.graph_int8
