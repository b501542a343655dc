"""How a sparsity of the whole network is shared out among its kernels.

Example:
    ```python
    erdos_renyi_kernel([(3, 3, 3, 16), (3, 3, 16, 32)], 0.8)   # one for each kernel
    ```
"""

import numpy as np


def erdos_renyi_kernel(shapes, sparsity):
    """Keeps more of the kernels that are small for their number of channels (ERK).

    The density of a kernel is proportional to the sum of its sides over their product,
    at most 1; together they have the sparsity asked.

    Args:
        shapes: Shapes of the kernels.
        sparsity: Fraction of zeros in all of them, in [0, 1).

    Returns:
        List of sparsities, one for each shape.

    Reference:
        Evci et al., "Rigging the Lottery", 2020, section 3 (1). arXiv:1911.11134
    """
    sizes = np.array([np.prod(shape) for shape in shapes], "float64")
    raw = np.array([np.sum(shape) for shape in shapes]) / sizes
    kept = (1 - sparsity) * sizes.sum()
    dense = np.zeros(len(shapes), bool)
    while True:
        # What the dense kernels do not use up, the others share.
        left = kept - sizes[dense].sum()
        density = np.where(dense, 1.0, raw * left / (raw * sizes)[~dense].sum())
        more = ~dense & (density >= 1)
        if not more.any():
            return [float(1 - d) for d in density]
        dense |= more
        if dense.all():
            return [0.0] * len(shapes)
