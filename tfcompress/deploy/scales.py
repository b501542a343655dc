"""Quantization scales with fewer significant bits, which compress better.

A file has two float32 scales for each channel of each kernel: the kernel's and its
bias's. Their 24 significant bits look random to gzip, and of a small network they are a
quarter of what is left after compression. The arithmetic does not need them all.

Example:
    ```python
    content = round_scales(content)
    ```
"""

import numpy as np

from tfcompress.deploy.tflite_file import schema

# 16 bits move an int8 value by at most 127 / 2**17 = 0.001 of a step. The scale of an
# int32 bias only repeats the product of two other scales, which is what kernels use.
_BITS = 16
_BIAS_BITS = 12


def round_scales(content):
    """Rounds the scales of a `.tflite` file: 16 significant bits, 12 for biases.

    Args:
        content: Bytes of the file.

    Returns:
        Bytes of a file with the same integers.
    """
    import flatbuffers

    formats = schema()
    model = formats.ModelT.InitFromPackedBuf(content, 0)
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            scale = getattr(tensor.quantization, "scale", None)
            if scale is not None and len(scale):
                is_bias = tensor.type == formats.TensorType.INT32
                bits = _BIAS_BITS if is_bias else _BITS
                tensor.quantization.scale = _round(scale, bits)
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _round(values, bits):
    mantissa, exponent = np.frexp(np.asarray(values, np.float64))
    rounded = np.round(mantissa * 2**bits) / 2**bits
    return np.ldexp(rounded, exponent).astype(np.float32)
