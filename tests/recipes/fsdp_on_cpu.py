"""The command line on a CPU that accelerate treats as a GPU, because accelerate supports FSDP only there."""

import sys
from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType

from florence2.cli.program import main

_initialize = PartialState.__init__


def _initialize_as_multi_gpu(self: PartialState, *args: Any, **kwargs: Any) -> None:
    _initialize(self, *args, **kwargs)
    if self._shared_state.get("distributed_type") == DistributedType.MULTI_CPU:
        self._shared_state["distributed_type"] = DistributedType.MULTI_GPU


PartialState.__init__ = _initialize_as_multi_gpu

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
