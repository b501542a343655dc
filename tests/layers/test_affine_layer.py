"""A scale and a shift for each channel, as arithmetic and as a convolution."""

import keras
import numpy as np
import pytest

from tfcompress.layers import Affine

SHAPES = {2: (4,), 3: (5, 4), 4: (3, 5, 4), 5: (2, 3, 5, 4)}


def _layer(shape, **settings):
    layer = Affine(**settings)
    layer.build((None, *shape))
    rng = np.random.default_rng(1)
    layer.set_weights([rng.normal(size=v.shape) for v in layer.weights])
    return layer


def _data(shape):
    return np.random.default_rng(0).normal(size=(6, *shape)).astype("float32")


@pytest.mark.parametrize("as_convolution", [False, True])
@pytest.mark.parametrize("use_shift", [False, True])
@pytest.mark.parametrize("use_scale", [False, True])
@pytest.mark.parametrize("rank", SHAPES)
def test_it_scales_and_shifts_each_channel(rank, use_scale, use_shift, as_convolution):
    layer = _layer(
        SHAPES[rank],
        use_scale=use_scale,
        use_shift=use_shift,
        as_convolution=as_convolution,
    )
    x = _data(SHAPES[rank])
    expected = x
    if use_scale:
        expected = expected * layer.scale.numpy()
    if use_shift:
        expected = expected + layer.shift.numpy()
    # 1e-6: a product and a sum of float32.
    np.testing.assert_allclose(layer(x), expected, atol=1e-6)
    symbolic = layer(keras.Input(SHAPES[rank]))
    assert symbolic.shape == (None, *SHAPES[rank])


@pytest.mark.parametrize("rank", SHAPES)
def test_the_convolution_runs_in_a_compiled_model(rank):
    shape = SHAPES[rank]
    layer = _layer(shape, as_convolution=True)
    model = keras.Sequential([keras.Input(shape), layer])
    x = _data(shape)
    expected = x * layer.scale.numpy() + layer.shift.numpy()
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=1e-6)


@pytest.mark.slow
def test_scale_and_shift_are_trained():
    layer = Affine()
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile(keras.optimizers.SGD(0.5), "mse")
    x = _data((4,))
    model.fit(x, 3 * x - 1, batch_size=32, epochs=100, verbose=0)
    # 0.1: what is left of the way after 100 steps.
    np.testing.assert_allclose(layer.scale, np.full(4, 3.0), atol=0.1)
    np.testing.assert_allclose(layer.shift, np.full(4, -1.0), atol=0.1)


def test_it_computes_in_the_dtype_of_its_policy():
    layer = Affine(dtype="mixed_float16")
    assert layer(_data((4,))).dtype == "float16"
    assert {v.dtype for v in layer.weights} == {"float32"}


@pytest.mark.parametrize(
    "settings", [{}, {"use_scale": False}, {"use_shift": False, "as_convolution": True}]
)
def test_it_is_saved_and_loaded(settings, tmp_path):
    layer = _layer((5, 4), **settings)
    again = Affine.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    model = keras.Sequential([keras.Input((5, 4)), layer])
    model.save(tmp_path / "m.keras")
    back = keras.models.load_model(tmp_path / "m.keras", safe_mode=True)
    x = _data((5, 4))
    np.testing.assert_array_equal(back(x), model(x))
    assert back.layers[0].get_config() == layer.get_config()
