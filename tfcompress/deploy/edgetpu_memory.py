"""Whether a model's parameters will fit on the chip of an Edge TPU.

The chip has 8 MiB for the program, the activations in flight and as many parameters as
are left room for; the rest is fetched from the host at every inference, which is what
makes a model slow. The compiler alone knows the sizes. The bounds here hold for every
compiled model that was at hand, and say "not settled" between them: of the 25 pairs
they settle 16, all as cached. The other 9 have an operation with more than 5 MiB of
activations, and no pair says how much memory such ones leave.

Example:
    ```python
    memory = check_edgetpu("model.tflite").memory
    memory.parameter_bytes, memory.parameter_bytes_at_most, memory.cached
    ```
"""

from dataclasses import dataclass

import numpy as np

_MIB = 2**20

# The largest memory for parameters that a log reports, used and remaining together, is
# 8.05 MiB; 7.04 MiB is the smallest of one model with ordinary activations.
_LARGEST_MEMORY = int(8.05 * _MIB)
_ORDINARY_MEMORY = int(7.04 * _MIB)

# Of a channel the chip holds scale and offset: a Dense(256, 256) without bias takes
# 66.00 KiB, which is 256 * (256 + 8) bytes (ricardodeazambuja/LibrEdgeTPU).
_BYTES_OF_CHANNEL = 8

# Padding to the chip's tiles, and the program. The most that one of the 25 compiled
# packages has beyond the padding is 0.48 MiB; a quarter more is allowed, which from two
# thirds of the pairs holds for the third that was left out.
_PADDED = 1.35
_PROGRAM = int(0.6 * _MIB)

# Kernel -> axis of the output channels in the file.
_CHANNEL_AXIS = {
    "CONV_2D": 0,
    "FULLY_CONNECTED": 0,
    "TRANSPOSE_CONV": 0,
    "DEPTHWISE_CONV_2D": 3,
}
_ITEM_BYTES = {"INT8": 1, "UINT8": 1}


@dataclass(frozen=True)
class EdgeTPUMemory:
    """Bounds of what the parameters take on the chip.

    Attributes:
        parameter_bytes: At least so much: weights, and 8 bytes an output channel.
        parameter_bytes_at_most: At most so much, with padding and the program, in all
            compiled models that were at hand.
        activation_bytes: Inputs and outputs of the operation with the largest ones,
            which share the memory.
        cached: Whether all parameters stay on the chip between inferences; `None` where
            the bounds do not settle it. `False` only if they exceed the chip by
            themselves: large activations may crowd out fewer.
    """

    parameter_bytes: int
    parameter_bytes_at_most: int
    activation_bytes: int
    cached: bool | None

    def __str__(self):
        answer = {
            True: "all stay on the chip",
            False: "too many for the chip, some are fetched at every inference",
            None: "whether all stay on the chip, the compiler decides",
        }[self.cached]
        low, high = self.parameter_bytes / _MIB, self.parameter_bytes_at_most / _MIB
        return f"parameters take {low:.2f} to {high:.2f} MiB of 8: {answer}"


def estimate_memory(operations):
    """Bounds for the operations that run on the Edge TPU.

    Args:
        operations: `Operation`s of a file, those that are mapped.

    Returns:
        An `EdgeTPUMemory`.
    """
    parameters = _parameter_bytes(operations)
    activations = max(map(_activation_bytes, operations), default=0)
    most = int(parameters * _PADDED) + _PROGRAM if operations else 0
    cached = None
    if parameters > _LARGEST_MEMORY:
        cached = False
    elif most + activations <= _ORDINARY_MEMORY:
        cached = True
    return EdgeTPUMemory(parameters, most, activations, cached)


def _parameter_bytes(operations):
    counted = {}
    for op in operations:
        for position, tensor in enumerate(op.inputs):
            if tensor is None or not tensor.constant:
                continue
            size = _bytes(tensor)
            axis = _CHANNEL_AXIS.get(op.operator)
            if axis is not None and position == 1:
                size += _BYTES_OF_CHANNEL * tensor.shape[axis]
            # A constant that several operations read is stored once.
            counted[tensor.index] = size
    return int(sum(counted.values()))


def _activation_bytes(op):
    tensors = [t for t in (*op.inputs, *op.outputs) if t is not None]
    return sum(_bytes(tensor) for tensor in tensors if not tensor.constant)


def _bytes(tensor):
    return int(np.prod(tensor.shape)) * _ITEM_BYTES.get(tensor.dtype, 0)
