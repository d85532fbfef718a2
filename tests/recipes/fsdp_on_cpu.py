"""The command line on a CPU that accelerate takes for an accelerator: it offers FSDP on no other device."""

import sys
from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType

from florence2.cli import main

_begin = PartialState.__init__


def _begin_as_an_accelerator(self: PartialState, *given: Any, **named: Any) -> None:
    _begin(self, *given, **named)
    if self._shared_state.get("distributed_type") == DistributedType.MULTI_CPU:
        self._shared_state["distributed_type"] = DistributedType.MULTI_GPU


PartialState.__init__ = _begin_as_an_accelerator

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
