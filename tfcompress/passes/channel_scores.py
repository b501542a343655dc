"""How much each group of channels matters; the lowest are removed first.

Example:
    ```python
    scores = find_scores(channels, "l2", None, chosen=names, compiled=model)
    ```
"""

from typing import Any, NamedTuple

import keras
import numpy as np

from tfcompress.checks import batches
from tfcompress.graph.channels import KEPT
from tfcompress.loss_gradients import LossGradients

# Ranks settle after few images (the paper finds 500 to be plenty).
_RANK_EXAMPLES = 64


def find_scores(channels, score, data, *, chosen, compiled):
    """Scores the groups of channels.

    Args:
        channels: `Channels` of a model.
        score: A name of `SCORES`, or a function from a kernel, as a float32 matrix
            `(weights of a channel, channels)`, and its name to a score per channel.
        data: What `"taylor"` and `"rank"` read.
        chosen: Names of the producers that may lose channels.
        compiled: The model whose loss `"taylor"` reads.

    Returns:
        Float array with a score for each group, NaN for those that no weight makes.
        Scores of kernels are relative to the mean of their layer.

    Raises:
        ValueError: If the score needs data and there are none, if it does not apply to
            some layer, or is not a finite number for each channel.
    """
    if callable(score):
        return _of_kernels(channels, score)
    if score not in SCORES:
        raise ValueError(
            f"`score` must be one of {list(SCORES)} or a function of a kernel and its "
            f"name. Received: score={score!r}"
        )
    return SCORES[score](_Scored(channels, data, set(chosen), compiled))


class _Scored(NamedTuple):
    """What a score may look at."""

    channels: Any
    data: Any
    chosen: set
    compiled: Any


# From kernels: a matrix with a column for each channel, to one number a column.


def _l1(matrix, name):
    return np.abs(matrix).sum(axis=0)


def _l2(matrix, name):
    return np.sqrt(np.square(matrix).sum(axis=0))


def _distance(matrix, name):
    """Sum of the distances to the other filters; least near the geometric median."""
    squares = np.square(matrix, dtype="float64").sum(axis=0)
    products = matrix.T.astype("float64") @ matrix
    distances = squares[:, None] + squares[None, :] - 2 * products
    return np.sqrt(np.maximum(distances, 0)).sum(axis=1)


def _random(matrix, name):
    # Of the name's letters, so that runs repeat.
    seed = np.frombuffer(name.encode(), np.uint8)
    return np.random.default_rng(seed).random(matrix.shape[1])


def _of_kernels(channels, function):
    """Scores of kernels, each relative to the mean of its layer, averaged."""
    total = np.zeros(channels.group_count)
    count = np.zeros(channels.group_count)
    for producer in channels.producers:
        groups = channels.groups(producer.ids)
        if not groups.any():
            continue
        kernel = np.moveaxis(_value(producer.variable), producer.axis, -1)
        matrix = kernel.reshape(-1, kernel.shape[-1])
        found = np.asarray(function(matrix, producer.name), "float64")
        _check(found, producer, matrix)
        mean = np.abs(found).mean()
        found = found / mean if mean > 0 else np.ones_like(found)
        np.add.at(total, groups, found)
        np.add.at(count, groups, 1)
    return _mean(total, count)


def _check(found, producer, matrix):
    if found.shape != (matrix.shape[1],) or not np.isfinite(found).all():
        raise ValueError(
            f"The scores of {producer.name!r} must be finite numbers, one for each of "
            f"its {matrix.shape[1]} channels. Received: shape {found.shape}, "
            f"{np.count_nonzero(~np.isfinite(found))} not finite."
        )


def _mean(total, count):
    found = np.full(total.shape, np.nan)
    np.divide(total, count, out=found, where=count > 0)
    found[KEPT] = np.nan
    return found


def _value(variable):
    return np.asarray(variable.numpy(), "float32")


# From the rest of the model, or from data.


def _batch_norm_scale(scored):
    """`|gamma|` of batch normalization (Network Slimming)."""
    channels = scored.channels
    total = np.zeros(channels.group_count)
    count = np.zeros(channels.group_count)
    for weight in channels.weights.values():
        if weight.kind == "scale" and weight.axes[0] is not None:
            groups = channels.groups(weight.axes[0])
            np.add.at(total, groups, np.abs(_value(weight.variable)))
            np.add.at(count, groups, 1)
    found = _mean(total, count)
    _check_all(scored, found, "batch_norm", "no batch normalization with a scale")
    return found


def _check_all(scored, found, score, lack):
    """Raises if layers that are to be pruned have no score."""
    channels = scored.channels
    without = [
        p.name
        for p in channels.producers
        if p.name in scored.chosen
        and np.isnan(found[(g := channels.groups(p.ids))[g != KEPT]]).any()
    ]
    if without:
        raise ValueError(
            f"score={score!r}: {lack} behind {without}. Leave them as they are with "
            "`exclude`, or take another score."
        )


def _taylor(scored):
    """`|sum of w * g|` over all weights of a group."""
    channels, data, _, compiled = scored
    if data is None:
        raise ValueError(
            "score='taylor' reads gradients of the loss. Pass `data`, some hundred "
            "examples with labels: tfc.prune_channels(..., data=(x, y))."
        )
    if getattr(compiled, "optimizer", None) is None:
        raise ValueError(
            f"score='taylor' reads gradients of the loss, and model {compiled.name!r} "
            "is not compiled. Compile it first."
        )
    weights = [
        weight
        for weight in channels.weights.values()
        if weight.kind != "statistic" and any(ids is not None for ids in weight.axes)
    ]
    gradients = LossGradients(channels.graph.model, data, loss_of=compiled).of(
        [weight.variable for weight in weights]
    )
    total = np.zeros(channels.group_count)
    made = np.zeros(channels.group_count)
    for weight, gradient in zip(weights, gradients, strict=True):
        change = _value(weight.variable) * gradient
        for axis, ids in enumerate(weight.axes):
            if ids is None or not _makes(channels, weight, axis):
                continue
            others = tuple(i for i in range(change.ndim) if i != axis)
            np.add.at(total, channels.groups(ids), change.sum(axis=others))
            np.add.at(made, channels.groups(ids), 1)
    found = np.where(made > 0, np.abs(total), np.nan)
    found[KEPT] = np.nan
    return found


def _makes(channels, weight, axis):
    """Whether an axis is where a weight makes channels, not where it reads them."""
    if len(weight.axes) == 1:
        return True
    return any(
        p.variable is weight.variable and p.axis == axis for p in channels.producers
    )


def _rank(scored):
    """Mean rank of the feature maps on data (HRank)."""
    channels, data = scored.channels, scored.data
    if data is None:
        raise ValueError(
            "score='rank' reads feature maps. Pass `data`, some dozen examples."
        )
    images = [
        p
        for p in channels.producers
        if p.output is not None and len(p.output.shape) == 4
    ]
    total = np.zeros(channels.group_count)
    count = np.zeros(channels.group_count)
    graph = channels.graph
    maps = [_after(graph, p.output) for p in images]
    model = keras.Model(graph.inputs, maps) if maps else None
    seen = 0
    for inputs, _ in batches(graph.model, data, argument="data") if maps else ():
        outputs = model(list(inputs), training=False)
        for producer, values in zip(images, keras.tree.flatten(outputs), strict=True):
            groups = channels.groups(producer.ids)
            values = np.asarray(values, "float32")
            matrices = np.moveaxis(values, producer.output_axis, 1)
            ranks = np.linalg.matrix_rank(matrices)
            np.add.at(total, groups, ranks.sum(axis=0))
            np.add.at(count, groups, len(ranks))
        seen += len(inputs[0])
        if seen >= _RANK_EXAMPLES:
            break
    found = _mean(total, count)
    _check_all(scored, found, "rank", "no feature maps (height, width, channels)")
    return found


def _after(graph, tensor):
    """The tensor behind the batch normalization and activation that follow."""
    follow = (
        keras.layers.BatchNormalization,
        keras.layers.ReLU,
        keras.layers.Activation,
    )
    while True:
        call = graph.only_consumer(tensor)
        if call is None or not isinstance(call.operation, follow):
            return tensor
        tensor = call.outputs[0]


SCORES = {
    "l1": lambda scored: _of_kernels(scored.channels, _l1),
    "l2": lambda scored: _of_kernels(scored.channels, _l2),
    "batch_norm": _batch_norm_scale,
    "taylor": _taylor,
    "geometric_median": lambda scored: _of_kernels(scored.channels, _distance),
    "rank": _rank,
    "random": lambda scored: _of_kernels(scored.channels, _random),
}
