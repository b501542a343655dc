"""A condition on a tensor, by a branch or by a selection: whichever costs less.

Example:
    ```python
    y = cheapest_cond(x, rounds, lambda: tf.round(x), lambda: x)
    ```
"""

import tensorflow as tf

# Values of one example below which no branch is built.
_SMALL = 2048


def cheapest_cond(x, condition, first, second):
    """`tf.cond`; of small tensors both are computed, as a branch costs more than they.

    A recurrent network has a hundred of them, and branches take long to build.

    Args:
        x: Tensor that tells the size, one row for each example.
        condition: Scalar bool tensor.
        first: Function without arguments: what to return if `condition` is true.
        second: Function of the same structure of results, otherwise.

    Returns:
        What `first` or `second` returns.
    """
    if x.shape[1:].is_fully_defined() and x.shape[1:].num_elements() <= _SMALL:
        return tf.nest.map_structure(
            lambda a, b: tf.where(condition, a, b), first(), second()
        )
    # A branch may not return what it was given.
    return tf.cond(
        condition, first, lambda: tf.nest.map_structure(tf.identity, second())
    )
