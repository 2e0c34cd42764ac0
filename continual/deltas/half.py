"""Half the bytes: values in the precision of float16 before they are scored, and of that type in the file."""

import torch
from torch import Tensor

MAX_RELATIVE_ERROR = 2**-10  # of a tensor's norm; numbers that float16 has in full range lose at most half of it each


def round_to_float16(value: Tensor) -> Tensor:
    """The nearest numbers v' that float16 has, in the type of v; v itself unless ‖v − v'‖ < 2⁻¹⁰ ‖v‖.

    So values beyond its range, below it, or that are no numbers stay as they are, and so do whole numbers.
    """
    if not value.is_floating_point():
        return value
    nearest = value.half().to(value.dtype)
    return nearest if (value - nearest).norm() < MAX_RELATIVE_ERROR * value.norm() else value


def pack_float16(value: Tensor) -> Tensor:
    """A float32 tensor in float16 where that holds it to the bit; any other as it is."""
    if value.dtype != torch.float32:
        return value
    half = value.half()
    return half if torch.equal(half.float(), value) else value


def unpack_float32(value: Tensor) -> Tensor:
    """What `to_stored` was given."""
    return value.float() if value.dtype == torch.float16 else value
