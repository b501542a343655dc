"""The laws that every weight transform keeps: see `tfcompress.layers.transforms`."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import CASES, dense, sparse
from keras import layers

from tfcompress.layers import TransformWeights

pytestmark = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))

SHAPES = [(6, 4), (3, 3, 4, 5), (2, 5, 3)]


def _apply(case, weight, state=None, dtype="float32"):
    """The effective weight."""
    state = case.state_of(weight) if state is None else state
    tensors = {name: tf.convert_to_tensor(value) for name, value in state.items()}
    return case.transform(tf.cast(weight, dtype), tensors)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_shape_and_dtype_are_kept(case, shape, dtype):
    found = _apply(case, sparse(*shape), dtype=dtype)
    assert (found.shape, found.dtype) == (shape, dtype)
    assert np.all(np.isfinite(tf.cast(found, "float32")))


def test_what_it_has_nothing_to_do_with_comes_out_as_it_was(case):
    # 1e-6: a number on the grid is a whole number times a float32 scale.
    found = _apply(case, case.untouched)
    np.testing.assert_allclose(found, case.untouched, rtol=1e-6)


@pytest.mark.parametrize("weight", [dense, sparse])
@pytest.mark.parametrize("shape", SHAPES)
def test_applied_twice_with_one_state_it_is_as_if_applied_once(case, shape, weight):
    latent = weight(*shape)
    state = case.state_of(latent)
    once = _apply(case, latent, state)
    twice = _apply(case, once, state)
    # 1e-6: the largest weight of a channel sets the scale, and float32 may round it.
    np.testing.assert_allclose(twice, once, rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_zeros_stay_zeros(case, shape):
    latent = sparse(*shape)
    found = _apply(case, latent).numpy()
    assert np.all(found[latent == 0] == 0)


def _gradient(case, latent, state, upstream):
    weight = tf.Variable(latent)
    with tf.GradientTape() as tape:
        effective = _apply(case, weight, state)
    return tape.gradient(effective, weight, output_gradients=upstream)


def test_the_gradient_reaches_every_weight_that_is_not_held_at_zero(case):
    latent = dense(2000, 2000)
    upstream = tf.constant(latent[::-1])
    gradient = _gradient(case, latent, case.state_of(latent), upstream)
    # Straight through: not only some gradient, but the very one.
    expected = np.where(np.abs(latent) < case.clips_beyond, upstream, 0)
    np.testing.assert_array_equal(gradient, expected)


@pytest.mark.parametrize("bits", [0, -1])
def test_while_inactive_it_is_the_identity(case, bits):
    latent = sparse(3, 3, 4, 5) * 100
    state = case.state_of(latent)
    if "bits" not in state:
        pytest.skip("is always active")
    state["bits"] = np.array(bits, "float32")
    for dtype in ("float32", "float16"):
        found = _apply(case, latent, state, dtype)
        np.testing.assert_array_equal(found, latent.astype(dtype))
    upstream = tf.constant(dense(3, 3, 4, 5))
    gradient = _gradient(case, latent, state, upstream)
    np.testing.assert_array_equal(gradient, upstream)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_state_has_names_and_arrays_and_may_be_computed_again(case, shape):
    latent = sparse(*shape)
    state = case.transform.initial_state(latent)
    again = case.transform.initial_state(latent)
    assert state.keys() == again.keys()
    for name, value in state.items():
        assert isinstance(value, np.ndarray)
        np.testing.assert_array_equal(value, again[name])
    for name in case.transform.trainable_state:
        # Of rank 2 it would be pruned as a kernel is.
        assert state[name].ndim <= 1 and state[name].dtype == "float32"


def test_it_is_pure(case):
    latent = sparse(6, 4)
    config = case.transform.get_config()
    before = latent.copy()
    first, second = (_apply(case, latent) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(latent, before)
    assert case.transform.get_config() == config


@pytest.mark.parametrize("jit", [False, True])
def test_compiled_it_computes_the_same(case, jit):
    latent = sparse(3, 3, 4, 5)
    state = case.state_of(latent)
    compiled = tf.function(lambda w: _apply(case, w, state), jit_compile=jit)
    # 1e-6: XLA fuses multiplications and additions, which rounds once less.
    np.testing.assert_allclose(
        compiled(tf.constant(latent)), _apply(case, latent, state), atol=1e-6
    )


@pytest.mark.parametrize("jit", [False, True])
def test_compiled_zeros_stay_exactly_zero(case, jit):
    latent = sparse(3, 3, 4, 5)
    state = case.state_of(latent)
    compiled = tf.function(lambda w: _apply(case, w, state), jit_compile=jit)
    assert np.all(compiled(tf.constant(latent)).numpy()[latent == 0] == 0)


def test_config_round_trip(case):
    config = keras.saving.serialize_keras_object(case.transform)
    back = keras.saving.deserialize_keras_object(config, safe_mode=True)
    assert type(back) is type(case.transform)
    assert back.get_config() == case.transform.get_config()
    latent = sparse(6, 4)
    np.testing.assert_array_equal(
        _apply(dataclasses.replace(case, transform=back), latent), _apply(case, latent)
    )


def _model(case, **kwargs):
    """A pruned convolution and an unpruned Dense, both transformed."""
    inputs = keras.Input((4, 4, 2), name="x")
    y = inputs
    convolution, fully_connected = case.layers
    for layer in (convolution(4, 3, **kwargs), fully_connected(3, **kwargs)):
        layer.build(y.shape)
        layer.kernel.assign((dense if y is not inputs else sparse)(*layer.kernel.shape))
        y = TransformWeights(layer, {"kernel": [case.transform]}, **kwargs)(y)
        y = layers.Flatten()(y)
    return keras.Model(inputs, layers.Activation("linear", dtype="float32")(y))


def _compiled(model, **kwargs):
    model.compile(keras.optimizers.SGD(0.01), "mse", **kwargs)
    return model


def _train(model):
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(16, 4, 4, 2)).astype("float32"), rng.normal(size=(16, 3))
    return model.fit(x, y, batch_size=4, shuffle=False, verbose=0, epochs=1).history[
        "loss"
    ]


def _wrappers(model):
    return [x for x in model.layers if isinstance(x, TransformWeights)]


@pytest.mark.parametrize(
    "settings",
    [
        {"jit_compile": True},
        {"steps_per_execution": 2, "dtype": "mixed_float16"},
        {"run_eagerly": True, "dtype": "mixed_bfloat16"},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_it_trains_and_zeros_stay(case, settings):
    settings = dict(settings)
    dtype = {"dtype": settings.pop("dtype")} if "dtype" in settings else {}
    model = _compiled(_model(case, **dtype), **settings)
    latent = [w.layer.kernel.numpy() for w in _wrappers(model)]
    losses = _train(model)
    assert np.all(np.isfinite(losses))
    for wrapper, before in zip(_wrappers(model), latent, strict=True):
        kernel = wrapper.layer.kernel
        assert kernel.dtype == "float32"
        assert np.any(kernel.numpy() != before)
        # What is zero in the latent weight is zero in the effective one.
        effective = wrapper.effective_weights()["kernel"]
        assert np.all(effective[kernel.numpy() == 0] == 0)


def test_saved_and_loaded_it_continues_as_if_never_saved(case, tmp_path):
    model = _compiled(_model(case), run_eagerly=True)
    _train(model)
    for wrapper in _wrappers(model):
        for state in wrapper.states["kernel"]:
            if "bits" in state:
                state["bits"].assign(5)  # As a schedule would.
    model.save(tmp_path / "m.keras")
    back = keras.models.load_model(tmp_path / "m.keras", safe_mode=True)
    for old, new in zip(_wrappers(model), _wrappers(back), strict=True):
        np.testing.assert_array_equal(
            old.effective_weights()["kernel"], new.effective_weights()["kernel"]
        )
    # 1e-6: the same operations on the same numbers.
    np.testing.assert_allclose(_train(back), _train(model), rtol=1e-6)
