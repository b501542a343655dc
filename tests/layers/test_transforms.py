"""What transforms do beyond the laws that they all keep (`tests/contracts`)."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcompress.layers import (
    Binary,
    FakeQuantizeWeight,
    FoldedFakeQuantizeWeight,
    KeepZeros,
    LearnedStep,
    QuantizeWeight,
    Ternary,
    TransformWeights,
)
from tfcompress.numerics.learned_step import initial_step


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def _apply(transform, weight, **changes):
    state = {**transform.initial_state(weight), **changes}
    return transform(tf.constant(weight), {k: tf.constant(v) for k, v in state.items()})


@pytest.mark.parametrize(
    "transform",
    [
        FakeQuantizeWeight(5),
        FakeQuantizeWeight(5, symmetric=False),
        FakeQuantizeWeight(5, power_of_two=True),
        LearnedStep(5),
        Ternary(),
        Binary(),
    ],
    ids=lambda transform: type(transform).__name__,
)
def test_bits_and_axes_bound_the_values_of_a_channel(transform):
    assert isinstance(transform, QuantizeWeight)
    effective = _apply(transform, _normal(300, 4)).numpy()
    for channel in effective.T:
        assert 2 <= len(np.unique(channel)) <= 2**transform.bits


def test_the_width_in_force_is_that_of_the_state():
    weight = _normal(300, 1)
    for transform in (FakeQuantizeWeight(8), LearnedStep(8)):
        effective = _apply(transform, weight, bits=np.float32(3)).numpy()
        assert len(np.unique(effective)) == 7


def test_a_learned_step_of_8_bits_goes_on_as_one_of_4_would_start():
    weight = _normal(300, 2)
    found = _apply(LearnedStep(8), weight, bits=np.float32(4))
    np.testing.assert_allclose(found, _apply(LearnedStep(4), weight), atol=1e-6)
    np.testing.assert_array_equal(
        LearnedStep(8).initial_state(weight)["step"], initial_step(weight, bits=8)
    )


@pytest.mark.parametrize("bits", [0, 1, 17, 8.0, True, None])
@pytest.mark.parametrize(
    "kind", [FakeQuantizeWeight, FoldedFakeQuantizeWeight, LearnedStep]
)
def test_bits_that_are_no_width_are_refused(kind, bits):
    with pytest.raises(ValueError, match="from 2 to 16. Received: bits="):
        kind(bits)


def test_an_asymmetric_grid_has_8_bits_at_most():
    FakeQuantizeWeight(9)
    with pytest.raises(ValueError, match="from 2 to 8. Received: bits=9"):
        FakeQuantizeWeight(9, symmetric=False)


@keras.saving.register_keras_serializable(package="tests")
class Normalized(keras.layers.Layer):
    """A kernel and the batch normalization behind it, in one layer."""

    epsilon = 1e-3

    def __init__(self, units, scale=True, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.scale = scale

    def build(self, input_shape):
        self.kernel = self.add_weight(
            name="kernel", shape=(input_shape[-1], self.units)
        )
        shape = (self.units,)
        if self.scale:
            self.gamma = self.add_weight(name="gamma", shape=shape, initializer="ones")
        self.moving_variance = self.add_weight(
            name="moving_variance", shape=shape, initializer="ones", trainable=False
        )

    def call(self, x, training=False):
        y = keras.ops.matmul(x, self.kernel)
        variance = keras.ops.convert_to_tensor(self.moving_variance)
        if training:
            variance = keras.ops.var(y, axis=0)
            self.moving_variance.assign(0.5 * self.moving_variance + 0.5 * variance)
        factor = keras.ops.rsqrt(variance + self.epsilon)
        return y * factor * (self.gamma if self.scale else 1)

    def get_config(self):
        return {**super().get_config(), "units": self.units, "scale": self.scale}


def _normalized(scale=True):
    layer = Normalized(3, scale)
    layer.build((None, 4))
    layer.kernel.assign(_normal(4, 3))
    layer.moving_variance.assign([0.01, 1.0, 25.0])
    if scale:
        layer.gamma.assign([0.5, -1.0, 2.0])
    return layer


def _factor(layer):
    gamma = layer.gamma.numpy() if layer.scale else 1
    return gamma / np.sqrt(layer.moving_variance.numpy() + layer.epsilon)


@pytest.mark.parametrize("scale", [True, False])
def test_folded_the_weight_lies_on_one_grid_and_follows_the_statistics(scale):
    layer = _normalized(scale)
    transform = FoldedFakeQuantizeWeight(4, gamma="gamma" if scale else None)
    wrapper = TransformWeights(layer, {"kernel": [KeepZeros(), transform]})
    model = keras.Sequential([keras.Input((4,)), wrapper])
    model.compile("sgd", "mse")
    variance = layer.moving_variance.numpy()
    for _ in range(2):
        folded = wrapper.effective_weights()["kernel"] * _factor(layer)
        scale_of_all = np.abs(layer.kernel.numpy() * _factor(layer)).max() / 7
        integers = folded / scale_of_all
        # 1e-5: float32 of numbers up to 7.
        np.testing.assert_allclose(integers, np.round(integers), atol=1e-5)
        np.testing.assert_allclose(np.abs(integers).max(), 7, atol=1e-5)
        model.fit(_normal(32, 4), _normal(32, 3, seed=1), verbose=0)
        assert np.all(layer.moving_variance.numpy() != variance)


def test_the_normalization_gets_no_gradient_through_the_rounding():
    layer = _normalized()
    wrapper = TransformWeights(layer, {"kernel": [FoldedFakeQuantizeWeight(4)]})
    x = _normal(8, 4)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(wrapper(x) ** 2)
    found = tape.gradient(loss, [layer.kernel.value, layer.gamma.value])
    # As of a layer that has the effective weights.
    layer.kernel.assign(wrapper.effective_weights()["kernel"])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(x) ** 2)
    expected = tape.gradient(loss, [layer.kernel.value, layer.gamma.value])
    for a, b in zip(found, expected, strict=True):
        # 1e-5: the same float32 sums.
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_a_layer_without_gamma_is_refused_with_the_weights_it_has():
    with pytest.raises(ValueError, match="one weight named 'gamma'"):
        TransformWeights(_normalized(False), {"kernel": [FoldedFakeQuantizeWeight()]})
