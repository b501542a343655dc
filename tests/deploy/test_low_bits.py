"""Low-bit weights: the file holds exactly what was trained, and computes with it."""

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from keras import layers

from tfcompress.deploy.converter import convert as convert_with
from tfcompress.deploy.converter import int8_settings
from tfcompress.deploy.low_bits import grid, store_low_bits
from tfcompress.deploy.tflite_file import pack_int4, read_tflite, unpack_int4
from tfcompress.layers import ConstantFakeQuant
from tfcompress.numerics.affine import fake_quantize_weight

RUNTIMES = {
    "xnnpack": OpResolverType.AUTO,
    "builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
}


def round_kernel(layer, bits, axes):
    """Puts a layer's kernel on its grid, and gives it biases that are not zero."""
    rng = np.random.default_rng(0)
    kernel, *rest = layer.get_weights()
    kernel = fake_quantize_weight(kernel * 1.5, bits=bits, axes=axes).numpy()
    layer.set_weights([kernel, *[rng.normal(0, 0.3, w.shape) for w in rest]])
    return kernel, bits


def fake_quant(low=-4.0, high=4.0):
    return ConstantFakeQuant(low, high)


def small_net(bits):
    """Convolution, depthwise, pointwise, dense; odd sizes, so that halves are left."""
    inputs = keras.Input((8, 8, 3))
    x = fake_quant(-1.0, 1.0)(inputs)
    kernels = []
    for layer, axes, low in (
        (layers.Conv2D(9, 3, padding="same", activation="relu"), (-1,), 0.0),
        (layers.DepthwiseConv2D(3, padding="same", activation="relu"), (2, 3), 0.0),
        (layers.Conv2D(7, 1), (-1,), -4.0),
        (layers.Flatten(), (), None),
        (layers.Dense(5), (-1,), -4.0),
    ):
        x = layer(x)
        if low is not None:
            kernels.append(round_kernel(layer, bits, axes))
            x = fake_quant(low)(x)
    return keras.Model(inputs, x), kernels


def convert(model):
    return convert_with(model, 1, int8_settings("int8"))


def per_tensor(converter):
    int8_settings("int8")(converter)
    converter._experimental_disable_per_channel_quantization_for_dense_layers = True


def read(content, tmp_path):
    path = tmp_path / "file.tflite"
    path.write_bytes(content)
    return read_tflite(path)


def real(tensor):
    shape = [1] * len(tensor.shape)
    if tensor.scale.size > 1:
        shape[tensor.quantized_axis] = -1
    return tensor.value() * tensor.scale.reshape(shape)


def run(content, inputs, runtime="xnnpack"):
    """Output integers, and the scale and zero point of the output."""
    interpreter = Interpreter(
        model_content=content, experimental_op_resolver_type=RUNTIMES[runtime]
    )
    interpreter.allocate_tensors()
    (source,), (result,) = (
        interpreter.get_input_details(),
        interpreter.get_output_details(),
    )
    scale, zero = source["quantization"]
    found = []
    for example in inputs:
        value = np.clip(np.round(example[None] / scale) + zero, -128, 127)
        interpreter.set_tensor(source["index"], value.astype(np.int8))
        interpreter.invoke()
        found.append(interpreter.get_tensor(result["index"])[0].astype(int))
    return np.array(found), *result["quantization"]


def compare(content, model, inputs, runtime="xnnpack"):
    """Share of outputs equal to the model's, and the largest difference in steps."""
    found, scale, zero = run(content, inputs, runtime)
    expected = np.round(model.predict(inputs, verbose=0) / scale) + zero
    difference = np.abs(found - expected)
    return np.mean(difference == 0), difference.max()


@pytest.fixture(scope="module")
def inputs():
    return np.random.default_rng(1).uniform(-1, 1, (60, 8, 8, 3)).astype("float32")


@pytest.fixture(scope="module")
def four_bits():
    """A network of 4 bits, its kernels, and its file as converted."""
    keras.utils.set_random_seed(0)
    model, kernels = small_net(4)
    return model, kernels, convert(model)


def test_packing_two_a_byte_first_low():
    packed = pack_int4(np.array([[1, -8], [7, -1], [3, 0]])[:, :2].ravel()[:5])
    assert packed.tolist() == [0x81, 0xF7, 0x03]
    assert unpack_int4(packed, (5,)).tolist() == [1, -8, 7, -1, 3]


def test_grid_finds_integers_and_scale():
    values = np.array([[7, -3, 1, 0], [5, -5, 2, 0], [0, 0, 0, 0]], np.float32) * 0.1
    found, scale = grid(values, 4, axis=0)
    assert found.tolist() == [[7, -3, 1, 0], [5, -5, 2, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(scale, [0.1, 0.1, 0], rtol=1e-6)


def test_grid_uses_what_the_stored_width_leaves_free():
    found, scale = grid(np.array([7, -3, 1, 0]) * 0.1, 4, stored_bits=8)
    # A power of two, so that dividing the scale by it is exact.
    assert found.tolist() == [112, -48, 16, 0]
    np.testing.assert_allclose(scale, 0.1 / 16, rtol=1e-6)


def test_grid_refuses_what_is_off_it():
    with pytest.raises(ValueError, match="does not lie on a symmetric grid of 4 bits"):
        grid(np.array([1.0, 0.61, -0.2]), 4)


@pytest.mark.parametrize("pack", [True, False])
def test_the_file_holds_exactly_the_trained_values(four_bits, pack, tmp_path):
    _, kernels, content = four_bits
    content, stored = store_low_bits(content, kernels, pack=pack)
    weights = [
        op.inputs[1] for op in read(content, tmp_path).operations if len(op.inputs) == 3
    ]
    assert [w.dtype for w in weights] == ["INT4" if pack else "INT8"] * 4
    assert (stored.tensors, stored.packed) == ({4: 4}, {4: 4 * pack})
    for weight, (kernel, _) in zip(weights, kernels, strict=True):
        laid_out = kernel if weight.quantized_axis == 3 else np.moveaxis(kernel, -1, 0)
        # Float32 rounding of scale and product.
        np.testing.assert_allclose(
            real(weight), laid_out.reshape(weight.shape), rtol=5e-7
        )
        assert len(np.unique(np.abs(weight.value()))) <= 8


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_unpacked_it_computes_what_the_model_does(bits, inputs):
    model, kernels = small_net(bits)
    content, stored = store_low_bits(convert(model), kernels, pack=False)
    equal, largest = compare(content, model, inputs)
    # As close as 8-bit weights come: four roundings in a row, one step at most.
    assert equal > 0.85 and largest <= 1
    assert stored.tensors == {bits: 4}


def test_the_converter_alone_is_further_off(four_bits, inputs):
    model, kernels, content = four_bits
    exact, _ = store_low_bits(content, kernels, pack=False)
    assert compare(content, model, inputs)[0] < compare(exact, model, inputs)[0] - 0.2


@pytest.mark.slow
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    ("shape", "layer", "axes"),
    [
        ((8, 8, 3), lambda: layers.Conv2D(5, 3, padding="same"), (-1,)),
        ((8, 8, 5), lambda: layers.DepthwiseConv2D(3), (2, 3)),
        ((7,), lambda: layers.Dense(5), (-1,)),
        ((8,), lambda: layers.Dense(6), (-1,)),
    ],
)
def test_packed_each_operation_computes_what_the_layer_does(
    shape, layer, axes, runtime, tmp_path
):
    inputs, layer = keras.Input(shape), layer()
    model = keras.Model(inputs, fake_quant()(layer(fake_quant(-1.0, 1.0)(inputs))))
    kernel, _ = round_kernel(layer, 4, axes)
    content, stored = store_low_bits(convert(model), [(kernel, 4)])
    assert stored.packed == {4: 1}
    (bias,) = [
        op.inputs[2] for op in read(content, tmp_path).operations if len(op.inputs) == 3
    ]
    # The bias of the file is rounded to the step of input times weight.
    layer.set_weights([kernel, bias.value() * bias.scale])
    x = np.random.default_rng(1).uniform(-1, 1, (50, *shape)).astype("float32")
    equal, largest = compare(content, model, x, runtime)
    # TFLite's own int4 kernels round a product twice; 2 % of the results are one off.
    assert equal > 0.97 and largest <= 1


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_packed_the_network_stays_near(four_bits, inputs, runtime):
    model, kernels, content = four_bits
    packed, _ = store_low_bits(content, kernels)
    # Rounding of biases to a coarse step, and twice in each of three kernels.
    assert compare(packed, model, inputs, runtime)[1] <= 2


def test_packing_halves_the_kernels(four_bits):
    _, kernels, content = four_bits
    packed, _ = store_low_bits(content, kernels)
    plain, _ = store_low_bits(content, kernels, pack=False)
    weights = sum(kernel.size for kernel, _ in kernels)
    # Padding of buffers, and the second entry of an operator.
    assert len(plain) - len(packed) == pytest.approx(weights / 2, abs=64)


def test_the_versions_say_that_packed_weights_are_read(four_bits, tmp_path):
    _, kernels, content = four_bits
    content, _ = store_low_bits(content, kernels[1:])
    versions = [
        (op.operator, op.version)
        for op in read(content, tmp_path).operations
        if len(op.inputs) == 3
    ]
    assert versions == [
        ("CONV_2D", 3),
        ("DEPTHWISE_CONV_2D", 7),
        ("CONV_2D", 7),
        ("FULLY_CONNECTED", 10),
    ]


@pytest.mark.slow
def test_one_scale_for_the_whole_weight(tmp_path):
    inputs, dense = keras.Input((7,)), layers.Dense(5)
    model = keras.Model(inputs, fake_quant()(dense(fake_quant(-1.0, 1.0)(inputs))))
    kernel, _ = round_kernel(dense, 4, ())
    content = convert_with(model, 1, per_tensor)
    x = np.random.default_rng(1).uniform(-1, 1, (50, 7)).astype("float32")
    for pack in (True, False):
        found, _ = store_low_bits(content, [(kernel, 4)], pack=pack)
        weight = read(found, tmp_path).operations[0].inputs[1]
        assert weight.scale.size == 1
        np.testing.assert_allclose(real(weight), kernel.T, rtol=5e-7)
        assert compare(found, model, x)[1] <= 1
    other, _ = round_kernel(dense, 4, (-1,))
    with pytest.raises(ValueError, match="scales along the axis it was trained"):
        store_low_bits(convert_with(model, 1, per_tensor), [(other, 4)])


def test_every_layout_is_found(tmp_path):
    ends, kernels, sources = [], [], []
    for shape, layer, axes in (
        ((6, 4), layers.Conv1D(8, 3), (-1,)),
        ((6, 6, 4), layers.Conv2D(8, 3, groups=2), (-1,)),
        ((6, 6, 4), layers.DepthwiseConv2D(3, depth_multiplier=2), (2, 3)),
        ((6, 6, 4), layers.Conv2DTranspose(8, 3, strides=2), (2,)),
        ((5, 8), layers.EinsumDense("abc,cde->abde", (None, 2, 3)), (1, 2)),
        ((5, 8), layers.Dense(6, use_bias=False), (-1,)),
    ):
        sources.append(keras.Input(shape))
        end = layer(fake_quant(-1.0, 1.0)(sources[-1]))
        kernels.append(round_kernel(layer, 4, axes))
        ends.append(fake_quant()(end))
    content, stored = store_low_bits(convert(keras.Model(sources, ends)), kernels)
    # The runtime has no packed transposed convolution.
    assert (stored.tensors, stored.packed) == ({4: 6}, {4: 5})
    Interpreter(model_content=content).allocate_tensors()
    assert str(stored) == "6 of 4 bits (5 packed)"


@pytest.mark.parametrize("pack", [True, False])
def test_a_kernel_that_two_operations_read(pack):
    inputs, shared = keras.Input((6,)), layers.Dense(6)
    x = fake_quant(-1.0, 1.0)(inputs)
    kernel = None
    for high in (2.0, 4.0):
        x = shared(x)
        kernel = kernel or round_kernel(shared, 4, (-1,))
        x = fake_quant(-high, high)(x)
    model = keras.Model(inputs, x)
    content, _ = store_low_bits(convert(model), [kernel], pack=pack)
    x = np.random.default_rng(1).uniform(-1, 1, (200, 6)).astype("float32")
    equal, largest = compare(content, model, x)
    # Two operations; packed, the rounding of biases is seen too.
    assert equal > (0.8 if pack else 0.95) and largest <= 1


def test_kernels_that_are_nearly_equal_are_told_apart(tmp_path):
    inputs, first, second = keras.Input((6,)), layers.Dense(6), layers.Dense(6)
    x = fake_quant()(first(fake_quant(-1.0, 1.0)(inputs)))
    model = keras.Model(inputs, fake_quant()(second(x)))
    kernel, _ = round_kernel(first, 4, (-1,))
    second.set_weights([kernel * np.float32(1.002), first.get_weights()[1]])
    kernels = [(kernel * np.float32(1.002), 4), (kernel, 4)]
    content, _ = store_low_bits(convert(model), kernels)
    found = [real(op.inputs[1]) for op in read(content, tmp_path).operations]
    np.testing.assert_allclose(found[0], kernel.T, rtol=5e-7)
    np.testing.assert_allclose(found[1], kernel.T * 1.002, rtol=1e-6)


@pytest.mark.slow
def test_a_bias_beside_tiny_weights_survives():
    inputs, dense = keras.Input((6,)), layers.Dense(3)
    model = keras.Model(inputs, fake_quant()(dense(fake_quant(-1.0, 1.0)(inputs))))
    kernel, _ = round_kernel(dense, 4, (-1,))
    kernel *= np.array([1, 1e-12, 0], np.float32)
    dense.set_weights([kernel, np.array([0.5, 3.0, -2.0], np.float32)])
    x = np.random.default_rng(1).uniform(-1, 1, (50, 6)).astype("float32")
    for pack in (True, False):
        content, _ = store_low_bits(convert(model), [(kernel, 4)], pack=pack)
        assert compare(content, model, x)[1] <= 1


def embedding_net(limit):
    inputs, table = keras.Input((6,), dtype="int32"), layers.Embedding(11, 8)
    x = table(inputs)
    kernel = round_kernel(table, 4, ())
    x = ConstantFakeQuant(-128 / 127 * limit(kernel[0]), limit(kernel[0]))(x)
    dense = layers.Dense(5)
    return keras.Model(inputs, fake_quant()(dense(x))), kernel


def test_a_table_on_the_grid_of_its_activations(tmp_path):
    model, kernel = embedding_net(lambda table: np.abs(table).max() * 127 / 112)
    content, _ = store_low_bits(convert(model), [kernel])
    operations = read(content, tmp_path).operations
    gather = next(op for op in operations if op.operator == "GATHER")
    np.testing.assert_allclose(real(gather.inputs[0]), kernel[0], rtol=1e-6)


def test_an_error_where_the_scale_is_passed_on():
    model, kernel = embedding_net(lambda table: 2.0)
    with pytest.raises(ValueError, match="GATHER read.* passes its scale on"):
        store_low_bits(convert(model), [kernel])


def test_an_error_where_a_kernel_is_not_in_the_file(four_bits):
    _, kernels, content = four_bits
    other = np.random.default_rng(0).integers(-7, 8, (3, 3, 3, 9)) * 0.1
    with pytest.raises(ValueError, match=r"1 of 5 .* \(3, 3, 3, 9\) of 4 bits"):
        store_low_bits(content, [*kernels, (other, 4)])


def test_an_error_where_there_are_fewer_bits_than_trained(four_bits):
    _, kernels, content = four_bits
    with pytest.raises(ValueError, match="symmetric grid of 3 bits"):
        store_low_bits(content, [(kernel, 3) for kernel, _ in kernels])


def test_an_error_for_bits_out_of_range(four_bits):
    _, kernels, content = four_bits
    with pytest.raises(ValueError, match="2 to 8. Received: bits=16"):
        store_low_bits(content, [(kernels[0][0], 16)])
