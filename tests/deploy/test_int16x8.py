"""16-bit activations: learned ranges are kept, and the file agrees to few steps."""

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers

from tfcompress.deploy.converter import convert
from tfcompress.deploy.int16x8 import (
    around_zero,
    make_runnable,
    settings,
    widen_activations,
)
from tfcompress.deploy.low_bits import store_low_bits
from tfcompress.deploy.runtime import TFLiteRunner
from tfcompress.deploy.tflite_file import read_tflite
from tfcompress.layers import ConstantFakeQuant
from tfcompress.numerics.affine import fake_quantize_weight

AXES = {layers.DepthwiseConv2D: (2, 3), layers.Conv2DTranspose: (2,)}


def fake_quant(high, low=None):
    return ConstantFakeQuant(-high if low is None else low, high)


def randomized(model, bits=8):
    """Gives every kernel of a model a grid, and biases that differ."""
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if not layer.get_weights():
            continue
        kernel, *rest = (rng.normal(0, 0.3, w.shape) for w in layer.get_weights())
        axes = AXES.get(type(layer), (-1,))
        kernel = fake_quantize_weight(kernel.astype("float32"), bits=bits, axes=axes)
        layer.set_weights([kernel.numpy(), *rest])
    return model


def small_net():
    """As `export_graph` gives it: convolution, depthwise, add, pooling, dense."""
    inputs = keras.Input((8, 8, 3))
    x = fake_quant(1.0)(inputs)
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    x = shortcut = fake_quant(1.7, 0.0)(x)
    x = layers.DepthwiseConv2D(3, padding="same")(x)
    x = fake_quant(2.3, 0.0)(layers.ReLU(6.0)(x))
    x = fake_quant(3.1, 0.0)(layers.Add()([x, shortcut]))
    x = layers.Flatten()(layers.MaxPooling2D()(x))
    x = fake_quant(6.2, -4.5)(layers.Dense(5)(x))
    x = fake_quant(255 / 256, 0.0)(layers.Softmax()(x))
    return randomized(keras.Model(inputs, x))


def one_operation(shape, build, *, limit=1.0):
    inputs = keras.Input(shape)
    x = build(fake_quant(1.0)(inputs))
    return randomized(keras.Model(inputs, fake_quant(limit)(x) if limit else x))


def export(model, path, io="int16"):
    """The widened model, and the file of it."""
    widened = widen_activations(model, batch_size=1)
    path.write_bytes(make_runnable(convert(widened, 1, settings(io))))
    return widened, read_tflite(path)


def steps_apart(model, path, shape):
    """Differences of outputs in steps of 16 bits."""
    x = np.random.default_rng(1).uniform(-1, 1, (12, *shape)).astype("float32")
    runner = TFLiteRunner(path)
    scale = runner.outputs[0]["quantization"][0]
    expected = np.concatenate([model(row[None]) for row in x])
    return np.abs(runner.integers([x])[0] - np.round(expected / scale))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    keras.utils.set_random_seed(0)
    path = tmp_path_factory.mktemp("int16x8") / "net.tflite"
    return *export(small_net(), path), path


def test_the_file_holds_integers_only(exported):
    _, file, _ = exported
    # INT32 is the shape of the reshape.
    assert file.tensor_types() == {"INT16": 8, "INT8": 3, "INT64": 3, "INT32": 1}
    assert [op.operator for op in file.operations] == [
        "CONV_2D",
        "DEPTHWISE_CONV_2D",
        "ADD",
        "MAX_POOL_2D",
        "RESHAPE",
        "FULLY_CONNECTED",
        "SOFTMAX",
    ]


def test_learned_ranges_are_kept(exported):
    _, file, _ = exported
    limits = {
        op.operator: op.outputs[0].scale[0] * 32767
        for op in file.operations
        if op.operator != "SOFTMAX"
    }
    assert limits == pytest.approx(
        {
            "CONV_2D": 1.7,
            "DEPTHWISE_CONV_2D": 2.3,
            "ADD": 3.1,
            "MAX_POOL_2D": 3.1,
            "RESHAPE": 3.1,
            "FULLY_CONNECTED": 6.2,
        },
        rel=1e-6,
    )
    assert file.operations[-1].outputs[0].scale == 2.0**-15
    assert not any(op.outputs[0].zero_point.any() for op in file.operations)


def test_the_file_computes_what_the_model_does(exported):
    model, _, path = exported
    # Six roundings in a row, of 65,536 steps each.
    assert steps_apart(model, path, (8, 8, 3)).max() <= 4


def test_it_is_nearer_the_unrounded_model_than_8_bits():
    eight = small_net()
    plain = keras.models.clone_model(
        eight,
        clone_function=lambda layer: (
            layers.Identity()
            if isinstance(layer, ConstantFakeQuant)
            else type(layer).from_config(layer.get_config())
        ),
    )
    plain.set_weights(eight.get_weights())
    # Small enough that no range is left.
    x = np.random.default_rng(1).uniform(-0.1, 0.1, (40, 8, 8, 3)).astype("float32")
    expected = plain(x)
    sixteen = widen_activations(eight)
    errors = [np.abs(m(x) - expected).mean() for m in (eight, sixteen)]
    assert errors[1] < errors[0] / 20


def test_widening_twice_changes_nothing():
    once = widen_activations(small_net())
    twice = widen_activations(once)
    ranges = [
        [(q.low, q.high, q.bits) for q in m.layers if isinstance(q, ConstantFakeQuant)]
        for m in (once, twice)
    ]
    assert ranges[0] == ranges[1]


@pytest.mark.slow
def test_float_inputs_and_outputs(tmp_path):
    model = one_operation((6,), layers.Dense(4), limit=3.0)
    _, file = export(model, tmp_path / "f.tflite", io="float32")
    operators = [op.operator for op in file.operations]
    assert operators == ["QUANTIZE", "FULLY_CONNECTED", "DEQUANTIZE"]
    x = np.random.default_rng(1).uniform(-1, 1, (40, 6)).astype("float32")
    found = TFLiteRunner(tmp_path / "f.tflite").predict([x])[0]
    # One step of 3 / 32,767.
    np.testing.assert_allclose(found, widen_activations(model)(x), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "build", "limit", "most"),
    [
        ((6, 6, 4), lambda x: layers.Conv2D(8, 3, groups=2)(x), 3.0, 1),
        ((6, 6, 4), lambda x: layers.Conv2DTranspose(4, 3, strides=2)(x), 3.0, 1),
        ((5, 8), lambda x: layers.Dense(6, use_bias=False)(x), 3.0, 1),
        ((6,), lambda x: layers.Activation("sigmoid")(x), 1.0, 1),
        # The runtime interpolates tanh in a table.
        ((6,), lambda x: layers.Activation("tanh")(x), 1.0, 2),
        ((6,), lambda x: layers.LeakyReLU()(x), 1.0, 1),
        ((6,), lambda x: layers.ReLU(6.0)(x), 1.0, 1),
        ((6, 6, 4), lambda x: layers.AveragePooling2D(2)(x), 1.0, 1),
        ((6, 6, 4), lambda x: layers.GlobalAveragePooling2D()(x), 1.0, 1),
        ((6,), lambda x: x + fake_quant(2.0)(layers.Dense(6)(x)), 3.0, 1),
        ((6,), lambda x: x - fake_quant(2.0)(layers.Dense(6)(x)), 3.0, 1),
        ((6,), lambda x: x * fake_quant(2.0)(layers.Dense(6)(x)), 3.0, 1),
    ],
)
def test_each_operation_agrees_to_a_step(shape, build, limit, most, tmp_path):
    model, file = export(
        one_operation(shape, build, limit=limit), tmp_path / "op.tflite"
    )
    assert not file.float_operations()
    assert steps_apart(model, tmp_path / "op.tflite", shape).max() <= most


@pytest.mark.parametrize(
    "build",
    [
        lambda x: x + 0.3,
        lambda x: 0.3 - x,
        lambda x: x * 0.7,
        lambda x: x + np.array([0.0, 0.3, -1.0, 0.2, 0.1, -0.4], "float32"),
        lambda x: keras.ops.add(np.float32(0.3), x),
    ],
    ids=["sum", "difference", "product", "array", "constant first"],
)
def test_constant_operands_agree_to_a_step(build, tmp_path):
    model, file = export(one_operation((6,), build, limit=2.0), tmp_path / "op.tflite")
    assert not file.float_operations()
    assert steps_apart(model, tmp_path / "op.tflite", (6,)).max() <= 1


def test_concatenation_is_exact(tmp_path):
    def build(x):
        y = fake_quant(1.0)(layers.Conv2D(5, 1)(x))
        return layers.Concatenate()([x, layers.MaxPooling2D(1)(x), y])

    model, file = export(
        one_operation((6, 6, 3), build, limit=None), tmp_path / "concat.tflite"
    )
    assert not file.float_operations()
    apart = steps_apart(model, tmp_path / "concat.tflite", (6, 6, 3))
    # Inputs in between two steps may round either way in the test itself.
    assert apart[..., :6].mean() < 0.01 and apart.max() <= 1


def test_many_products_do_not_overflow(tmp_path):
    model = one_operation((4096,), layers.Dense(4), limit=60.0)
    dense = model.layers[-2]
    kernel = np.full((4096, 4), 0.01, np.float32)
    dense.set_weights([kernel, np.array([0.1, 0.2, 0.3, 0.4], np.float32)])
    export(model, tmp_path / "big.tflite")
    x = np.random.default_rng(1).uniform(0.5, 1, (20, 4096)).astype("float32")
    found = TFLiteRunner(tmp_path / "big.tflite").integers([x])[0]
    expected = np.round(widen_activations(model)(x) / (60 / 32767))
    # Float32 sums of 4,096 products are off by a few parts in 10**6 themselves.
    assert np.abs(found - expected).max() <= 2


@pytest.mark.parametrize("pack", [True, False])
def test_weights_of_four_bits(pack, tmp_path):
    inputs, dense = keras.Input((9,)), layers.Dense(6)
    x = fake_quant(3.0)(dense(fake_quant(1.0)(inputs)))
    model = randomized(keras.Model(inputs, x), bits=4)
    path = tmp_path / "f.tflite"
    widened, _ = export(model, path)
    content, stored = store_low_bits(
        path.read_bytes(), [(dense.kernel.numpy(), 4)], pack=pack
    )
    assert stored.packed == {4: int(pack)}
    path.write_bytes(content)
    assert steps_apart(widened, path, (9,)).max() <= 1


def test_what_has_no_16_bit_form_is_refused(tmp_path):
    model = one_operation((6,), layers.Activation("gelu"))
    with pytest.raises(ValueError, match="refuses.*gelu"):
        export(model, tmp_path / "f.tflite")


def test_integers_stand_for_the_limit():
    quantizer = around_zero(1.5)
    step = 1.5 / 32767
    found = quantizer(np.array([[0.0, 1.5, 9.0, -9.0, 2.4 * step]], np.float32))
    np.testing.assert_allclose(
        found / step, [[0, 32767, 32767, -32768, 2]], rtol=1e-6, atol=1e-3
    )


def test_as_converted_it_would_not_run(tmp_path):
    widened = widen_activations(small_net(), batch_size=1)
    content = convert(widened, 1, settings())
    # Once the converter does better, `make_runnable` can go.
    with pytest.raises(RuntimeError, match="kTfLiteInt64"):
        Interpreter(model_content=content).allocate_tensors()
