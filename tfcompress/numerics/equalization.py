"""Factors that give the channels between two kernels equal ranges.

Example:
    ```python
    factor = channel_factors(first_range, second_range)
    first, second = first / factor, second * factor   # along the channels between them
    ```
"""

import numpy as np

_GIVEN_UP = 1e-4


def channel_factors(first, second):
    """What to divide the outputs of one kernel by, and multiply the next one's inputs.

    `sqrt(first / second)`: both ranges of a channel become `sqrt(first * second)`, for
    which the product of the precisions of the two kernels, each with one scale, is as
    large as it can be.

    Args:
        first: Largest weight, by size, of each output channel of the first kernel,
            float array `(channels,)`.
        second: The same of each input channel of the second kernel.

    Returns:
        Float64 array `(channels,)`, positive. A channel that is zero on either side
        keeps its weights: its factor is 1. So does one whose first range is below a
        ten-thousandth of the largest, as training leaves channels that it gave up:
        their bias, which the factor divides too, would outgrow every activation.

    Reference:
        Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
        Correction", 2019, eq. 11. arXiv:1906.04721
    """
    first, second = (np.asarray(r, np.float64) for r in (first, second))
    both = (first > _GIVEN_UP * first.max(initial=0)) & (second > 0)
    ratio = np.where(both, first, 1.0) / np.where(both, second, 1.0)
    return np.sqrt(ratio)
