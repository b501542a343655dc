"""Scales of biases with fewer significant bits, which compress better.

A file repeats, for the bias of each channel, the product of two scales that it holds
already: the input's and the kernel's. Runtimes compute with those two; the bias's own
scale only tells readers what its integers mean. Its 24 significant bits look random to
gzip, and of a small network they are a tenth of what is left after compression.

Example:
    ```python
    content = round_bias_scales(content)
    ```
"""

import numpy as np

from tfcompress.deploy.tflite_file import parsed, schema, serialized

# At most 1/4096 off the product. TFLite's own check of a bias scale
# tolerates 1/50 of a step of the output.
_BITS = 12


def round_bias_scales(content):
    """Rounds the scales of biases of a `.tflite` file to 12 significant bits.

    Biases are the quantized tensors of int32, and of int64 beside 16-bit activations.

    Args:
        content: Bytes of the file.

    Returns:
        Bytes of a file that computes exactly the same.
    """
    formats = schema()
    types = (formats.TensorType.INT32, formats.TensorType.INT64)
    model = parsed(content)
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            scale = getattr(tensor.quantization, "scale", None)
            if tensor.type in types and scale is not None:
                tensor.quantization.scale = _round(scale)
    return serialized(model, len(content))


def _round(values):
    mantissa, exponent = np.frexp(np.asarray(values, np.float64))
    rounded = np.round(mantissa * 2**_BITS) / 2**_BITS
    return np.ldexp(rounded, exponent).astype(np.float32)
