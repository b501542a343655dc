"""One row for each weight transform. A new transform adds a row here."""

from dataclasses import dataclass, field

import keras
import numpy as np

from tfcompress.layers import (
    Binary,
    Codebook,
    FakeQuantizeWeight,
    FoldedFakeQuantizeWeight,
    KeepZeros,
    LearnedStep,
    Ternary,
    Transform,
    VectorCodebook,
)


@dataclass(frozen=True)
class Case:
    """A transform, and a weight that it has nothing to do with.

    Attributes:
        transform: The transform.
        untouched: Weight that comes out as it went in.
        state: What the state is filled with in place of its initial values, for the
            laws of the transform alone: dict from name to number.
        clips_beyond: Magnitude at that state from which on the transform cuts weights
            and, by definition, their gradient.
    """

    transform: Transform
    untouched: np.ndarray
    state: dict = field(default_factory=dict)
    clips_beyond: float = np.inf

    def state_of(self, weight):
        """State for a weight, with values for other weights that it reads."""
        channels = np.linspace(0.25, 4, np.shape(weight)[-1], dtype="float32")
        initial = self.transform.initial_state(np.asarray(weight))
        for name, value in self.state.items():
            initial[name] = np.full_like(initial[name], value)
        return {**initial, **dict.fromkeys(self.transform.reads, channels)}

    @property
    def layers(self):
        """Classes of a convolution and a Dense to transform."""
        if self.transform.reads:
            return NormalizedConv2D, NormalizedDense
        return keras.layers.Conv2D, keras.layers.Dense


class _Normalized:
    """What a layer with batch normalization inside it has and does at inference."""

    # Those of Keras' own kernels save the kernel and the bias alone.
    save_own_variables = keras.layers.Layer.save_own_variables
    load_own_variables = keras.layers.Layer.load_own_variables

    def build(self, input_shape):
        super().build(input_shape)
        shape = self.kernel.shape[-1:]
        self.gamma = self.add_weight(name="gamma", shape=shape, initializer="ones")
        self.moving_variance = self.add_weight(
            name="moving_variance", shape=shape, initializer="ones", trainable=False
        )

    def call(self, x):
        y = super().call(x)
        return y * self.gamma * keras.ops.rsqrt(self.moving_variance + 1e-3)


@keras.saving.register_keras_serializable(package="tests.cases")
class NormalizedConv2D(_Normalized, keras.layers.Conv2D):
    pass


@keras.saving.register_keras_serializable(package="tests.cases")
class NormalizedDense(_Normalized, keras.layers.Dense):
    pass


def dense(*shape):
    """A weight without zeros, of both signs."""
    weight = np.random.default_rng(0).uniform(0.1, 1, shape).astype("float32")
    weight *= np.where(np.arange(weight.size).reshape(shape) % 2, 1, -1)
    return weight


def sparse(*shape):
    """A weight half of which is zero, with one channel of nothing but zeros."""
    weight = dense(*shape)
    weight.flat[::2] = 0
    weight[..., -1] = 0
    return weight


_ON_GRID = np.array([[-1.27, 1.0], [0.64, -7.0], [0.01, 3.0]], "float32")
_STEPS = np.array([[-128.0], [127], [1], [-3]], "float32") / 64
_TERNARY = np.array([[0.5, 3.0], [-0.5, 0.0], [0.0, -3.0]], "float32")

CASES = {
    "keep zeros": Case(KeepZeros(), dense(6, 4)),
    "int8 per channel": Case(FakeQuantizeWeight(bits=8), _ON_GRID[:, :1]),
    "int4 per channel": Case(FakeQuantizeWeight(bits=4), _ON_GRID[:, 1:]),
    "int8 per tensor": Case(FakeQuantizeWeight(bits=8, axes=()), _ON_GRID[:, :1]),
    "int8 per row": Case(FakeQuantizeWeight(bits=8, axes=(0,)), np.ones((3, 1))),
    "asymmetric int8": Case(FakeQuantizeWeight(symmetric=False), _STEPS),
    "asymmetric int4 per tensor": Case(
        FakeQuantizeWeight(4, (), symmetric=False), np.arange(-5.0, 11)[:, None]
    ),
    "power of two": Case(FakeQuantizeWeight(power_of_two=True), _STEPS[1:]),
    "asymmetric power of two": Case(
        FakeQuantizeWeight(symmetric=False, power_of_two=True), _STEPS
    ),
    # Its two channels have the factors 1/2 and 2: gamma and variance are 1/4 and 4.
    "folded": Case(
        FoldedFakeQuantizeWeight(epsilon=0.0),
        np.array([[254.0, 1.5], [-6.0, -2.0]], "float32"),
    ),
    # 254 of the first channel is 127 in the product, of which the scale is 1.
    "folded, power of two per channel": Case(
        FoldedFakeQuantizeWeight(epsilon=0.0, axes=(-1,), power_of_two=True),
        np.array([[254.0, 1.5], [-6.0, -2.0]], "float32"),
    ),
    "learned step": Case(
        LearnedStep(), _STEPS[1:], {"step": 1 / 64}, clips_beyond=127 / 64
    ),
    "learned step, 4 bits per tensor": Case(
        LearnedStep(bits=4, axes=()),
        np.array([[0.875], [-0.25], [0.0]], "float32"),
        {"step": 0.125},
        clips_beyond=0.875,
    ),
    "ternary": Case(Ternary(), _TERNARY),
    "ternary per tensor": Case(Ternary(axes=()), _TERNARY[:, :1]),
    "binary": Case(Binary(), _TERNARY),
    "binary per tensor": Case(Binary(axes=()), _TERNARY[:, :1]),
    "codebook": Case(Codebook(4), _TERNARY[:, :1]),
    "codebook per channel, summed": Case(
        Codebook(3, axes=(-1,), start="linear", gradient="sum"), _TERNARY
    ),
    "codebook, fixed": Case(Codebook(8, gradient=None), _STEPS),
    "vectors": Case(VectorCodebook(4, block=2, axis=0, steps=2), _TERNARY),
}
