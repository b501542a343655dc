"""Losses between what layers of a student and of a teacher compute, one per example.

Features are `(batch, ..., channels)`; losses that compare examples of a batch with one
another give each example its share.

Example:
    ```python
    loss = attention_transfer(student_features, teacher_features)
    ```
"""

import numpy as np
from keras import ops

from tfcompress.numerics.distillation import ERRORS, normalized


def squared_difference(student, teacher):
    """Mean squared difference over the channels (FitNets' hint loss).

    Args:
        student: Float tensor `(batch, ..., channels)`, projected to the teacher's.
        teacher: Float tensor of the same shape.

    Returns:
        Float tensor `(batch, ...)`.

    Reference:
        Romero et al., "FitNets: Hints for Thin Deep Nets", 2014, eq. 3 (a mean where
        the paper has half a sum). arXiv:1412.6550
    """
    return ops.mean((student - teacher) ** 2, axis=-1)


def attention_transfer(student, teacher, power=2):
    """Squared distance of the normalized maps of where features are large.

    Args:
        student: Float tensor `(batch, positions..., channels)`.
        teacher: Float tensor with the same positions, any number of channels.
        power: p of the map, the mean over channels of |x|**p.

    Returns:
        Float tensor `(batch,)` in [0, 2].

    Reference:
        Zagoruyko & Komodakis, "Paying More Attention to Attention", 2016, eq. 2, with
        the distance squared, as in their code. arXiv:1612.03928
    """
    maps = []
    for x in (student, teacher):
        attention = ops.mean(ops.abs(x) ** power, axis=-1)
        maps.append(normalized(_rows(attention)))
    return ops.sum((maps[0] - maps[1]) ** 2, axis=-1)


def similarity_preserving(student, teacher):
    """Squared difference of the normalized similarities of examples of a batch.

    Args:
        student: Float tensor `(batch, ...)`.
        teacher: Float tensor `(batch, ...)`, of any other size.

    Returns:
        Float tensor `(batch,)`, whose mean is the loss of the paper.

    Reference:
        Tung & Mori, "Similarity-Preserving Knowledge Distillation", 2019, eq. 4.
        arXiv:1907.09682
    """
    similar = []
    for x in (student, teacher):
        x = _rows(x)
        similar.append(normalized(ops.matmul(x, ops.transpose(x))))
    # The mean over rows, taken later, and this one make 1 / batch**2.
    return ops.mean((similar[0] - similar[1]) ** 2, axis=-1)


def relational_distance(student, teacher):
    """Huber loss between distances of examples, each over the mean distance.

    Args:
        student: Float tensor `(batch, ...)`.
        teacher: Float tensor `(batch, ...)`, of any other size.

    Returns:
        Float tensor `(batch,)`: for each example the mean over the batch.

    Reference:
        Park et al., "Relational Knowledge Distillation", 2019, eq. 4 to 6.
        arXiv:1904.05068
    """
    distances = []
    for x in (student, teacher):
        x = _rows(x)
        squares = ops.sum(x**2, axis=-1)
        squares = squares[:, None] + squares[None] - 2 * ops.matmul(x, ops.transpose(x))
        # Of an example to itself the square rounds to either side of zero, where the
        # root has no gradient.
        apart = squares > 1e-6 * ops.mean(ops.abs(squares))
        distance = ops.where(apart, ops.sqrt(ops.where(apart, squares, 1.0)), 0.0)
        number = ops.maximum(ops.sum(ops.cast(apart, x.dtype)), 1.0)
        mean = ops.sum(distance) / number
        distances.append(distance / ops.maximum(mean, 1e-12))
    return ops.mean(ERRORS["huber"](distances[0] - distances[1]), axis=-1)


def relational_angle(student, teacher):
    """Huber loss between the cosines of angles that triples of examples form.

    Args:
        student: Float tensor `(batch, ...)`.
        teacher: Float tensor `(batch, ...)`, of any other size.

    Returns:
        Float tensor `(batch,)`: for each example, as the vertex, the mean over pairs
        of the batch. It takes memory for batch**3 numbers.

    Reference:
        Park et al., "Relational Knowledge Distillation", 2019, eq. 7 to 9.
        arXiv:1904.05068
    """
    cosines = []
    for x in (student, teacher):
        x = _rows(x)
        edges = normalized(x[None] - x[:, None])
        cosines.append(ops.matmul(edges, ops.transpose(edges, (0, 2, 1))))
    return ops.mean(ERRORS["huber"](cosines[0] - cosines[1]), axis=(1, 2))


def contrastive(student, teacher, memory, filled, temperature):
    """How badly a student's embedding finds its own example among the teacher's.

    Args:
        student: Float tensor `(batch, size)` of length 1 along the last axis.
        teacher: Float tensor of the same shape, likewise.
        memory: Float tensor `(capacity, size)`: teacher embeddings of earlier batches.
        filled: Number of rows of `memory` that hold something, the first ones.
        temperature: Of the softmax over similarities, above 0.

    Returns:
        Float tensor `(batch,)`: cross-entropy of the own example against all others of
        the batch and the memory (InfoNCE).

    Reference:
        Tian et al., "Contrastive Representation Distillation", 2019, with InfoNCE
        (van den Oord et al., 2018, eq. 4) in place of their eq. 9, so that a queue of
        bounded length does and no index of examples is needed. arXiv:1910.10699
    """
    among_batch = ops.matmul(student, ops.transpose(teacher)) / temperature
    remembered = ops.matmul(student, ops.transpose(memory)) / temperature
    empty = ops.arange(memory.shape[0]) >= ops.cast(filled, "int32")
    remembered = ops.where(empty[None], -1e9, remembered)
    total = ops.logsumexp(ops.concatenate([among_batch, remembered], axis=1), axis=1)
    return total - ops.diagonal(among_batch)


def resampling(length, wanted):
    """Matrix by which an axis of one length becomes one of another.

    Each new element is the mean of what it covers of the old axis, so a whole factor
    is average pooling, or repetition.

    Args:
        length: Elements there are.
        wanted: Elements there shall be.

    Returns:
        float32 array `(wanted, length)` whose rows sum to 1.
    """
    edges = np.arange(wanted + 1) * length / wanted
    low, high = edges[:-1, None], edges[1:, None]
    cells = np.arange(length)[None]
    covered = np.minimum(high, cells + 1) - np.maximum(low, cells)
    return (np.maximum(covered, 0) * wanted / length).astype("float32")


def _rows(x):
    return ops.reshape(x, (ops.shape(x)[0], -1))
