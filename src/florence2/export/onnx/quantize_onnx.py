"""Quantization of ONNX graphs by onnxruntime's own tools: weights of 8 bits, or of 4 bits in blocks."""

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx

Q4_BLOCK_SIZE = 32  # weights that have one scale


def quantize_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store matrices and embeddings in 8 bits, and multiply in 8 bits with activations that are quantized as they come.

    Weights are of 7 bits, so that two products never overflow 16 bits on CPUs without VNNI. Convolutions keep float32:
    they have few weights, and onnxruntime computes them in 8 bits slower.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder, _without_advice():
        path = Path(folder) / "model.onnx"
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=["MatMul", "Gather"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            extra_options={"EnableSubgraph": True, "MatMulConstBOnly": True},
        )
        return onnx.load(path)


def quantize_q4(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store matrices in 4 bits, in blocks of 32 weights with one scale; embeddings and convolutions keep float32."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    with _without_advice():
        quantizer = MatMulNBitsQuantizer(model, bits=4, block_size=Q4_BLOCK_SIZE, is_symmetric=True, accuracy_level=4)
        quantizer.process()
    quantized: onnx.ModelProto = quantizer.model.model
    return quantized


QUANTIZERS: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {"int8": quantize_int8, "q4": quantize_q4}


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Silence the root logger, to which onnxruntime advises preprocessing that these graphs need not."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
