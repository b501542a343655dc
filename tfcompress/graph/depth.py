"""Room for deep models: Keras follows a graph by recursion, a frame for each operation.

Python stops at 1,000 frames. EfficientNetV2L is just below that as it comes; with
quantizers in it, it is not.

Example:
    ```python
    allow_depth()
    keras.Model(inputs, outputs)
    ```
"""

import sys

# The longest chain of any application of Keras, quantized, is half of it. Of Python
# 3.10, whose frames lie on the stack of C, it takes half of the 8 MiB there are.
_FRAMES = 5_000


def allow_depth():
    """Raises Python's limit on recursion for good: such a model is walked again later.

    A limit that is higher stays.
    """
    sys.setrecursionlimit(max(sys.getrecursionlimit(), _FRAMES))
