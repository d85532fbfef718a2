"""Loading of an exported folder as a model that `generate` and `GenerateEngine` run."""

from pathlib import Path

from transformers import Florence2Config, Florence2Processor, GenerationConfig

from florence2.export.runtime.exported_model import ExportedModel, Graphs
from florence2.export.runtime.onnx_graphs import OnnxGraphs, find_precision


def load_exported(
    folder: str | Path, *, dtype: str | None = None, num_threads: int = 0
) -> tuple[ExportedModel, Florence2Processor]:
    """Load a folder that `florence2 export --to onnx` wrote: its graphs and its processor.

    `dtype` chooses between files of several precisions; `num_threads` 0 lets the runtime choose.
    """
    folder = Path(folder)
    graphs: Graphs = OnnxGraphs(folder, find_precision(folder, dtype), num_threads=num_threads)
    config = Florence2Config.from_pretrained(folder, local_files_only=True)
    generation = GenerationConfig.from_pretrained(folder, local_files_only=True)
    processor = Florence2Processor.from_pretrained(folder, local_files_only=True)
    return ExportedModel(config, generation, graphs), processor
