"""A kernel and its batch normalization as one layer."""

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress.graph import built_copy
from tfcompress.layers import (
    FoldedFakeQuantizeWeight,
    FusedBatchNormalization,
    NormalizedKernel,
    TransformWeights,
)

KERNELS = {
    "Dense": (lambda: layers.Dense(4, name="k"), (3,)),
    "Conv1D": (lambda: layers.Conv1D(4, 2, name="k"), (5, 3)),
    "Conv2D": (lambda: layers.Conv2D(4, 2, use_bias=False, name="k"), (5, 5, 3)),
    "DepthwiseConv2D": (lambda: layers.DepthwiseConv2D(2, name="k"), (5, 5, 3)),
}


def _pair(kind, **settings):
    """The layers one after the other, and a layer of copies of both."""
    make, shape = KERNELS[kind]
    layer = make()
    inputs = keras.Input(shape)
    normalization = FusedBatchNormalization(name="norm", **settings)
    apart = keras.Model(inputs, normalization(layer(inputs)))
    rng = np.random.default_rng(0)
    apart.set_weights([rng.uniform(0.5, 1.5, v.shape) for v in apart.weights])
    normalization.frozen.assign(0)
    joined = NormalizedKernel(built_copy(layer), built_copy(normalization))
    return apart, joined, rng.normal(size=(8, *shape)).astype("float32")


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("training", [False, True])
def test_it_computes_as_both_layers_one_after_the_other(kind, training):
    apart, joined, x = _pair(kind)
    np.testing.assert_array_equal(
        joined(x, training=training), apart(x, training=training)
    )
    for one, other in zip(
        apart.layers[2].weights, joined.normalization.weights, strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert joined(keras.Input(x.shape[1:])).shape == apart.output.shape
    assert joined.compute_output_shape((None, *x.shape[1:])) == apart.output.shape


def test_it_has_the_name_and_the_weights_of_its_layers():
    _, joined, _ = _pair("Dense")
    assert joined.name == "k"
    names = [v.name for v in joined.trainable_variables]
    assert names == ["kernel", "bias", "gamma", "beta"]


@pytest.mark.parametrize("settings", [{}, {"scale": False, "center": False}])
@pytest.mark.parametrize("kind", KERNELS)
def test_it_is_saved_and_loaded(kind, settings, tmp_path):
    _, joined, x = _pair(kind, **settings)
    model = keras.Sequential([keras.Input(x.shape[1:]), joined])
    model.save(tmp_path / "m.keras")
    back = keras.models.load_model(tmp_path / "m.keras", safe_mode=True)
    np.testing.assert_array_equal(back(x), model(x))
    again = NormalizedKernel.from_config(joined.get_config())
    assert again.get_config() == joined.get_config()
    assert [v.shape for v in again.weights] == [v.shape for v in joined.weights]


def test_wrapped_its_statistics_learn_and_its_weight_is_rounded(tmp_path):
    _, joined, x = _pair("Conv2D")
    chain = [FoldedFakeQuantizeWeight(bits=4)]
    wrapper = TransformWeights(joined, {"kernel": chain})
    model = keras.Sequential([keras.Input(x.shape[1:]), wrapper])
    model.compile("sgd", "mse")
    before = joined.normalization.moving_mean.numpy()
    model.fit(x, np.zeros((8, 4, 4, 4)), verbose=0)
    assert np.all(joined.normalization.moving_mean.numpy() != before)
    norm = joined.normalization
    factor = norm.gamma.numpy() / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
    folded = wrapper.effective_weights()["kernel"] * factor
    scale = np.abs(joined.layer.kernel.numpy() * factor).max() / 7
    # 1e-4 of a step: float32.
    assert np.abs(folded / scale - np.round(folded / scale)).max() < 1e-4
    model.save(tmp_path / "m.keras")
    back = keras.models.load_model(tmp_path / "m.keras", safe_mode=True)
    np.testing.assert_array_equal(back(x), model(x))
