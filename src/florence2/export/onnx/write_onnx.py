"""Export to ONNX: four graphs in the layout that transformers.js loads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx.external_data_helper import set_external_data

from florence2.export.onnx.language_graphs import embedding_graph, encoder_graph, merged_decoder_graph
from florence2.export.onnx.quantize_onnx import QUANTIZERS
from florence2.export.onnx.vision_graph import vision_graph
from florence2.export.onnx.web_files import write_web_files
from florence2.export.runtime.onnx_graphs import ONNX_FOLDER, PARTS, SUFFIXES
from florence2.model.processing import Preprocessor

# A file of protobuf has at most 2 GiB; the weights of a larger graph are in files beside it.
MAX_FILE_BYTES = 2**31 - 2**20


def write_onnx(
    model: Any, processor: Any, folder: Path, *, dtype: str = "float32", max_file_bytes: int = MAX_FILE_BYTES
) -> None:
    """Write the graphs into `onnx/` of a folder, and config, processor and tokenizer beside it.

    `dtype` is `float32`, `float16`, `int8` or `q4`; inputs and outputs are float32 in all of them. The image size is
    the processor's; batch and lengths are dynamic.
    """
    target = folder / ONNX_FOLDER
    target.mkdir(parents=True, exist_ok=True)
    num_data_files: dict[str, int] = {}
    for part, build in graph_functions(model, processor, dtype).items():
        name = f"{part}{SUFFIXES[dtype]}.onnx"
        graph = build()
        if dtype in QUANTIZERS:
            graph = QUANTIZERS[dtype](graph)
        if count := _save(graph, target / name, max_file_bytes):
            num_data_files[name] = count
    write_web_files(model, processor, folder, dtype, num_data_files)


def graph_functions(model: Any, processor: Any, dtype: str) -> dict[str, Callable[[], onnx.ModelProto]]:
    """Return the functions that build the four graphs, so that one at a time is in memory."""
    size, weights = Preprocessor.from_processor(processor).size, torch.float16 if dtype == "float16" else torch.float32
    functions = (
        lambda: vision_graph(model, size, weights),
        lambda: embedding_graph(model, weights),
        lambda: encoder_graph(model, weights),
        lambda: merged_decoder_graph(model, weights),
    )
    return dict(zip(PARTS, functions, strict=True))


def _save(graph: onnx.ModelProto, path: Path, max_file_bytes: int) -> int:
    """Write a graph and return the number of files that hold its weights beside it: 0 where they fit into its own.

    They are called `<name>_data`, `<name>_data_1` and so on; only a single weight can exceed `max_file_bytes`.
    """
    # Shapes and scalars remain in the graph: onnxruntime reads them to infer the shapes of values.
    sizes = [(tensor, len(tensor.raw_data)) for tensor in graph.graph.initializer if len(tensor.raw_data) > 1024]
    if sum(size for _, size in sizes) <= max_file_bytes:
        onnx.save_model(graph, path)
        return 0
    number, filled = 0, 0
    for tensor, size in sizes:
        if filled and filled + size > max_file_bytes:
            number, filled = number + 1, 0
        filled += size
        set_external_data(tensor, f"{path.name}_data" + (f"_{number}" if number else ""))
    onnx.save_model(graph, path)
    return number + 1
