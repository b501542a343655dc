"""Product quantization: blocks of weights that share few vectors.

Example:
    ```python
    blocks = to_blocks(kernel, block=4, axis=0)        # (blocks, 4)
    vectors = initial_vectors(blocks, clusters=256)    # (255, 4): zero is one more
    index = nearest_vectors(blocks, vectors)
    ```

Reference:
    Gong et al., "Compressing Deep Convolutional Networks using Vector Quantization",
    2014, section 3.2.3. arXiv:1412.6115
"""

import numpy as np
import tensorflow as tf

# Distances that are held at a time.
_DISTANCES = 1 << 20
# Blocks for each vector from which vectors are found.
_SAMPLES = 256


def to_blocks(weight, *, block, axis):
    """Blocks of a weight along an axis, `(blocks, block)`; array or tensor.

    Where blocks do not fill the axis, zeros fill the last.
    """
    library = np if isinstance(weight, np.ndarray) else tf
    order = _axis_last(weight.shape, axis)
    if order != sorted(order):
        weight = library.transpose(weight, order)
    missing = -weight.shape[-1] % block
    if missing:
        weight = library.pad(weight, [[0, 0]] * (len(order) - 1) + [[0, missing]])
    return library.reshape(weight, (-1, block))


def from_blocks(blocks, shape, *, axis):
    """The tensor of which `blocks` are the blocks, as `to_blocks` gives them."""
    order = _axis_last(shape, axis)
    moved = [shape[i] for i in order]
    block = blocks.shape[-1]
    x = tf.reshape(blocks, [*moved[:-1], -(-moved[-1] // block) * block])
    x = x[..., : moved[-1]]
    return x if order == sorted(order) else tf.transpose(x, np.argsort(order))


def _axis_last(shape, axis):
    rank = len(shape)
    return [i for i in range(rank) if i != axis % rank] + [axis % rank]


def initial_vectors(blocks, clusters=256, *, steps=20, seed=0):
    """Vectors by k-means, of at most 256 blocks for each, drawn at random.

    Blocks of no more than `clusters` different kinds get just these.

    Args:
        blocks: Float array `(blocks, block)`.
        clusters: Number of vectors, the zero vector included, 2 or more.
        steps: Steps of k-means at most.
        seed: Of what is drawn.

    Returns:
        Float32 array `(clusters - 1, block)`.
    """
    rng = np.random.default_rng(seed)
    blocks = np.asarray(blocks, "float32")
    blocks = blocks[blocks.any(axis=1)]
    count = clusters - 1
    if not len(blocks):
        return rng.uniform(-0.05, 0.05, (count, blocks.shape[1])).astype("float32")
    different = _few_rows(blocks, count)
    if different is not None:
        return np.pad(different, ((0, count - len(different)), (0, 0)), mode="edge")
    if len(blocks) > _SAMPLES * clusters:
        blocks = rng.choice(blocks, _SAMPLES * clusters, replace=False)
    vectors = rng.choice(blocks, count, replace=False)
    for _ in range(steps):
        moved = mean_vectors(blocks, nearest_vectors(blocks, vectors), vectors)
        if np.array_equal(moved, vectors):
            break
        vectors = moved
    return vectors


def _few_rows(blocks, most):
    """The different rows; `None` if they are more than `most`."""
    found = blocks[:0]
    for begin in range(0, len(blocks), _DISTANCES):
        part = np.concatenate([found, blocks[begin : begin + _DISTANCES]])
        found = np.unique(part, axis=0)
        if len(found) > most:
            return None
    return found


def nearest_vectors(blocks, vectors):
    """Which vector is nearest to each block; 0 is the zero vector.

    Args:
        blocks: Float array `(blocks, block)`.
        vectors: Float array `(clusters - 1, block)`.

    Returns:
        Int32 array `(blocks,)`, 0 to `clusters - 1`. A block of zeros has 0. A million
        distances are held at a time, whatever the number of blocks.
    """
    book = np.concatenate([np.zeros_like(vectors[:1]), vectors]).astype("float64")
    sizes = (book**2).sum(axis=1)
    found = np.empty(len(blocks), "int32")
    rows = max(_DISTANCES // len(book), 1)
    for begin in range(0, len(blocks), rows):
        part = np.asarray(blocks[begin : begin + rows], "float64")
        found[begin : begin + rows] = (sizes - 2 * part @ book.T).argmin(axis=1)
    return found


def mean_vectors(blocks, index, vectors):
    """Moves each vector to the mean of its blocks; one without blocks stays.

    Args:
        blocks: Float array `(blocks, block)`.
        index: As `nearest_vectors` gives it.
        vectors: Float array `(clusters - 1, block)`.

    Returns:
        Float32 array like `vectors`.
    """
    count = len(vectors) + 1
    number = np.bincount(index, minlength=count)[1:, None]
    sums = np.stack(
        [np.bincount(index, column, minlength=count)[1:] for column in blocks.T], axis=1
    )
    return np.where(number > 0, sums / np.maximum(number, 1), vectors).astype("float32")


def share_vectors(weight, vectors, index, *, block, axis, gradient="mean"):
    """Replaces each block of a weight by the vector that it was given.

    Args:
        weight: Float tensor, any shape.
        vectors: Float tensor `((clusters - 1) * block,)`, those beside the zero vector.
        index: Integer tensor `(blocks,)` as `nearest_vectors` gives it.
        block: Weights of a block.
        axis: Axis of `weight` along which blocks lie.
        gradient: As of `codebooks.share_values`.

    Returns:
        Tensor of `weight`'s shape and dtype. Weights that are zero stay zero. The
        gradient reaches `weight` unchanged (straight-through).
    """
    weight = tf.convert_to_tensor(weight)
    shape = weight.shape
    index = tf.cast(index, tf.int32)
    vectors = tf.reshape(tf.cast(vectors, tf.float32), (-1, block))

    @tf.custom_gradient
    def shared(weight, vectors):
        found = tf.gather(tf.pad(vectors, [[1, 0], [0, 0]]), index)
        values = tf.cast(from_blocks(found, shape, axis=axis), weight.dtype)
        kept = weight != 0

        def backward(dy):
            if gradient is None:
                return dy, tf.zeros_like(vectors)
            felt = tf.where(kept, dy, tf.zeros_like(dy))
            rows = to_blocks(tf.cast(felt, tf.float32), block=block, axis=axis)
            return dy, _gradient_of_vectors(rows, index, vectors.shape[0], gradient)

        return tf.where(kept, values, tf.zeros_like(values)), backward

    return shared(weight, vectors)


def _gradient_of_vectors(rows, index, count, gradient):
    total = tf.math.unsorted_segment_sum(rows, index, count + 1)[1:]
    if gradient == "sum":
        return total
    ones = tf.ones(index.shape, tf.float32)
    number = tf.math.unsorted_segment_sum(ones, index, count + 1)[1:, None]
    return total / tf.maximum(number, 1.0)
