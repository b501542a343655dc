"""A condition on a tensor, by a branch or by a selection: whichever costs less.

Example:
    ```python
    y = cheapest_cond(5000, rounds, lambda: tf.round(x), lambda: x)
    ```
"""

import tensorflow as tf

# Values below which no branch is built.
_SMALL = 2048


def cheapest_cond(values, condition, first, second):
    """`tf.cond`; of small tensors both are computed, as a branch costs more than they.

    A recurrent network has a hundred of them, and branches take long to build.

    Args:
        values: How many values are computed (for each example, where there are any);
            `None` if that is not known.
        condition: Scalar bool tensor.
        first: Function without arguments: what to return if `condition` is true.
        second: Function of the same structure of results, otherwise.

    Returns:
        What `first` or `second` returns.
    """
    if is_small(values):
        return tf.nest.map_structure(
            lambda a, b: tf.where(condition, a, b), first(), second()
        )
    # A branch may not return what it was given.
    return tf.cond(
        condition, first, lambda: tf.nest.map_structure(tf.identity, second())
    )


def is_small(values):
    """Whether `cheapest_cond` computes both of so many values (`None`: unknown)."""
    return values is not None and values <= _SMALL


def values_of_example(x):
    """Number of values of one row of a tensor; `None` if that is not known."""
    return x.shape[1:].num_elements()
