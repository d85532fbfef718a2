"""What another process compiles: a vision tower without its weights, and the shape of its pixels, as bytes."""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from typing import IO, Any

import torch
from torch import Tensor, nn

from florence2.engine.encoder.attention_patch import AttentionPatch

_SIZE_BYTES = 8  # of the length of a job


@dataclass(frozen=True)
class CompileJob:
    """What is compiled: a vision tower for pixels of one shape, (B, C, H, W), with the settings of this process."""

    tower: Any
    pixels: Tensor
    num_threads: int
    matmul_precision: str

    def to_bytes(self) -> bytes:
        """Write the job without the values of its tensors; raises PicklingError and others if it cannot be written."""
        content = io.BytesIO()
        _JobPickler(content).dump(self)
        # Its size comes first, because `pickle.load` would wait for what follows it in a pipe.
        return len(content.getbuffer()).to_bytes(_SIZE_BYTES, "big") + content.getvalue()

    @classmethod
    def read(cls, file: IO[bytes]) -> CompileJob:
        """Read a job that the process which started this one wrote; its tensors are zeros."""
        job: CompileJob = pickle.loads(file.read(int.from_bytes(file.read(_SIZE_BYTES), "big")))
        return job


@dataclass(frozen=True)
class EmptyTensor:
    """A tensor without its values: its kind, shape, layout, dtype and device."""

    is_parameter: bool
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: str
    requires_grad: bool
    is_inference: bool

    @classmethod
    def of(cls, tensor: Tensor) -> EmptyTensor:
        """Describe a plain tensor; raises PicklingError for one of another class, such as a quantized weight."""
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout is not torch.strided:
            raise pickle.PicklingError(f"a weight is a {type(tensor).__name__}")
        values = tuple(tensor.shape), tensor.stride(), tensor.dtype, str(tensor.device)
        return cls(isinstance(tensor, nn.Parameter), *values, tensor.requires_grad, tensor.is_inference())

    def make(self) -> Tensor:
        """Make a tensor of zeros like the one described."""
        with torch.inference_mode(self.is_inference):
            zeros = torch.empty_strided(self.size, self.stride, dtype=self.dtype, device=self.device).zero_()
            return nn.Parameter(zeros, requires_grad=self.requires_grad) if self.is_parameter else zeros


class _JobPickler(pickle.Pickler):
    """Writes tensors without their values, and the patches of attention modules as what they patch."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return EmptyTensor.make, (EmptyTensor.of(value),)
        if isinstance(value, AttentionPatch):
            return type(value), (value._attention,)
        return NotImplemented
