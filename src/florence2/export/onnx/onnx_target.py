"""The target `onnx` of `florence2 export`."""

from pathlib import Path

import torch
from transformers.utils.hub import convert_file_size_to_int

from florence2.export.comparison import ComparisonCase, LogitsFn
from florence2.export.export_source import ExportSource
from florence2.export.runtime.load_exported import load_exported
from florence2.export.runtime.onnx_graphs import import_onnxruntime


def write(source: ExportSource, folder: Path, dtype: torch.dtype | str, max_shard_size: str) -> None:
    """Write the graphs, and the files that transformers.js reads beside them."""
    import_onnxruntime()
    from florence2.export.onnx.write_onnx import MAX_FILE_BYTES, write_onnx

    limit = min(convert_file_size_to_int(max_shard_size), MAX_FILE_BYTES)
    name = str(dtype).removeprefix("torch.")
    write_onnx(source.model, source.processor, folder, dtype=name, max_file_bytes=limit)


def read(_: ExportSource, folder: Path) -> LogitsFn:
    """Load the graphs in onnxruntime."""
    model, _processor = load_exported(folder)

    @torch.inference_mode()
    def logits(case: ComparisonCase) -> torch.Tensor:
        return model(
            pixel_values=case.pixel_values, input_ids=case.input_ids, decoder_input_ids=case.decoder_input_ids
        ).logits

    return logits
