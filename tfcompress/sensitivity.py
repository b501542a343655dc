"""Which kernels can be pruned, and how far: accuracy against sparsity, one by one.

Example:
    ```python
    found = tfc.sensitivity(model, (x_val, y_val))
    print(found)
    pruning = tfc.Pruning(0.8, rules=found.rules(0.8))
    ```
"""

import concurrent.futures
import os
import re
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from tfcompress import plots
from tfcompress.checks import batches, check_model
from tfcompress.graph import flat_call, kernels
from tfcompress.measure import keras_runner, right_of
from tfcompress.numerics.masks import check_sparsity, magnitude_mask
from tfcompress.progress import bar
from tfcompress.selection import Rule, select

_METRICS = ("accuracy", "loss")
_BATCH = 128
_MOST_THREADS = 4


@dataclass(frozen=True)
class KernelSensitivity:
    """What pruning one kernel alone does.

    Attributes:
        path: The kernel's path.
        parameters: Its number of weights.
        values: The metric at each of `Sensitivity.sparsities`.
    """

    path: str
    parameters: int
    values: tuple


@dataclass(frozen=True)
class Sensitivity:
    """A metric against the sparsity of each kernel.

    Attributes:
        name: Name of the model.
        metric: `"accuracy"` or `"loss"`.
        baseline: The metric of the model as it is.
        sparsities: The sparsities tried, rising.
        kernels: Tuple of `KernelSensitivity`.
    """

    name: str
    metric: str
    baseline: float
    sparsities: tuple
    kernels: tuple

    def __str__(self):
        width = max(len("kernel"), *(len(k.path) for k in self.kernels))
        head = "".join(f"{s:>8.0%}" for s in self.sparsities)
        rows = [
            f"{k.path:<{width}}{k.parameters:>12,}"
            + "".join(f"{value:>8.4f}" for value in k.values)
            for k in self.kernels
        ]
        return "\n".join(
            [
                f"{self.name}: {self.metric} {self.baseline:.4f}; one kernel pruned:",
                f"{'kernel':<{width}}{'weights':>12}{head}",
                *rows,
            ]
        )

    def rules(self, sparsity):
        """Sparsities for a wanted total, such that each kernel alone does equal harm.

        Each kernel is taken to the sparsity at which pruning it alone costs as much of
        the metric as any other, as far as was tried; between what was tried costs are
        interpolated.

        Args:
            sparsity: Fraction of zeros in all these kernels together, in [0, 1); met to
                the weight.

        Returns:
            List of `tfc.Rule`, one for each kernel, for `tfc.Pruning(rules=...)`.

        Raises:
            ValueError: If it is more than was tried.

        Reference:
            One threshold on the sensitivity of each layer, as in Han et al., 2015,
            section 3.2. arXiv:1506.02626
        """
        sizes = np.array([k.parameters for k in self.kernels])
        zeros = _shared_out(
            self._costs(), self.sparsities, sizes, check_sparsity(sparsity)
        )
        return [
            Rule(f"^{re.escape(kernel.path)}$", sparsity=int(count) / kernel.parameters)
            for kernel, count in zip(self.kernels, zeros, strict=True)
        ]

    def plot(self):
        """Curves of the metric against sparsity, as PNG bytes."""
        return plots.sensitivity(self)

    def _costs(self):
        """How much worse the metric gets, an array (kernels, sparsities) that rises."""
        values = np.array([k.values for k in self.kernels], "float64")
        sign = -1 if self.metric == "accuracy" else 1
        costs = np.maximum(sign * (values - self.baseline), 0)
        return np.maximum.accumulate(costs, axis=1)


def sensitivity(
    model,
    data,
    *,
    sparsities=(0.5, 0.6, 0.7, 0.8, 0.9, 0.95),
    metric="accuracy",
    include=None,
    exclude=None,
):
    """Prunes one kernel at a time, by magnitude and without training, and measures.

    The model is as it was when this returns or raises.

    Args:
        model: Built `keras.Model`.
        data: `(inputs, labels)` arrays or a batched, finite data set of such pairs,
            which the model was not trained on. They are read once and held in memory,
            and the model runs on all of them for each kernel and sparsity, several
            batches at a time: some hundred to a thousand examples do.
        sparsities: Sparsities to try, in (0, 1).
        metric: `"accuracy"` (as `tfc.measure`), or `"loss"`: the mean of
            `model.compute_loss`, which needs a compiled model and tells kernels apart
            that do not change the accuracy of so few examples.
        include: Regular expression(s) on the kernel's path, or predicate(s): only these
            are tried.
        exclude: The same: these are not.

    Returns:
        A `Sensitivity`; `rules(total)` are ready for `tfc.Pruning`.

    Raises:
        TypeError: If `model` is no Keras 3 model.
        ValueError: If there is no kernel, a sparsity is out of range, or the data do
            not fit.

    Reference:
        Han et al., "Learning both Weights and Connections", 2015, figure 6.
        arXiv:1506.02626
    """
    check_model(model)
    if metric not in _METRICS:
        raise ValueError(f"`metric` must be one of {_METRICS}. Received: {metric!r}")
    if metric == "loss" and not getattr(model, "compiled", False):
        raise ValueError(
            f"metric='loss' needs the loss of model {model.name!r}: compile it first, "
            "or pass metric='accuracy'."
        )
    sparsities = tuple(sorted({check_sparsity(s) for s in sparsities} - {0.0}))
    if not sparsities:
        raise ValueError("`sparsities` must hold a number in (0, 1). Received: none")
    found = kernels(model)
    chosen = list(select(found, include=include, exclude=exclude))
    if not chosen:
        raise ValueError(
            f"Model {model.name!r} has no kernel to try. The paths there are: "
            f"{list(found)}"
        )
    held = list(batches(model, data, argument="data", batch_size=_BATCH))
    measure = _accuracy(model, held) if metric == "accuracy" else _loss(model, held)
    with bar("Measuring sensitivity", len(chosen) * len(sparsities) + 1) as advance:
        baseline = measure()
        advance()
        results = tuple(
            _try(found[path], path, sparsities, measure, advance) for path in chosen
        )
    return Sensitivity(model.name, metric, baseline, sparsities, results)


def _try(variable, path, sparsities, measure, advance):
    """Measures with one kernel at each sparsity, and puts it back."""
    weight, values = variable.numpy(), []
    try:
        for sparsity in sparsities:
            keep = magnitude_mask(np.asarray(weight, "float32"), sparsity)
            variable.assign(np.where(keep, weight, np.zeros_like(weight)))
            values.append(measure())
            advance()
    finally:
        variable.assign(weight)
    return KernelSensitivity(path, weight.size, tuple(values))


def _accuracy(model, held):
    run = keras_runner(model)
    return lambda: _mean(lambda inputs, labels: right_of(run(inputs), labels), held)


def _loss(model, held):
    """A function that computes the mean loss and leaves metrics as they were."""
    infer = flat_call(model)

    @tf.function(reduce_retracing=True, autograph=False)
    def step(inputs, labels):
        outputs = infer(*inputs)
        return model.compute_loss(x=inputs, y=labels, y_pred=outputs, training=False)

    def of_batch(inputs, labels):
        if labels is None:
            raise ValueError("`data` must hold labels: pass (inputs, labels).")
        labels = keras.tree.map_structure(tf.convert_to_tensor, labels)
        rows = inputs[0].shape[0]
        return rows * float(step(inputs, labels)), rows

    def measure():
        before = [v.numpy() for v in model.metrics_variables]
        try:
            return _mean(of_batch, held)
        finally:
            for variable, value in zip(model.metrics_variables, before, strict=False):
                variable.assign(value)

    return measure


def _mean(of_batch, held):
    """Mean over batches that run at once; `of_batch` gives a sum and a count."""
    # The first alone: what runs on it is traced, which threads would do once each.
    found = [of_batch(*held[0])]
    with concurrent.futures.ThreadPoolExecutor(_threads()) as pool:
        try:
            found += pool.map(lambda batch: of_batch(*batch), held[1:])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    totals, counts = zip(*found, strict=True)
    return sum(totals) / sum(counts)


def _threads():
    # Each holds the activations of a batch.
    if tf.config.list_physical_devices("GPU"):
        return 1
    return min(os.cpu_count() or 1, _MOST_THREADS)


def _shared_out(costs, sparsities, sizes, total):
    """Zeros of each kernel at the one cost at which they add up to the total."""
    highest = (sizes * sparsities[-1]).astype("int64")
    wanted = round(total * sizes.sum())
    if wanted > highest.sum():
        raise ValueError(
            f"At the sparsities that were tried, up to {sparsities[-1]:g}, all kernels "
            f"together have {highest.sum() / sizes.sum():.4f} zeros. Received: "
            f"sparsity={total}. Try more: tfc.sensitivity(..., sparsities=(..., "
            f"{(1 + sparsities[-1]) / 2:g}))."
        )
    # Where a curve is flat, sparsity jumps at a cost: between the two sides of it all
    # kernels go the same part of their way.
    low, high = -1.0, float(costs.max())
    for _ in range(100):
        middle = (low + high) / 2
        enough = _reached(costs, sparsities, middle) @ sizes >= wanted
        low, high = (low, middle) if enough else (middle, high)
    below, above = (_reached(costs, sparsities, cost) for cost in (low, high))
    gap = (above - below) @ sizes
    part = (wanted - below @ sizes) / gap if gap else 0.0
    exact = np.minimum((below + min(part, 1.0) * (above - below)) * sizes, highest)
    zeros = np.floor(exact).astype("int64")
    # Whole weights: those with the largest fractions are rounded up.
    order = np.argsort(zeros - exact, kind="stable")
    for index in [*order, *order]:
        if zeros.sum() < wanted and zeros[index] < highest[index]:
            zeros[index] += 1
    return zeros


def _reached(costs, sparsities, cost):
    """The highest sparsity of each kernel that costs no more than `cost`."""
    grid = np.array([0.0, *sparsities])
    found = []
    for own in np.concatenate([np.zeros((len(costs), 1)), costs], axis=1):
        last = np.searchsorted(own, cost, side="right") - 1
        if last < 0:
            found.append(0.0)
        elif last == len(grid) - 1:
            found.append(grid[-1])
        else:
            part = (cost - own[last]) / (own[last + 1] - own[last])
            found.append(grid[last] + part * (grid[last + 1] - grid[last]))
    return np.array(found)
