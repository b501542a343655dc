"""Fused batch normalization against that of Keras.

Tolerances: the same float32 sums in another order, over up to 200 values a channel.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfcompress as tfc
from tfcompress.layers import FusedBatchNormalization

SHAPES = {2: (20, 3), 3: (8, 5, 3), 4: (4, 5, 6, 3), 5: (4, 2, 3, 4, 3)}
STATISTICS = ("moving_mean", "moving_variance")


def _data(shape, seed=0):
    return np.random.default_rng(seed).normal(1, 2, shape).astype("float32")


def _both(shape, **settings):
    """The layer of Keras and the fused one, with the same random weights."""
    plain = keras.layers.BatchNormalization(momentum=0.8, **settings)
    fused = FusedBatchNormalization(momentum=0.8, **settings)
    for layer in (plain, fused):
        layer.build((None, *shape[1:]))
    rng = np.random.default_rng(1)
    for name in ("gamma", "beta", *STATISTICS):
        value = rng.uniform(0.5, 2, shape[plain.axis])
        for layer in (plain, fused):
            if getattr(layer, name) is not None:
                getattr(layer, name).assign(value)
    return plain, fused


def _step(layer, x, training=True):
    """Output, and gradients by the input and the trained weights."""
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=training)
        loss = tf.reduce_sum(tf.cast(y, tf.float32) ** 3)
    sources = [x, *(v.value for v in layer.trainable_variables)]
    return [y, *tape.gradient(loss, sources)]


def _assert_same(plain, fused, shape, *, tolerance=1e-4, dtype="float32"):
    """Several steps of training and then inference."""
    for seed in range(3):
        x = tf.cast(_data(shape, seed), dtype).numpy()
        for one, other in zip(_step(plain, x), _step(fused, x), strict=True):
            assert one.dtype == other.dtype and one.shape == other.shape
            one, other = (tf.cast(v, tf.float32).numpy() for v in (one, other))
            # Gradients are sums: small beside the largest is as good as zero.
            atol = tolerance * max(np.abs(one).max(), 1)
            np.testing.assert_allclose(other, one, atol=atol)
        for name in STATISTICS:
            np.testing.assert_allclose(
                getattr(fused, name), getattr(plain, name), rtol=1e-3 * tolerance / 1e-4
            )
    for one, other in zip(_step(plain, x, False), _step(fused, x, False), strict=True):
        one, other = (tf.cast(v, tf.float32).numpy() for v in (one, other))
        atol = tolerance * max(np.abs(one).max(), 1)
        np.testing.assert_allclose(other, one, atol=atol)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"scale": False},
        {"center": False},
        {"scale": False, "center": False},
        {"epsilon": 0.1},
        {"epsilon": 1e-7},
    ],
    ids=str,
)
@pytest.mark.parametrize("rank", SHAPES)
def test_it_computes_and_learns_as_that_of_keras(rank, settings):
    plain, fused = _both(SHAPES[rank], **settings)
    _assert_same(plain, fused, SHAPES[rank])


@pytest.mark.parametrize("settings", [{"synchronized": True}, {"axis": 1}], ids=str)
def test_what_the_kernel_cannot_do_falls_back_to_keras(settings):
    plain, fused = _both(SHAPES[4], **settings)
    assert not fused._fuses(tf.zeros(SHAPES[4]))
    _assert_same(plain, fused, SHAPES[4], tolerance=1e-6)


def test_a_mask_falls_back_to_keras():
    plain, fused = _both(SHAPES[3])
    x, mask = _data(SHAPES[3]), np.arange(40).reshape(8, 5) % 3 > 0
    outputs = [
        layer(x, training=True, mask=tf.constant(mask)) for layer in (plain, fused)
    ]
    np.testing.assert_allclose(*outputs, atol=1e-6)
    np.testing.assert_allclose(fused.moving_mean, plain.moving_mean, atol=1e-6)


# Half precision rounds outputs and gradients of up to 100 by 0.1 or, in bfloat16, 1.
@pytest.mark.parametrize(
    "policy, dtype, tolerance",
    [("mixed_float16", "float16", 2e-3), ("mixed_bfloat16", "bfloat16", 2e-2)],
)
@pytest.mark.parametrize("rank", [2, 4])
def test_mixed_precision(rank, policy, dtype, tolerance):
    plain, fused = _both(SHAPES[rank], dtype=policy)
    assert {v.dtype for v in fused.weights} == {"float32"}
    assert fused(_data(SHAPES[rank])).dtype == dtype
    _assert_same(plain, fused, SHAPES[rank], tolerance=tolerance, dtype=dtype)


def test_double_precision_has_no_fused_kernel_and_falls_back():
    plain, fused = _both(SHAPES[4], dtype="float64")
    assert fused(_data(SHAPES[4])).dtype == "float64"
    _assert_same(plain, fused, SHAPES[4], dtype="float64")


@pytest.mark.parametrize(
    "settings", [{}, {"synchronized": True}], ids=["fused", "fallback"]
)
@pytest.mark.parametrize("rank", [2, 4])
def test_frozen_it_trains_as_it_infers_and_its_statistics_stay(rank, settings):
    _, fused = _both(SHAPES[rank], **settings)
    x = _data(SHAPES[rank])
    fused(x, training=True)
    before = [getattr(fused, name).numpy() for name in STATISTICS]
    fused.frozen.assign(1)
    for one, other in zip(_step(fused, x, True), _step(fused, x, False), strict=True):
        # 1e-4 of the largest: float32 sums.
        np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(other).max())
    for name, value in zip(STATISTICS, before, strict=True):
        np.testing.assert_array_equal(getattr(fused, name), value)
    fused.frozen.assign(0)
    fused(x, training=True)
    assert np.all(fused.moving_mean.numpy() != before[0])


def test_one_that_is_not_trainable_infers():
    plain, fused = _both(SHAPES[4])
    plain.trainable = fused.trainable = False
    x = _data(SHAPES[4])
    np.testing.assert_allclose(
        fused(x, training=True), plain(x, training=True), atol=1e-5
    )
    np.testing.assert_array_equal(fused.moving_mean, plain.moving_mean)


def _model(layer, shape=(5, 6, 3)):
    return keras.Sequential(
        [
            keras.Input(shape),
            layer,
            keras.layers.Flatten(),
            keras.layers.Dense(2, kernel_initializer=keras.initializers.Constant(0.1)),
        ]
    )


@pytest.mark.parametrize(
    "settings", [{}, {"synchronized": True}], ids=["fused", "fallback"]
)
@pytest.mark.parametrize("jit", [False, True])
def test_fit_gives_the_weights_that_keras_gives(jit, settings):
    weights = []
    x = _data((32, 5, 6, 3))
    for kind in (keras.layers.BatchNormalization, FusedBatchNormalization):
        model = _model(kind(momentum=0.8, **settings))
        model.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=jit)
        model.fit(x, x[:, 0, 0, :2], batch_size=8, epochs=2, shuffle=False, verbose=0)
        weights.append({v.name: v.numpy() for v in model.weights})
    assert weights[1].pop("frozen") == 0
    assert len(weights[0]) == 6
    for name, value in weights[0].items():
        np.testing.assert_allclose(weights[1][name], value, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("jit", [False, True])
def test_it_freezes_between_two_steps_of_a_compiled_model(jit):
    layer = FusedBatchNormalization(momentum=0.8)
    model = _model(layer)
    model.compile("sgd", "mse", jit_compile=jit)
    x = _data((8, 5, 6, 3))
    model.fit(x, x[:, 0, 0, :2], verbose=0)
    before = [layer.moving_variance.numpy(), layer.beta.numpy()]
    layer.frozen.assign(1)
    model.fit(x, x[:, 0, 0, :2], verbose=0)
    np.testing.assert_array_equal(layer.moving_variance, before[0])
    assert np.all(layer.beta.numpy() != before[1])


@pytest.mark.parametrize(
    "settings", [{}, {"synchronized": True}], ids=["fused", "fallback"]
)
def test_a_stateless_call_returns_the_statistics_and_changes_nothing(settings):
    plain, fused = _both(SHAPES[4], **settings)
    x = _data(SHAPES[4])
    before = [v.numpy() for v in fused.weights]
    results = []
    for layer in (plain, fused):
        model = keras.Sequential([keras.Input(x.shape[1:]), layer])
        results.append(
            model.stateless_call(
                [v.numpy() for v in model.trainable_variables],
                [v.numpy() for v in model.non_trainable_variables],
                x,
                training=True,
            )
        )
    (y, state), (fused_y, fused_state) = results
    np.testing.assert_allclose(fused_y, y, atol=1e-4)
    for one, other in zip(state, fused_state[:2], strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4)
    for variable, old in zip(fused.weights, before, strict=True):
        np.testing.assert_array_equal(variable, old)


def test_in_a_student_its_statistics_are_learned_and_in_a_teacher_not():
    def classifier():
        layer = FusedBatchNormalization(momentum=0.8)
        return layer, _model(layer)

    (student_norm, student), (teacher_norm, teacher) = classifier(), classifier()
    model = tfc.distill(student, teacher, alpha=0.5)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = _data((32, 5, 6, 3))
    model.fit(x, np.arange(32) % 2, batch_size=16, verbose=0)
    assert not np.any(teacher_norm.moving_mean.numpy())
    # Two batches, of mean 1: 1 - 0.8**2. 0.1: the mean of 480 values of deviation 2.
    np.testing.assert_allclose(student_norm.moving_mean, [0.36] * 3, atol=0.1)


def test_it_is_saved_and_loaded(tmp_path):
    layer = FusedBatchNormalization(momentum=0.8, epsilon=0.01, scale=False)
    model = _model(layer)
    x = _data((8, 5, 6, 3))
    model(x, training=True)
    layer.frozen.assign(1)
    model.save(tmp_path / "m.keras")
    back = keras.models.load_model(tmp_path / "m.keras", safe_mode=True)
    loaded = back.layers[0]
    assert isinstance(loaded, FusedBatchNormalization)
    assert loaded.get_config() == layer.get_config()
    assert loaded.frozen.numpy() == 1
    np.testing.assert_array_equal(back(x), model(x))


def test_an_example_alone_has_no_variance():
    plain, fused = _both((1, 3))
    x = _data((1, 3))
    np.testing.assert_allclose(
        fused(x, training=True), plain(x, training=True), atol=1e-5
    )
    np.testing.assert_allclose(fused.moving_variance, plain.moving_variance, rtol=1e-6)
