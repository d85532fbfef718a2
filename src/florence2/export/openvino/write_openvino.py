"""Export to OpenVINO's intermediate representation: five graphs, each an `.xml` and a `.bin`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch

from florence2.data.sample import Sample
from florence2.errors import OptionError
from florence2.export.onnx.language_graphs import cross_attention_graph, decoder_graph, embedding_graph, encoder_graph
from florence2.export.onnx.vision_graph import vision_graph
from florence2.export.openvino.quantize_openvino import compress_weights, quantize_vision
from florence2.export.runtime.openvino_graphs import OPENVINO_FOLDER, PARTS, SUFFIXES
from florence2.model.processing import Preprocessor


def write_openvino(
    model: Any, processor: Any, folder: Path, *, dtype: str = "float32", samples: Sequence[Sample] = ()
) -> None:
    """Write the graphs into `openvino/` of a folder, and config, processor and tokenizer beside it.

    `dtype` is `float32`, `float16` (of the weights; OpenVINO chooses the arithmetic) or `int8`, whose vision tower
    is calibrated on `samples`. Batch and lengths are dynamic, the image size is the processor's.
    """
    import openvino

    if dtype == "int8" and not samples:
        hint = "pass `--images` with 30 or more images like those that you want to caption"
        raise OptionError("`--to openvino --dtype int8` needs images to calibrate the vision tower on", hint)
    target, preprocessor = folder / OPENVINO_FOLDER, Preprocessor.from_processor(processor)
    target.mkdir(parents=True, exist_ok=True)
    for part, build in _graph_functions(model, preprocessor).items():
        graph = _convert(build())
        if dtype == "int8":
            graph = quantize_vision(graph, preprocessor, samples) if part == PARTS[0] else compress_weights(graph)
        path = target / f"{part}{SUFFIXES[dtype]}.xml"
        openvino.save_model(graph, path, compress_to_fp16=dtype == "float16")
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    processor.save_pretrained(folder)


def _convert(model: onnx.ModelProto) -> Any:
    """Convert a graph; an output has its name in `model` alone, because OpenVINO adds those of merged nodes."""
    import openvino

    graph = openvino.Core().read_model(model.SerializeToString(), b"")
    for output, info in zip(graph.outputs, model.graph.output, strict=True):
        output.get_tensor().set_names({info.name})
    return graph


def _graph_functions(model: Any, preprocessor: Preprocessor) -> dict[str, Callable[[], onnx.ModelProto]]:
    """Return the functions that build the graphs, so that one at a time is in memory."""
    functions = (
        lambda: vision_graph(model, preprocessor.size, torch.float32),
        lambda: embedding_graph(model, torch.float32),
        lambda: encoder_graph(model, torch.float32),
        lambda: cross_attention_graph(model, torch.float32),
        lambda: decoder_graph(model, torch.float32),
    )
    return dict(zip(PARTS, functions, strict=True))
