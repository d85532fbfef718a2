"""The four ONNX files of a folder, run by onnxruntime."""

from pathlib import Path

import numpy as np

from florence2.errors import MissingPackageError
from florence2.export.runtime.exported_model import Arrays
from florence2.export.runtime.precisions import graph_path
from florence2.system import switch_off_telemetry

ONNX_FOLDER = "onnx"
PARTS = ("vision_encoder", "embed_tokens", "encoder_model", "decoder_model_merged")
# The suffix of a file's name says the precision of its weights, as transformers.js spells it.
SUFFIXES = {"float32": "", "float16": "_fp16", "int8": "_quantized", "q4": "_q4"}


class OnnxGraphs:
    """Sessions of onnxruntime for the files of one precision; `num_threads` 0 lets onnxruntime choose."""

    def __init__(self, folder: Path, dtype: str, *, num_threads: int = 0) -> None:
        require_onnx("loading this folder")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        self._sessions = {}
        for part in PARTS:
            path = graph_path(folder / ONNX_FOLDER, part, SUFFIXES[dtype], "onnx")
            self._sessions[part] = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        decoder = self._sessions["decoder_model_merged"]
        self._outputs = [each.name for each in decoder.get_outputs()]
        self._cache_shapes = {each.name: each.shape for each in decoder.get_inputs() if "past" in each.name}

    def encode_image(self, pixel_values: np.ndarray) -> np.ndarray:
        """Return the features (B, N, D) of pixels (B, 3, H, W)."""
        return self._run("vision_encoder", pixel_values=pixel_values)

    def embed_tokens(self, input_ids: np.ndarray) -> np.ndarray:
        """Return the embeddings (B, N, D) of ids (B, N)."""
        return self._run("embed_tokens", input_ids=input_ids)

    def encode(self, inputs_embeds: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Return the encoder's states (B, N, D)."""
        return self._run("encoder_model", inputs_embeds=inputs_embeds, attention_mask=attention_mask)

    def decode(self, inputs_embeds: np.ndarray, states: np.ndarray, mask: np.ndarray, past: Arrays) -> Arrays:
        """Return `logits` and `present.*`; an empty `past` selects the first step."""
        feeds = {
            "inputs_embeds": inputs_embeds,
            "encoder_hidden_states": states,
            "encoder_attention_mask": mask,
            "use_cache_branch": np.array([bool(past)]),
            **(past or self._empty_cache(len(inputs_embeds))),
        }
        outputs = self._sessions["decoder_model_merged"].run(None, feeds)
        return dict(zip(self._outputs, outputs, strict=True))

    def _run(self, part: str, **feeds: np.ndarray) -> np.ndarray:
        output: np.ndarray = self._sessions[part].run(None, feeds)[0]
        return output

    def _empty_cache(self, batch_size: int) -> Arrays:
        return {
            name: np.zeros((batch_size, shape[1], 0, shape[3]), np.float32)
            for name, shape in self._cache_shapes.items()
        }


def require_onnx(what: str) -> None:
    """Raise MissingPackageError where onnxruntime or onnx is not installed."""
    switch_off_telemetry()
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        message = f"{what} needs the package {error.name}"
        raise MissingPackageError(message, "run `pip install 'florence2[onnx]'`") from None
