"""Rewrites a model into operations that have an integer form, before it is quantized.

A *form* says how a layer or Keras operation is computed from simpler ones: layer
normalization from means and products, attention from dense layers and matrix products,
a recurrent layer from its steps. `lower` applies forms until none applies.

Example:
    ```python
    simple, origins = lower(model)   # the same function, more and simpler layers
    ```
"""

from tfcompress.passes.lowering.lower import lower as lower
from tfcompress.passes.lowering.trace import functional_form as functional_form
