"""Weight transforms: pure functions of a weight and a little state.

A transform keeps shape and dtype, keeps zeros at zero, is idempotent while its state
does not change, and lets the gradient reach the latent weight. `TransformWeights`
applies lists of them.

Example:
    ```python
    transforms = {"kernel": [KeepZeros(), FakeQuantizeWeight(bits=8)]}
    ```
"""

import keras
import numpy as np
import tensorflow as tf

from tfcompress.numerics import affine, few_levels, learned_step, masks


class Transform:
    """Base of all transforms.

    A subclass defines `__call__(weight, state)` and, if it has state, `initial_state`.

    Attributes:
        trainable_state: Names of the state that the optimizer trains. Such state has
            rank 1 at most, so that nobody takes it for a kernel.
        reads: Names of other weights of the wrapped layer; `__call__` finds their
            current values in `state` under these names.
    """

    trainable_state = ()
    reads = ()

    def initial_state(self, weight):
        """State that is stored with the model.

        Args:
            weight: Latent weight, numpy array.

        Returns:
            Dict from name to numpy array.
        """
        return {}

    def __call__(self, weight, state):
        """Returns the effective weight.

        Args:
            weight: Latent weight, float tensor.
            state: Dict from name to tensor: the state, and the weights of `reads`.
        """
        raise NotImplementedError

    def get_config(self):
        """Returns the constructor's arguments."""
        return dict(vars(self))

    @classmethod
    def from_config(cls, config):
        """Rebuilds the transform from `get_config()`."""
        return cls(**config)


@keras.saving.register_keras_serializable(package="tfcompress")
class KeepZeros(Transform):
    """Holds the weights at zero that were zero when the transform was attached."""

    def initial_state(self, weight):
        mask = masks.kept_zeros(weight)
        return {"mask": np.ones(weight.shape, bool) if mask is None else mask}

    def __call__(self, weight, state):
        return tf.where(state["mask"], weight, tf.zeros_like(weight))


class QuantizeWeight(Transform):
    """Base of transforms that round to an integer grid.

    The state `bits`, a float32 scalar, is the width in force and starts as the
    attribute. A schedule may change it, say from 8 to 4; at 0 the transform is the
    identity.

    Attributes:
        bits: Width of the integers that hold the grid.
        axes: Axes of the weight that have scales of their own; `()` for one scale.
    """

    def initial_state(self, weight):
        return {"bits": np.array(self.bits, "float32")}


@keras.saving.register_keras_serializable(package="tfcompress")
class FakeQuantizeWeight(QuantizeWeight):
    """Rounds to an integer grid (`numerics.affine.fake_quantize_weight`).

    Args:
        bits: Width of the integers, 2 to 16; 2 to 8 for an asymmetric grid.
        axes: Axes with scales of their own; `()` for one scale.
        symmetric: Whether the grid is symmetric. If not it spans the weights and 0.
        power_of_two: Whether scales are rounded up to powers of two.

    Raises:
        ValueError: If `bits` is out of range.
    """

    def __init__(self, bits=8, axes=(-1,), symmetric=True, power_of_two=False):
        self.bits = _checked_bits(bits, 16 if symmetric else 8)
        self.axes = tuple(axes)
        self.symmetric = symmetric
        self.power_of_two = power_of_two

    def __call__(self, weight, state):
        return affine.fake_quantize_weight(
            weight,
            bits=state["bits"],
            axes=self.axes,
            symmetric=self.symmetric,
            power_of_two=self.power_of_two,
        )


@keras.saving.register_keras_serializable(package="tfcompress")
class FoldedFakeQuantizeWeight(QuantizeWeight):
    """Rounds so that the weight lies on the grid once normalization is folded into it.

    For a layer that holds a kernel and the batch normalization behind it, and a target
    with one scale for the whole kernel, or with scales that are powers of two
    (`numerics.affine.fake_quantize_folded_weight`).
    The factor of a channel is `gamma / sqrt(variance + epsilon)`, of the moving
    variance, which the file is folded with; no gradient passes through it.

    Args:
        bits: Width of the integers, 2 to 16.
        axes: Axes with scales of their own; `()` for one scale.
        channel_axes: Axes of the weight that are the output channels: `(-1,)` for
            Conv2D and Dense, `(-2, -1)` for DepthwiseConv2D.
        epsilon: That of the normalization.
        gamma: Name of the layer's weight that scales channels; `None` without one.
        variance: Name of the layer's weight that is the moving variance.
        power_of_two: Whether scales are rounded up to powers of two.

    Raises:
        ValueError: If `bits` is out of range.

    Reference:
        Jacob et al., 2017, section 3.2. arXiv:1712.05877
    """

    def __init__(
        self,
        bits=8,
        axes=(),
        channel_axes=(-1,),
        epsilon=1e-3,
        gamma="gamma",
        variance="moving_variance",
        power_of_two=False,
    ):
        self.bits = _checked_bits(bits)
        self.axes = tuple(axes)
        self.channel_axes = tuple(channel_axes)
        self.epsilon = epsilon
        self.gamma = gamma
        self.variance = variance
        self.power_of_two = power_of_two

    @property
    def reads(self):
        """The normalization's weights."""
        return (self.variance,) if self.gamma is None else (self.gamma, self.variance)

    def __call__(self, weight, state):
        variance = tf.cast(state[self.variance], tf.float32)
        factor = tf.math.rsqrt(variance + self.epsilon)
        if self.gamma is not None:
            factor *= tf.cast(state[self.gamma], tf.float32)
        return affine.fake_quantize_folded_weight(
            weight,
            factor,
            bits=state["bits"],
            axes=self.axes,
            channel_axes=self.channel_axes,
            power_of_two=self.power_of_two,
        )


@keras.saving.register_keras_serializable(package="tfcompress")
class LearnedStep(QuantizeWeight):
    """Rounds to a symmetric grid whose step is trained with the weights (LSQ).

    See `numerics.learned_step`. The trained state `step` belongs to the constructor's
    `bits`. While other bits are in force the step is that times the root of the ratio
    of the highest integers, as the paper's start values are, so that a schedule that
    goes from 8 to 4 bits does not cut most weights.

    Args:
        bits: Width of the integers, 2 to 16.
        axes: Axes with steps of their own; `()` for one step, as in the paper.

    Raises:
        ValueError: If `bits` is out of range.

    Reference:
        Esser et al., "Learned Step Size Quantization", 2019. arXiv:1902.08153
    """

    trainable_state = ("step",)

    def __init__(self, bits=8, axes=(-1,)):
        self.bits = _checked_bits(bits)
        self.axes = tuple(axes)

    def initial_state(self, weight):
        step = learned_step.initial_step(weight, bits=self.bits, axes=self.axes)
        return {**super().initial_state(weight), "step": step}

    def __call__(self, weight, state):
        return learned_step.fake_quantize_learned_step(
            weight, self.step_in_force(state), bits=state["bits"], axes=self.axes
        )

    def step_in_force(self, state):
        """The step that belongs to the bits of `state`, positive float32 tensor."""
        now = affine.highest_integer(state["bits"])
        wider = tf.sqrt(affine.highest_integer(self.bits) / now)
        step = tf.cast(state["step"], tf.float32) * wider
        return tf.maximum(tf.abs(step), learned_step.SMALLEST_STEP)


@keras.saving.register_keras_serializable(package="tfcompress")
class Ternary(QuantizeWeight):
    """Rounds to -scale, 0 and scale (`numerics.few_levels.ternarize`).

    Of the state `bits` only the sign counts.

    Args:
        axes: Axes with scales of their own; `()` for one scale, as in the paper.

    Reference:
        Li & Liu, "Ternary Weight Networks", 2016. arXiv:1605.04711
    """

    bits = 2

    def __init__(self, axes=(-1,)):
        self.axes = tuple(axes)

    def __call__(self, weight, state):
        return few_levels.ternarize(weight, bits=state["bits"], axes=self.axes)


@keras.saving.register_keras_serializable(package="tfcompress")
class Binary(QuantizeWeight):
    """Rounds to -scale and scale, zeros apart (`numerics.few_levels.binarize`).

    Zeros stay zeros, so the grid is the ternary one, of 2 bits. Of the state `bits`
    only the sign counts.

    Args:
        axes: Axes with scales of their own; `()` for one scale.

    Reference:
        Courbariaux et al., "BinaryConnect", 2015. arXiv:1511.00363
    """

    bits = 2

    def __init__(self, axes=(-1,)):
        self.axes = tuple(axes)

    def __call__(self, weight, state):
        return few_levels.binarize(weight, bits=state["bits"], axes=self.axes)


def _checked_bits(bits, most=16):
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= most:
        raise ValueError(
            f"`bits` must be a whole number from 2 to {most}. Received: bits={bits!r}. "
            "To start without rounding, set the state `bits` of the wrapper to 0."
        )
    return bits
