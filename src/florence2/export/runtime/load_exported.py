"""Loading of an exported folder as a model that `generate` and `GenerateEngine` run."""

from pathlib import Path

from transformers import Florence2Config, Florence2Processor, GenerationConfig

from florence2.errors import CheckpointError
from florence2.export.runtime import onnx_graphs, openvino_graphs
from florence2.export.runtime.exported_model import ExportedModel, Graphs
from florence2.export.runtime.precisions import find_precision


def load_exported(
    folder: str | Path, *, dtype: str | None = None, num_threads: int = 0
) -> tuple[ExportedModel, Florence2Processor]:
    """Load a folder that `florence2 export --to onnx` or `--to openvino` wrote: its graphs and its processor.

    `dtype` chooses between graphs of several precisions; `num_threads` 0 lets the runtime choose.
    """
    folder = Path(folder)
    graphs = _load_graphs(folder, dtype, num_threads)
    config = Florence2Config.from_pretrained(folder, local_files_only=True)
    generation = GenerationConfig.from_pretrained(folder, local_files_only=True)
    processor = Florence2Processor.from_pretrained(folder, local_files_only=True)
    return ExportedModel(config, generation, graphs), processor


def _load_graphs(folder: Path, dtype: str | None, num_threads: int) -> Graphs:
    onnx, openvino = folder / onnx_graphs.ONNX_FOLDER, folder / openvino_graphs.OPENVINO_FOLDER
    if onnx.is_dir():
        dtype = find_precision(onnx, f"{onnx_graphs.PARTS[0]}.onnx", onnx_graphs.SUFFIXES, dtype)
        return onnx_graphs.OnnxGraphs(folder, dtype, num_threads=num_threads)
    if openvino.is_dir():
        dtype = find_precision(openvino, f"{openvino_graphs.PARTS[0]}.xml", openvino_graphs.SUFFIXES, dtype)
        return openvino_graphs.OpenVINOGraphs(folder, dtype, num_threads=num_threads)
    what = f"`{folder}` is no folder of `florence2 export` with graphs: it has neither `onnx/` nor `openvino/`"
    raise CheckpointError(what, "pass the folder that `--to onnx` or `--to openvino` wrote")
