"""Kinds of `.tflite` file, and signatures: read back from the file and run."""

import keras
import numpy as np
import pytest
from keras import layers
from networks import conv_net, image_data

import tfcompress as tfc
from tfcompress.deploy.runtime import TFLiteRunner
from tfcompress.deploy.sparse import densified
from tfcompress.deploy.tflite_file import read_tflite


def wide_net():
    """Kernels of more than 1,024 weights, and two named outputs."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(48, 3, activation="relu", name="stem")(inputs)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = layers.Conv2D(32, 1, activation="relu", name="point")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(
        inputs,
        {
            "scores": layers.Dense(40, activation="softmax", name="a")(x),
            "box": layers.Dense(64, name="b")(x),
        },
    )


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return wide_net()


@pytest.fixture(scope="module")
def images():
    return image_data(24)[0]


def interpreter(path):
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(model_path=str(path))


def errors(path, model, x):
    """Largest difference of each output as a share of its range."""
    expected = keras.tree.flatten(model.predict(x, verbose=0))
    found = TFLiteRunner(path).predict([x])
    return [
        np.abs(f - e).max() / np.ptp(e) for f, e in zip(found, expected, strict=True)
    ]


# A float16 has 11 significant bits; int8 rounds to half of one in 127, and the errors
# of a few layers add up.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "weights", "tolerance"),
    [
        ("float32", {32: 5}, 1e-5),
        ("float16", {16: 5}, 2e-3),
        ("dynamic_range", {8: 4, 32: 1}, 0.03),
    ],
)
def test_weights_of_float_kinds_are_what_they_say(
    model, images, tmp_path, kind, weights, tolerance
):
    result = tfc.export_tflite(model, tmp_path / "m.tflite", kind=kind)
    # In a dynamic range file the depthwise kernel stays: fewer than 1,024 weights.
    assert result.weights.tensors == weights
    assert max(errors(result.path, model, images)) < tolerance
    assert not result.fully_integer


@pytest.mark.slow
def test_float16_halves_the_bytes_and_dynamic_range_quarters_the_kernels(
    model, tmp_path
):
    sizes = {
        kind: sum(
            len(t.buffer)
            for t in read_tflite(
                tfc.export_tflite(model, tmp_path / kind, kind=kind).path
            ).constants()
            if t.size > 500
        )
        for kind in ("float32", "float16", "dynamic_range")
    }
    assert sizes["float16"] == sizes["float32"] / 2
    assert sizes["dynamic_range"] == sizes["float32"] / 4


@pytest.mark.slow
def test_int4_of_a_plain_model_and_of_a_trained_one(model, images, tmp_path):
    path = tmp_path / "m.tflite"
    qat = tfc.quantize_aware(model, "int4_weights", calibration_data=images)
    for source, more in ((model, {"calibration_data": images}), (qat, {})):
        result = tfc.export_tflite(source, path, kind="int4", pack=True, **more)
        assert result.fully_integer and result.weights.tensors[4] >= 1
        assert result.weights.packed == {4: result.weights.tensors[4]}
        assert any(t.dtype == "INT4" for t in read_tflite(path).constants())
        # The scores are all near 1/40, a few steps of their grid.
        assert errors(path, qat, images)[0] < 0.05


@pytest.mark.slow
def test_a_kind_that_the_weights_are_not_is_refused(images, tmp_path):
    qat = tfc.quantize_aware(conv_net(), calibration_data=images)
    with pytest.raises(ValueError, match="No weight of the model has 4 bits"):
        tfc.export_tflite(qat, tmp_path / "m", kind="int4")
    inputs = keras.Input((4,))
    small = keras.Model(inputs, layers.Dense(3)(inputs))
    with pytest.raises(ValueError, match="1024 weights or more. Export kind='float16'"):
        tfc.export_tflite(small, tmp_path / "m", kind="dynamic_range")
    bare = keras.Model(inputs, keras.ops.exp(inputs))
    with pytest.raises(ValueError, match="has none that it converts"):
        tfc.export_tflite(bare, tmp_path / "m", kind="float16")
    with pytest.raises(ValueError, match="'float16' must be one of .'float32',"):
        tfc.export_tflite(small, tmp_path / "m", kind="float16", io="int8")
    with pytest.raises(ValueError, match="needs no `calibration_data`"):
        tfc.export_tflite(
            small, tmp_path / "m", kind="float16", calibration_data=images
        )
    assert not list(tmp_path.iterdir())


# The sparse format.


@pytest.mark.parametrize(
    "kind", ["float32", pytest.param("float16", marks=pytest.mark.slow)]
)
def test_sparse_weights_take_fewer_bytes_and_compute_the_same(images, tmp_path, kind):
    model = wide_net()
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            values = variable.numpy()
            variable.assign(values * (rng.random(values.shape) > 0.8))
    dense = tfc.export_tflite(model, tmp_path / "dense", kind=kind)
    sparse = tfc.export_tflite(model, tmp_path / "sparse", kind=kind, sparse=True)
    assert sparse.bytes < 0.7 * dense.bytes
    found, expected = (TFLiteRunner(r.path).predict([images]) for r in (sparse, dense))
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f, e, atol=1e-5)
    # The reader sees the zeros as well as the values.
    before, after = tfc.measure(dense.path), tfc.measure(sparse.path)
    assert after.nonzero_parameters == before.nonzero_parameters
    assert after.sparsity == pytest.approx(before.sparsity) and after.sparsity > 0.7
    by_shape = {
        t.shape: t.value() for t in read_tflite(dense.path).constants() if t.size > 64
    }
    held = [t for t in read_tflite(sparse.path).constants() if t.sparsity is not None]
    assert len(held) >= 4
    for tensor in held:
        np.testing.assert_array_equal(tensor.value(), by_shape[tensor.shape])


@pytest.mark.slow
def test_sparse_is_refused_where_it_does_not_run_or_does_not_pay(model, tmp_path):
    with pytest.raises(ValueError, match="Received: kind='dynamic_range'"):
        tfc.export_tflite(model, tmp_path / "m", kind="dynamic_range", sparse=True)
    with pytest.raises(ValueError, match="no weight of the model has zeros enough"):
        tfc.export_tflite(model, tmp_path / "m", sparse=True)
    with pytest.raises(ValueError, match="sparse='yes'"):
        tfc.export_tflite(model, tmp_path / "m", sparse="yes")


class Level:
    """A level of the description of a sparse tensor."""

    def __init__(self, size=None, segments=None, indices=None):
        self.format = 0 if segments is None else 1
        self.denseSize = size
        self.arraySegments = self.arrayIndices = None
        if segments is not None:
            self.arraySegments = type("V", (), {"values": segments})
            self.arrayIndices = type("V", (), {"values": indices})


class Sparsity:
    def __init__(self, order, blocks, levels):
        self.traversalOrder, self.blockMap, self.dimMetadata = order, blocks, levels


def test_compressed_rows_by_hand():
    levels = [Level(3), Level(segments=[0, 2, 2, 3], indices=[1, 3, 0])]
    found = densified(np.array([5, 6, 7]), (3, 4), Sparsity([0, 1], None, levels))
    np.testing.assert_array_equal(found, [[0, 5, 0, 6], [0, 0, 0, 0], [7, 0, 0, 0]])


def test_blocks_by_hand():
    # Blocks of two rows and two columns: the second and the third of four.
    levels = [Level(2), Level(segments=[0, 1, 2], indices=[1, 0]), Level(2), Level(2)]
    sparsity = Sparsity([0, 1, 2, 3], [0, 1], levels)
    found = densified(np.arange(1, 9), (4, 4), sparsity)
    expected = [[0, 0, 1, 2], [0, 0, 3, 4], [5, 6, 0, 0], [7, 8, 0, 0]]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("shape", "levels", "reason"),
    [
        ((3, 4), [Level(3), Level(segments=[0, 2, 2, 9], indices=[1, 3, 0])], "fit"),
        ((3, 4), [Level(9), Level(9)], "more than 12 places"),
        ((3, 4), [Level(3), Level(2)], "6 places for 3 values"),
        ((2**20, 2**20), [Level(3), Level(1)], "stored values of"),
    ],
)
def test_damaged_sparse_descriptions(shape, levels, reason):
    with pytest.raises(ValueError, match=reason):
        densified(np.arange(3), shape, Sparsity([0, 1], None, levels))


# Names, order, batch.


def two_inputs():
    image, numbers = keras.Input((4, 4, 1), name="z_image"), keras.Input((3,), name="a")
    x = layers.Concatenate()([layers.Flatten()(image), numbers])
    return image, numbers, layers.Dense(2, name="small")(x), layers.Dense(9)(x)


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_names_and_order_are_the_models_own(kind, tmp_path):
    image, numbers, small, large = two_inputs()
    model = keras.Model([image, numbers], [large, small])
    rng = np.random.default_rng(0)
    data = [rng.normal(size=(8, *s)).astype("float32") for s in ((4, 4, 1), (3,))]
    more = {"calibration_data": data} if kind == "int8" else {}
    path = tfc.export_tflite(model, tmp_path / "m", kind=kind, **more).path
    runner = interpreter(path)
    assert runner.get_signature_list() == {
        "serving_default": {
            "inputs": ["a", "z_image"],
            "outputs": sorted(["small", large._keras_history.operation.name]),
        }
    }
    # The file's own order, which is all that the interface without signatures has.
    runner.allocate_tensors()
    shapes = [tuple(d["shape"]) for d in runner.get_input_details()]
    assert shapes == [(1, 4, 4, 1), (1, 3)]
    assert [d["shape"][1] for d in runner.get_output_details()] == [9, 2]
    found = TFLiteRunner(path).predict(data)
    for f, e in zip(found, model.predict(data, verbose=0), strict=True):
        np.testing.assert_allclose(f, e, atol=0.1 if kind == "int8" else 1e-5)


def test_dict_inputs_and_outputs_go_by_their_keys(tmp_path):
    image, numbers, small, large = two_inputs()
    model = keras.Model(
        {"z_image": image, "a": numbers}, {"scores": large, "box": {"xy": small}}
    )
    path = tfc.export_tflite(model, tmp_path / "m").path
    run = interpreter(path).get_signature_runner()
    rng = np.random.default_rng(0)
    data = {
        "z_image": rng.normal(size=(1, 4, 4, 1)).astype("float32"),
        "a": rng.normal(size=(1, 3)).astype("float32"),
    }
    found, expected = run(**data), model.predict(data, verbose=0)
    assert set(found) == {"scores", "box_xy"}
    np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-5)
    np.testing.assert_allclose(found["box_xy"], expected["box"]["xy"], atol=1e-5)


@pytest.mark.slow
def test_a_quantization_aware_model_keeps_the_names_of_its_layers(images, tmp_path):
    qat = tfc.quantize_aware(conv_net(), calibration_data=images)
    path = tfc.export_tflite(qat, tmp_path / "m", kind="int8").path
    (signature,) = interpreter(path).get_signature_list().values()
    assert signature == {"inputs": ["image"], "outputs": ["classifier"]}


@pytest.mark.slow
def test_equal_names_are_told_apart(tmp_path):
    inputs = keras.Input((4,))
    dense = layers.Dense(2, name="same")
    model = keras.Model(inputs, [dense(inputs), dense(-inputs)])
    path = tfc.export_tflite(model, tmp_path / "m").path
    (signature,) = interpreter(path).get_signature_list().values()
    assert signature["outputs"] == ["same", "same_1"]


@pytest.mark.parametrize(
    "kind",
    [
        "float32",
        pytest.param("float16", marks=pytest.mark.slow),
        pytest.param("dynamic_range", marks=pytest.mark.slow),
        "int8",
    ],
)
def test_an_open_batch_is_resized(model, images, tmp_path, kind):
    more = {"calibration_data": images, "io": "float32"} if kind == "int8" else {}
    result = tfc.export_tflite(
        model, tmp_path / "m", kind=kind, batch_size=None, **more
    )
    one_by_one = TFLiteRunner(result.path).predict([images[:5]])
    runner = interpreter(result.path)
    (details,) = runner.get_input_details()
    assert details["shape_signature"][0] == -1
    runner.resize_tensor_input(details["index"], (5, 8, 8, 3), strict=True)
    runner.allocate_tensors()
    runner.set_tensor(details["index"], images[:5])
    runner.invoke()
    for d, expected in zip(runner.get_output_details(), one_by_one, strict=True):
        found = runner.get_tensor(d["index"])
        assert found.shape == expected.shape
        # The dynamic ranges of a batch are those of each row; sums differ in order.
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_fixed_batch_cannot_be_resized_by_mistake(model, tmp_path):
    runner = interpreter(tfc.export_tflite(model, tmp_path / "m", batch_size=2).path)
    (details,) = runner.get_input_details()
    assert tuple(details["shape"]) == (2, 8, 8, 3)
    with pytest.raises(RuntimeError, match="only allows mutating unknown dimensions"):
        runner.resize_tensor_input(details["index"], (5, 8, 8, 3), strict=True)


@pytest.mark.slow
def test_weights_of_loops_are_seen(tmp_path):
    inputs = keras.Input((3, 4))
    model = keras.Model(inputs, layers.LSTM(20)(inputs))
    path = tfc.export_tflite(model, tmp_path / "m").path
    file = read_tflite(path)
    assert file.bodies and "WHILE" in file.operator_counts()
    # Both kernels and the bias; the initial states are zeros besides.
    assert tfc.measure(path).nonzero_parameters >= 4 * 20 * (4 + 20)
