"""AdaRound: learns for each weight whether to round it up or down.

The choice lies in the latent weights, which are moved onto the grid: rounded again they
are what they are, so the model saves, trains on, strips and exports as ever.

Example:
    ```python
    rounding = AdaRound(quantized, exact, batches, steps=1000)
    for site, twin in zip(kernel_sites(quantized), kernel_sites(exact), strict=True):
        rounding.choose(site, twin)
    ```

Reference:
    Nagel et al., 2020. arXiv:2004.10568
"""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from tfcompress.layers import FakeQuantizeWeight, FoldedFakeQuantizeWeight, LearnedStep
from tfcompress.numerics import adaptive_rounding as adaptive
from tfcompress.numerics import affine
from tfcompress.passes.export_graph import channel_shape, scale_and_shift
from tfcompress.passes.exported_weights import grid_step
from tfcompress.passes.kernel_sites import Probe

# Bytes of the inputs and targets of one layer that are kept at a time.
_MOST_BYTES = 256 * 2**20
_BATCH = 32
# Of Adam; and how far a logit can go in all, for fewer steps need longer ones.
_LEARNING_RATE = 0.01
_REACH = 5.0
_WARM_UP = 0.2

# What is so near to a whole number of steps stays there: above all the largest weight,
# which sets the step, and the zeros of a pruned kernel.
_ON_GRID = 1e-3


@dataclass(frozen=True)
class Rounding:
    """What adaptive rounding did to one layer.

    Attributes:
        layer: Its name.
        changed: Number of weights that went the other way than to the nearest.
        weights: Number of weights.
        nearest: Squared error of its output, relative to the output's square, of
            rounding to the nearest.
        adapted: The same of the rounding chosen; not above `nearest`.
    """

    layer: str
    changed: int
    weights: int
    nearest: float
    adapted: float


class AdaRound:
    """Chooses the rounding of kernels, one after another.

    A layer's output is compared with that of the float model, while its inputs are
    those of the model with all earlier layers rounded as chosen (eq. 25). The error is
    taken relative to that of rounding to the nearest, and the regularizer as a mean
    over the weights: other than in the paper, the balance of the two then depends
    neither on the scale of activations nor on the size of a layer.

    Args:
        model: What `quantize_aware` returned, calibrated.
        exact: Its `float_copy`.
        batches: List of batches, each a list of arrays.
        steps: Optimizer steps a layer.
        seed: Seed of the order of examples.
        strength: Factor of the regularizer.
    """

    def __init__(self, model, exact, batches, *, steps, seed=0, strength=1.0):
        self.model = model
        self.exact = exact
        self.batches = batches
        self.steps = steps
        self.seed = seed
        self.strength = strength

    def choose(self, site, twin, advance=lambda: None):
        """Rounds the kernel of a `KernelSite`.

        Args:
            site: The site; its latent weights are moved onto the grid.
            twin: The same site of `exact`.
            advance: Called ten times in the course of it.

        Returns:
            A `Rounding`, or `None` if the layer has no symmetric grid (ternary, binary,
            asymmetric or not rounded now) and stays as it was.
        """
        grid = _Grid.of(site)
        if grid is None or not grid.free.any():
            for _ in range(10):
                advance()
            return None
        inputs, targets = self._examples(site, twin)
        trial = _Trial(site, grid, inputs, targets)
        nearest = trial.error(grid.nearest)
        adapted = nearest
        if nearest > 0:
            up = trial.optimize(self.steps, self.seed, self.strength * nearest, advance)
            chosen = grid.rounded(up)
            adapted = trial.error(chosen)
        if not adapted < nearest:
            chosen, adapted = grid.nearest, nearest
        site.kernel.assign(chosen * grid.step)
        power = max(float(np.mean(np.square(targets, dtype="float64"))), 1e-30)
        return Rounding(
            site.name,
            int(np.sum(chosen != grid.nearest)),
            chosen.size,
            nearest / power,
            adapted / power,
        )

    def _examples(self, site, twin):
        """Inputs of the rounded model and outputs of the float one, as many as fit."""
        reads = Probe(self.model, site.inputs)
        ends = Probe(self.exact, twin.ends)
        first = self.batches[0]
        size = sum(a.nbytes for probe in (reads, ends) for a in probe(first))
        size /= len(first[0])
        count = sum(len(batch[0]) for batch in self.batches)
        share = min(1.0, _MOST_BYTES / size / count)
        parts = [
            [array[: max(1, round(share * len(array)))] for array in batch]
            for batch in self.batches
        ]
        # As many batches as fit, if even one example of each is too much.
        parts = parts[: max(1, int(_MOST_BYTES / size))] if share < 1 else parts
        inputs = [array for part in parts for array in reads(part)]
        targets = [array for part in parts for array in ends(part)]
        return np.concatenate(inputs), np.concatenate(targets)


@dataclass(frozen=True, eq=False)
class _Grid:
    """The integers a kernel can become.

    Attributes:
        step: Float32 array that broadcasts to the kernel.
        floor: The integers below the weights.
        fraction: How far the weights lie above those, in [0, 1).
        free: Which of them have a choice.
        nearest: The integers nearest to the weights.
    """

    step: np.ndarray
    floor: np.ndarray
    fraction: np.ndarray
    free: np.ndarray
    nearest: np.ndarray

    @classmethod
    def of(cls, site):
        """The grid in force; `None` if it is not symmetric."""
        transform = site.wrapper.transforms["kernel"][-1]
        kinds = (FakeQuantizeWeight, FoldedFakeQuantizeWeight, LearnedStep)
        state = {k: v.numpy() for k, v in site.wrapper.states["kernel"][-1].items()}
        bits = int(state["bits"])
        symmetric = getattr(transform, "symmetric", True)
        if not isinstance(transform, kinds) or not symmetric or bits <= 0:
            return None
        step = _step(site, bits, transform, state)
        latent = site.kernel.numpy().astype("float64")
        for held in site.wrapper.states["kernel"][:-1]:
            latent = np.where(held["mask"].numpy(), latent, 0)
        divisor = np.where(step > 0, step, 1)
        effective = site.wrapper.effective_weights()["kernel"].astype("float64")
        exact = latent / divisor
        highest = affine.highest_integer(bits)
        free = np.abs(exact - np.round(exact)) > _ON_GRID
        free &= (np.abs(exact) < highest) & (step > 0)
        return cls(
            np.asarray(step, "float32"),
            np.floor(exact),
            (exact - np.floor(exact)).astype("float32"),
            free,
            np.round(effective / divisor),
        )

    def rounded(self, up):
        """The integers, float64, where `up` says which of the free ones go up."""
        return np.where(self.free, self.floor + up, self.nearest)


def _step(site, bits, transform, state):
    effective = site.wrapper.effective_weights()["kernel"]
    if not isinstance(transform, FoldedFakeQuantizeWeight):
        return grid_step(effective, bits, transform, state)
    factor = scale_and_shift(site.normalization)[0].reshape(channel_shape(site.layer))
    factor = np.where(factor == 0, 1.0, np.abs(factor))
    return grid_step(effective * factor, bits, transform, state) / factor


class _Trial:
    """The error of one layer's output, and the search for the rounding of least."""

    def __init__(self, site, grid, inputs, targets):
        self.compute = site.function()
        self.dtype = site.kernel.dtype
        self.grid = grid
        self.inputs = inputs
        self.targets = targets
        self._error = tf.function(
            self._batch_error, autograph=False, reduce_retracing=True
        )

    def _batch_error(self, inputs, targets, kernel):
        found = self.compute(inputs, tf.cast(kernel, self.dtype))
        return tf.reduce_mean(tf.square(found - tf.cast(targets, tf.float32)))

    def error(self, integers):
        """Mean squared error of the output over all examples."""
        kernel = tf.constant(integers * self.grid.step, tf.float32)
        total = 0.0
        for start in range(0, len(self.inputs), _BATCH):
            part = slice(start, start + _BATCH)
            inputs, targets = self.inputs[part], self.targets[part]
            total += len(inputs) * float(self._error(inputs, targets, kernel))
        return total / len(self.inputs)

    def optimize(self, steps, seed, strength, advance):
        """Which weights go up, bool array."""
        grid = self.grid
        logits = tf.constant(adaptive.initial_logits(grid.fraction), tf.float32)
        # Adam's state is tensors: variables within a strategy's scope are its own.
        state = logits, tf.zeros_like(logits), tf.zeros_like(logits)
        rate = max(_LEARNING_RATE, _REACH / steps)
        floor = tf.constant(grid.floor, tf.float32)
        nearest = tf.constant(grid.nearest, tf.float32)
        free = tf.constant(grid.free)
        count = max(int(grid.free.sum()), 1)

        @tf.function(autograph=False)
        def step(state, number, inputs, targets, exponent):
            logits = state[0]
            with tf.GradientTape() as tape:
                tape.watch(logits)
                up = adaptive.rectified_sigmoid(logits)
                integers = tf.where(free, floor + up, nearest)
                error = self._batch_error(inputs, targets, integers * grid.step)
                open_ = tf.where(free, adaptive.regularizer(up, exponent), 0.0)
                open_ = tf.reduce_sum(open_) / count
                # In units of the regularizer, so that all gradients are of one size.
                loss = error / strength + tf.where(exponent > 0, open_, 0.0)
            return adaptive.adam(state, tape.gradient(loss, logits), number, rate)

        rng = np.random.default_rng(seed)
        every = max(steps // 10, 1)
        for number, exponent in enumerate(
            adaptive.exponents(steps, int(_WARM_UP * steps))
        ):
            rows = rng.choice(
                len(self.inputs), min(_BATCH, len(self.inputs)), replace=False
            )
            batch = self.inputs[rows], self.targets[rows]
            counted = tf.constant(number + 1, tf.float32)
            state = step(state, counted, *batch, tf.constant(exponent))
            if (number + 1) % every == 0 and (number + 1) // every <= 10:
                advance()
        return adaptive.rectified_sigmoid(state[0]).numpy() >= 0.5
