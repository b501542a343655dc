"""Activation ranges and their grids, against ranges worked out by hand.

Tolerance 1e-6: means of float32 numbers.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcompress.layers import ConstantFakeQuant, FakeQuant


def _batch(low, high, count=8):
    return np.linspace(low, high, count).astype("float32")[:, None]


def _near(expected):
    return pytest.approx(expected, rel=1e-6)


def _numpy_grid(x, low, high, bits=8):
    scale = (high - low) / (2**bits - 1)
    zero_point = np.floor(-low / scale + 0.5)
    integers = np.floor(np.asarray(x, "float64") / scale + zero_point + 0.5)
    return (np.clip(integers, 0, 2**bits - 1) - zero_point) * scale


def test_after_the_first_batch_the_range_is_that_of_the_batch():
    layer = FakeQuant()
    layer(_batch(-3.0, 5.0), training=True)
    assert layer.range() == (-3.0, 5.0)


def test_the_first_batches_are_averaged_evenly():
    layer = FakeQuant(momentum=0.99)
    highs = [1.0, 2.0, 6.0, 3.0]
    for n, high in enumerate(highs, start=1):
        layer(_batch(-high / 2, high), training=True)
        mean = np.mean(highs[:n])
        assert layer.range() == _near((-mean / 2, mean))


def test_later_batches_enter_a_moving_average():
    layer = FakeQuant(momentum=0.5)
    for high in (4.0, 2.0, 9.0):
        layer(_batch(0.0, high), training=True)
    # (4 + 2) / 2 = 3, then 0.5 * 3 + 0.5 * 9 = 6.
    assert layer.range() == _near((0.0, 6.0))


@pytest.mark.parametrize("low, high, grid", [(2, 5, (0, 5)), (-5, -2, (-5, 0))])
def test_zero_is_always_in_the_range(low, high, grid):
    layer = FakeQuant()
    layer(_batch(low, high), training=True)
    assert layer.range() == grid


def test_the_grid_spans_the_hull_of_all_sites():
    layer = FakeQuant(sites=3)
    layer(_batch(-1, 2), site=0, training=True)
    assert layer.range() == (-1, 2)
    layer(_batch(-4, 1), site=1, training=True)
    layer(_batch(0, 8), site=2, training=True)
    assert layer.range() == (-4, 8)
    # Each site averages what it sees itself.
    layer(_batch(-2, 1), site=1, training=True)
    assert layer.range() == _near((-3, 8))


def test_no_site_rounds_without_observing():
    layer = FakeQuant(bits=2)
    layer(_batch(0, 3), training=True)
    y = layer(np.array([[0.4], [7.0]], "float32"), site=None, training=True)
    assert y.numpy().tolist() == [[0.0], [3.0]]
    assert layer.range() == (0, 3)


def test_before_any_data_the_layer_is_the_identity():
    layer = FakeQuant()
    x = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    np.testing.assert_array_equal(layer(x), x)
    np.testing.assert_array_equal(layer(x, site=None, training=True), x)
    assert layer.range() is None


def test_inference_rounds_and_learns_nothing():
    layer = FakeQuant()
    layer(_batch(-1, 2), training=True)
    x = np.random.default_rng(0).normal(size=(50, 3)).astype("float32") * 3
    # 1e-6: float32 arithmetic of a range of 3.
    np.testing.assert_allclose(layer(x), _numpy_grid(x, -1, 2), atol=3e-6)
    assert layer.range() == (-1, 2)


@pytest.mark.parametrize("compiled", [False, True])
def test_training_rounds_with_the_range_of_the_batches_before(compiled):
    layer = FakeQuant(bits=2)
    call = tf.function(layer) if compiled else layer
    first = np.array([[0.0], [1.2], [3.0]], "float32")
    np.testing.assert_array_equal(call(first, training=True), first)
    y = call(np.array([[1.2], [9.0]], "float32"), training=True)
    assert y.numpy().tolist() == [[1.0], [3.0]]


def test_fixed_ranges_are_used_at_once_and_never_move():
    layer = FakeQuant(bits=2, fixed_range=(0.0, 3.0))
    x = np.array([[-1.0], [1.4], [50.0]], "float32")
    for training in (False, True):
        assert layer(x, training=training).numpy().tolist() == [[0.0], [1.0], [3.0]]
    assert layer.range() == (0.0, 3.0)


def test_rounding_can_be_off_while_training():
    layer = FakeQuant(bits=2, fixed_range=(0.0, 3.0), in_training=False)
    x = np.array([[0.4]], "float32")
    assert layer(x, training=True).numpy().tolist() == x.tolist()
    assert layer(x, training=False).numpy().tolist() == [[0.0]]


def test_a_calibrated_range_holds_and_then_moves_slowly():
    layer = FakeQuant(momentum=0.9, sites=2)
    layer.set_range(1, 0.5, 4.0)
    assert layer.range() == (0.0, 4.0)
    layer(_batch(0, 14), site=1, training=True)
    # Calibration counts as a hundred batches: the next has a share of 1/101 or, as it
    # is more, 0.1.
    assert layer.range() == _near((0.0, 5.0))


def test_a_site_that_was_not_calibrated_starts_with_its_first_batch():
    layer = FakeQuant(sites=2)
    layer.set_range(0, -1, 1)
    layer(_batch(-2, 7), site=1, training=True)
    assert layer.range() == (-2, 7)


def test_while_rounding_is_off_the_range_is_learned_all_the_same():
    layer = FakeQuant(bits=2)
    layer.rounding.assign(0)
    x = np.array([[0.0], [1.2], [3.0]], "float32")
    for training in (True, False):
        np.testing.assert_array_equal(layer(x, training=training), x)
    assert layer.range() == (0.0, 3.0)
    layer.rounding.assign(1)
    assert layer(x).numpy().tolist() == [[0.0], [1.0], [3.0]]
    fixed = FakeQuant(bits=2, fixed_range=(0.0, 3.0))
    fixed.rounding.assign(0)
    np.testing.assert_array_equal(fixed(x, training=True), x)


def test_while_observing_is_off_the_range_stays_and_is_rounded_to():
    layer = FakeQuant(bits=2)
    layer(_batch(0, 3), training=True)
    layer.observing.assign(0)
    y = layer(np.array([[1.2], [9.0]], "float32"), training=True)
    assert y.numpy().tolist() == [[1.0], [3.0]]
    assert layer.range() == (0.0, 3.0)
    assert layer.observed.numpy()[2].tolist() == [1.0]
    layer.observing.assign(1)
    layer(_batch(0, 9), training=True)
    assert layer.range() == _near((0.0, 6.0))


@pytest.mark.parametrize("shape", [(4,), (3000,)], ids=["small", "large"])
def test_all_of_the_first_hundred_batches_are_looked_at_and_then_one_in_four(shape):
    layer = FakeQuant(momentum=0.5)
    looked = []
    for n in range(120):
        before = layer.observed.numpy()[1, 0]
        # Each batch is higher than all before, so that looking moves the range.
        layer(np.full((2, *shape), n + 1.0, "float32"), training=True)
        if layer.observed.numpy()[1, 0] != before:
            looked.append(n)
    assert looked == [*range(100), 100, 104, 108, 112, 116]
    assert layer.observed.numpy()[2].tolist() == [120.0]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("training", [False, True])
def test_small_tensors_give_what_large_ones_give(dtype, training):
    small, large = (FakeQuant(momentum=0.5) for _ in range(2))
    for n in range(3):
        x = tf.cast(_batch(-n - 1.0, 2.0 * n + 1, 2048 * 3).reshape(3, -1), dtype)
        # The same numbers a row longer, and a branch is built.
        wide = tf.concat([x, x[:, :1]], axis=1)
        ys = [
            layer(value, training=training)
            for layer, value in ((small, x), (large, wide))
        ]
        assert ys[0].dtype == ys[1].dtype == dtype
        np.testing.assert_array_equal(ys[0], ys[1][:, :-1])
        assert small.range() == large.range()
        if training:
            for layer in (small, large):
                layer.rounding.assign(n != 1)


@pytest.mark.parametrize("shape", [(4,), (3000,)], ids=["small", "large"])
@pytest.mark.parametrize("bad", ["infinite", "nan", "empty"])
def test_a_batch_that_says_nothing_of_the_range_is_left_out(shape, bad):
    layer = FakeQuant()
    x = np.ones((2, *shape), "float32")
    layer(x, training=True)
    wrong = {"infinite": x * np.inf, "nan": x * np.nan, "empty": x[:0]}[bad]
    layer(wrong, training=True)
    assert layer.range() == (0.0, 1.0)
    assert layer.observed.numpy()[2].tolist() == [1.0]
    layer(3 * x, training=True)
    assert layer.range() == _near((0.0, 2.0))


def test_replicas_of_which_one_overflowed_go_on_looking():
    layer = FakeQuant(momentum=0.5)
    layer.set_range(0, 0.0, 1.0)
    # What their mean is after one of two has counted a batch.
    layer.observed.assign([[0.0], [1.0], [100.5]])
    for _ in range(5):
        layer(_batch(0, 9), training=True)
    assert layer.range()[1] > 4


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_a_symmetric_grid_has_zero_in_its_middle(bits):
    layer = FakeQuant(bits, symmetric=True)
    layer(_batch(-1, 3), training=True)
    highest = 2 ** (bits - 1) - 1
    assert layer.range() == _near((-3 - 3 / highest, 3))
    x = np.random.default_rng(0).normal(size=(50, 3)).astype("float32")
    integers = np.clip(np.floor(x * highest / 3 + 0.5), -highest - 1, highest)
    off = np.abs(layer(x).numpy() * highest / 3 - integers)
    # Of 16 bits float32 has a hundredth of a step, so that near ties round either way.
    assert off.max() < 1.02 and np.mean(off < 0.02) > 0.97


@pytest.mark.parametrize("bits", [4, 8])
def test_a_power_of_two_grid_has_such_a_step(bits):
    layer = FakeQuant(bits, power_of_two=True)
    layer(_batch(-1, 3), training=True)
    step = 4 / 2 ** (bits - 1)
    assert layer.range() == (-4, 4 - step)
    x = np.random.default_rng(0).normal(size=(50, 3)).astype("float32")
    found = layer(x).numpy() / step
    np.testing.assert_array_equal(found, np.round(found))
    np.testing.assert_array_equal(
        found, np.clip(np.floor(x / step + 0.5), -4 / step, 4 / step - 1)
    )


def test_gradient_passes_inside_the_range_only():
    layer = FakeQuant(fixed_range=(-1.0, 1.0))
    x = tf.constant([[-3.0, -0.5, 0.5, 3.0]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True)
    assert tape.gradient(y, x).numpy().tolist() == [[0, 1, 1, 0]]


def test_nothing_is_trained_by_the_optimizer():
    layer = FakeQuant()
    assert not layer.trainable_variables
    names = {v.name for v in layer.non_trainable_variables}
    assert names == {"observed", "rounding", "observing"}


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_ranges_are_learned_in_fit_with_and_without_xla(jit, dtype):
    quantizer = FakeQuant(momentum=0.5, dtype=dtype, name="q")
    model = keras.Sequential(
        [keras.Input((1,)), quantizer, keras.layers.Dense(1, dtype="float32")]
    )
    model.compile("sgd", "mse", jit_compile=jit)
    x = np.array([[0.0], [4.0], [-1.0], [2.0], [-3.0], [8.0]], "float32")
    model.fit(x, np.zeros(6), batch_size=2, shuffle=False, verbose=0)
    # Highs 4, 2, 8: (4 + 2) / 2 = 3, then (3 + 8) / 2; lows 0, -1, -3 in the same way.
    assert quantizer.range() == _near((-1.75, 5.5))
    assert all(v.dtype == "float32" for v in quantizer.weights)


def test_steps_per_execution_changes_no_range():
    ranges = []
    x = np.random.default_rng(0).normal(size=(32, 2)).astype("float32")
    for steps in (1, 4):
        quantizer = FakeQuant()
        model = keras.Sequential([keras.Input((2,)), quantizer, keras.layers.Dense(2)])
        model.compile("sgd", "mse", steps_per_execution=steps)
        model.fit(x, x, batch_size=4, shuffle=False, verbose=0)
        ranges.append(quantizer.range())
    assert ranges[0] == _near(ranges[1])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"fixed_range": (-1, 1)},
        {"bits": 4},
        {"symmetric": True, "bits": 16},
        {"power_of_two": True, "in_training": False},
    ],
    ids=str,
)
def test_save_and_load_keep_ranges_and_settings(settings, tmp_path):
    model = keras.Sequential([keras.Input((3,)), FakeQuant(sites=2, **settings)])
    x = np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
    model(x, training=True)
    model.save(tmp_path / "m.keras")
    back = keras.models.load_model(tmp_path / "m.keras", safe_mode=True)
    assert back.layers[0].get_config() == model.layers[0].get_config()
    assert back.layers[0].range() == model.layers[0].range()
    np.testing.assert_array_equal(back(x), model(x))
    # It keeps counting where it stopped.
    model(2 * x, training=True)
    back(2 * x, training=True)
    assert back.layers[0].range() == model.layers[0].range()


def test_rounding_and_observing_are_saved_with_the_model(tmp_path):
    model = keras.Sequential([keras.Input((3,)), FakeQuant()])
    model.layers[0].rounding.assign(0)
    model.layers[0].observing.assign(0)
    model.save(tmp_path / "m.keras")
    back = keras.models.load_model(tmp_path / "m.keras", safe_mode=True).layers[0]
    assert back.rounding.numpy() == back.observing.numpy() == 0


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("width", [2, 3000], ids=["small", "large"])
def test_switches_take_effect_in_a_compiled_model(jit, width):
    quantizer = FakeQuant(bits=2)
    model = keras.Sequential([keras.Input((width,)), quantizer])
    model.compile(jit_compile=jit)
    x = np.linspace(0, 3, 2 * width, dtype="float32").reshape(2, width)
    np.testing.assert_array_equal(model.predict(x, verbose=0), x)
    quantizer.set_range(0, 0, 3)
    # 0.5 exactly between two values: none is there.
    np.testing.assert_allclose(
        model.predict(x, verbose=0), np.floor(x + 0.5), atol=1e-6
    )
    quantizer.rounding.assign(0)
    np.testing.assert_array_equal(model.predict(x, verbose=0), x)


def test_a_constant_quantizer_rounds_as_the_learned_one_does():
    learned = FakeQuant(fixed_range=(-0.7, 2.1))
    constant = ConstantFakeQuant(-0.7, 2.1)
    x = np.random.default_rng(0).normal(size=(50, 3)).astype("float32")
    # 1e-6: the same arithmetic, in another kernel.
    np.testing.assert_allclose(constant(x), learned(x), atol=1e-6)


def test_a_constant_quantizer_survives_saving(tmp_path):
    model = keras.Sequential([keras.Input((3,)), ConstantFakeQuant(-1.0, 3.0, bits=4)])
    model.save(tmp_path / "m.keras")
    back = keras.models.load_model(tmp_path / "m.keras").layers[0]
    assert (back.low, back.high, back.bits) == (-1.0, 3.0, 4)
