"""Making features of different size comparable: positions, ranks, masks.

Example:
    ```python
    student, teacher = aligned(student, teacher)   # equal but for the channels
    ```
"""

from keras import ops

from tfcompress.numerics.feature_distillation import resampling


def check_alignable(student, teacher):
    """Raises unless two static shapes can be aligned.

    Args:
        student: Tuple of ints and `None`.
        teacher: The same.
    """
    for shape in (student, teacher):
        if len(shape) < 2 or shape[-1] is None:
            raise ValueError(
                "Features must be (batch, ..., channels) with a fixed number of "
                f"channels. Received: shape {shape}"
            )
    if len(student) != len(teacher):
        return
    for own, other in zip(student[1:-1], teacher[1:-1], strict=True):
        if (own is None) != (other is None):
            raise ValueError(
                "Where one of two features has a fixed size and the other has not, "
                "they cannot be aligned. Give both models inputs of a fixed size, or "
                f"of none. Received: student {student}, teacher {teacher}"
            )


def aligned(student, teacher, mask=None):
    """Brings features to the same positions; the channels stay as they are.

    Of each axis the longer is averaged down to the shorter. Features of different rank
    are averaged over all positions.

    Args:
        student: Float tensor `(batch, positions..., channels)`.
        teacher: Float tensor, with other positions and channels.
        mask: Boolean `(batch, steps)` of valid steps of both, or `None`.

    Returns:
        Both as float tensors.
    """
    if len(student.shape) != len(teacher.shape):
        return pooled(student, mask), pooled(teacher, mask)
    for axis in range(1, len(student.shape) - 1):
        own, other = student.shape[axis], teacher.shape[axis]
        if own is not None and other is not None and own > other:
            student = _resampled(student, axis, other)
        elif own is not None and other is not None and other > own:
            teacher = _resampled(teacher, axis, own)
    return student, teacher


def joined(features):
    """Features of several teachers beside one another, at the positions of the first.

    Args:
        features: List of float tensors `(batch, positions..., channels)`.

    Returns:
        Float tensor with as many channels as all of them.
    """
    first, *others = features
    if any(len(x.shape) != len(first.shape) for x in others):
        first, *others = (pooled(x) for x in features)
    fitted = [first]
    for x in others:
        for axis in range(1, len(x.shape) - 1):
            if x.shape[axis] != first.shape[axis]:
                x = _resampled(x, axis, first.shape[axis])
        fitted.append(x)
    return ops.concatenate(fitted, axis=-1)


def joined_shape(shapes):
    """The static shape of what `joined` returns.

    Args:
        shapes: List of tuples of ints and `None`.
    """
    ranks = {len(shape) for shape in shapes}
    channels = sum(shape[-1] for shape in shapes)
    if len(ranks) > 1:
        return (shapes[0][0], channels)
    return (*shapes[0][:-1], channels)


def pooled(x, mask=None):
    """Mean over positions, the masked ones left out.

    Args:
        x: Float tensor `(batch, positions..., channels)`.
        mask: Boolean `(batch, steps)`, or `None`.

    Returns:
        Float tensor `(batch, channels)`.
    """
    axes = list(range(1, len(x.shape) - 1))
    if not axes:
        return x
    if mask is None or not fits(mask, x):
        return ops.mean(x, axis=axes)
    weight = _like(mask, x)
    total = ops.sum(x * weight, axis=axes)
    return total / ops.maximum(ops.sum(weight * ops.ones_like(x), axis=axes), 1.0)


def without_masked(x, mask):
    """Features with zeros where a mask is off, if the mask is of their positions."""
    if mask is None or not fits(mask, x):
        return x
    return x * _like(mask, x)


def fits(mask, x):
    """Whether a mask is of the leading axes of features, before the channels."""
    rank = len(mask.shape)
    return rank < len(x.shape) and all(
        a == b or None in (a, b)
        for a, b in zip(mask.shape[1:], x.shape[1:rank], strict=True)
    )


def _like(mask, x):
    weight = ops.cast(mask, x.dtype)
    while len(weight.shape) < len(x.shape):
        weight = ops.expand_dims(weight, axis=-1)
    return weight


def _resampled(x, axis, wanted):
    matrix = resampling(x.shape[axis], wanted)
    x = ops.moveaxis(x, axis, -1)
    x = ops.matmul(x, ops.transpose(ops.convert_to_tensor(matrix)))
    return ops.moveaxis(x, -1, axis)
