"""`tfc.verify`: a good file passes everywhere, a bad one is found out."""

import importlib.util
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from networks import Subclassed, conv_net, image_data

import tfcompress as tfc
from tfcompress.deploy.tflite_file import parsed, read_tflite, serialized
from tfcompress.verify import VerificationError, runtimes

needs_micro = pytest.mark.skipif(
    importlib.util.find_spec("tflite_micro") is None,
    reason="needs tflite-micro: pip install 'tfcompress[micro]'",
)
LITERT = ("LiteRT xnnpack", "LiteRT builtin", "LiteRT reference")


@pytest.fixture(scope="module")
def images():
    return image_data(40)[0]


@pytest.fixture(scope="module")
def qat(images):
    keras.utils.set_random_seed(0)
    return tfc.quantize_aware(conv_net(), calibration_data=images)


@pytest.fixture(scope="module")
def file(qat, tmp_path_factory):
    path = tmp_path_factory.mktemp("verify") / "int8.tflite"
    return tfc.export_tflite(qat, path, kind="int8").path


@needs_micro
def test_an_integer_file_agrees_in_every_runtime(qat, file, images):
    result = tfc.verify(qat, file, images, examples=10)
    assert result.ok and not result.skipped and result.examples == 10
    assert [o.runtime for o in result.outputs] == list(runtimes.RUNTIMES)
    for output in result.outputs:
        assert (output.signature, output.output) == ("serving_default", "classifier")
        # One step of an inner tensor that falls the other way moves softmax by a few.
        assert output.difference.max_error_lsb <= 3 and output.same_class >= 0.9
    # The largest tensors are two of 8 x 8 x 8 bytes; then there is bookkeeping.
    assert 1024 < result.arena_bytes < 2**15
    text = str(result)
    assert "agrees with conv_net (10 examples" in text
    assert "arena of TFLite Micro" in text and "CONV_2D" in text


def test_operations_agree_on_equal_inputs_and_are_known_by_their_layers(
    qat, file, images
):
    result = tfc.verify(qat, file, images, runtimes=LITERT[:1])
    names = [op.operator for op in read_tflite(file).operations]
    assert [row.operator for row in result.operations] == names
    for row in result.operations:
        assert row.quantized and max(row.xnnpack, row.reference) <= 1
    layers_of = {row.operator: row.layer for row in result.operations}
    assert layers_of["CONV_2D"] == "conv_relu" and layers_of["ADD"] == "add"
    assert all(r.keras.sqnr_db > 25 for r in result.operations if r.keras is not None)
    found = tfc.debug_quantization(qat, file, images[:4])
    by_name = {row.name: row.file for row in found.layers}
    row = next(r for r in result.operations if r.operator == "CONV_2D")
    assert row.keras == by_name["conv_relu"]


@pytest.mark.parametrize(
    ("kind", "least"),
    [
        ("float32", 60),
        pytest.param("float16", 40, marks=pytest.mark.slow),
        ("int8", 12),
    ],
)
def test_a_plain_model_and_its_layers(images, tmp_path, kind, least):
    model = conv_net()
    more = {"calibration_data": images} if kind == "int8" else {}
    path = tfc.export_tflite(
        model, tmp_path / "m", kind=kind, batch_size=3, **more
    ).path
    result = tfc.verify(
        model, path, (images, np.zeros(40)), examples=7, runtimes=LITERT
    )
    assert result.ok and result.min_sqnr_db == least and result.examples == 7
    found = {row.operator: row.layer for row in result.operations if row.layer}
    # Normalization and ReLU are in the convolution's operation.
    assert found["CONV_2D"] == "conv_relu" and found["MAX_POOL_2D"] == "max_pool"
    assert found["SOFTMAX"] == "classifier"
    if kind == "float32":
        assert np.isnan(result.outputs[0].difference.max_error_lsb)
        assert all(r.keras.sqnr_db > 90 for r in result.operations if r.layer)


def test_outputs_go_by_their_names_whatever_the_order(tmp_path):
    a, b = keras.Input((4,), name="z"), keras.Input((3,), name="a")
    x = layers.Concatenate()([a, b])
    model = keras.Model(
        [a, b], {"second": layers.Dense(2)(x), "first": layers.Dense(5)(x)}
    )
    rng = np.random.default_rng(0)
    data = [rng.normal(size=(6, n)).astype("float32") for n in (4, 3)]
    path = tfc.export_tflite(model, tmp_path / "m").path
    result = tfc.verify(model, path, data)
    assert result.ok
    names = [o.output for o in result.outputs if o.runtime == "LiteRT builtin"]
    assert names == ["first", "second"]


def damaged(file, folder):
    """The file with the kernel of its last dense layer turned round."""
    content = pathlib.Path(file).read_bytes()
    model = parsed(content)
    kernel = read_tflite(file).operations[-2].inputs[1].index
    buffer = model.buffers[model.subgraphs[0].tensors[kernel].buffer]
    buffer.data = buffer.data[::-1].copy()
    path = folder / "damaged.tflite"
    path.write_bytes(serialized(model))
    return path


def test_a_file_that_computes_something_else_is_found_out(qat, file, images, tmp_path):
    path = damaged(file, tmp_path)
    result = tfc.verify(qat, path, images, runtimes=LITERT, operations=False)
    assert not result.ok and not any(output.ok for output in result.outputs)
    assert "DISAGREES" in str(result) and "too far off" in str(result)
    with pytest.raises(VerificationError, match="DISAGREES with conv_net"):
        tfc.verify(qat, path, images, runtimes=LITERT, operations=False, check=True)
    # Whoever expects less gets it.
    assert tfc.verify(
        qat, path, images, runtimes=LITERT, operations=False, min_sqnr_db=-50
    ).ok


@pytest.mark.slow
def test_a_wrong_kernel_is_at_its_layer(file, images, qat, tmp_path):
    model = conv_net()
    path = tfc.export_tflite(model, tmp_path / "m").path
    rows = tfc.verify(model, damaged(path, tmp_path), images).operations
    last = [row for row in rows if row.operator == "FULLY_CONNECTED"]
    assert last[0].layer == "hidden" and not last[1].layer


@pytest.mark.slow
@needs_micro
def test_what_a_microcontroller_cannot_run_is_said(images, tmp_path):
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(48, 3)(inputs)
    model = keras.Model(inputs, layers.Dense(40)(layers.Flatten()(x)))
    path = tfc.export_tflite(model, tmp_path / "m", kind="dynamic_range").path
    result = tfc.verify(model, path, images, operations=False)
    assert result.ok and result.arena_bytes is None
    assert "Hybrid models are not supported" in result.skipped["TFLite Micro"]
    assert "TFLite Micro: cannot run the file" in str(result)
    with pytest.raises(ValueError, match="TFLite Micro cannot run .*m': .*Hybrid"):
        tfc.verify(model, path, images, runtimes=["TFLite Micro"])
    # Asked for is asked for, in whatever place.
    with pytest.raises(ValueError, match="TFLite Micro cannot run .*m': .*Hybrid"):
        tfc.verify(model, path, images, runtimes=[LITERT[0], "TFLite Micro"])


def test_a_runtime_that_is_not_installed(qat, file, images, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = tfc.verify(qat, file, images, examples=2, operations=False)
    assert result.ok
    assert "pip install 'tfcompress[micro]'" in result.skipped["TFLite Micro"]
    with pytest.raises(ImportError, match=r"tfcompress\[micro\]"):
        tfc.verify(qat, file, images, runtimes=["TFLite Micro"])


def test_a_subclassed_model_is_compared_by_its_outputs(images, tmp_path):
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, Subclassed()(inputs))
    path = tfc.export_tflite(model, tmp_path / "m").path
    result = tfc.verify(model, path, images, runtimes=LITERT)
    assert result.ok
    # It has no layers to look at, but is one.
    assert [row.layer for row in result.operations][-1] == model.layers[-1].name
    assert not any(row.layer for row in result.operations[:-1])


def test_arguments_out_of_place(qat, file, images, tmp_path):
    with pytest.raises(ValueError, match="`runtimes` must be a list of"):
        tfc.verify(qat, file, images, runtimes=["LiteRT gpu"])
    with pytest.raises(ValueError, match="examples=0"):
        tfc.verify(qat, file, images, examples=0)
    with pytest.raises(TypeError, match="must be a Keras 3 model"):
        tfc.verify(file, file, images)
    with pytest.raises(FileNotFoundError, match="No such .tflite file"):
        tfc.verify(qat, tmp_path / "none", images)
    with pytest.raises(ValueError, match="does not belong to model"):
        tfc.verify(conv_net(classes=4), file, images)
    with pytest.raises(ValueError, match="expected shape"):
        tfc.verify(qat, file, images[:, :4])


def test_names_with_numbers_keep_the_models_order(tmp_path):
    first, second = keras.Input((4,), name="input_2"), keras.Input((4,), name="input_1")
    y = layers.Dense(3)(first) - 2 * layers.Dense(3)(second)
    model = keras.Model([first, second], y)
    path = tfc.export_tflite(model, tmp_path / "m").path
    x = [np.random.default_rng(i).normal(size=(8, 4)).astype("float32") for i in (0, 1)]
    assert tfc.verify(model, path, x, operations=False).ok


def test_a_file_with_numbers_of_no_axis(tmp_path):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, inputs / keras.ops.max(keras.ops.abs(inputs)))
    path = tfc.export_tflite(model, tmp_path / "m").path
    x = np.random.default_rng(0).normal(size=(1, 4)).astype("float32")
    assert tfc.verify(model, path, x).ok


def test_a_file_of_several_signatures_is_refused(tmp_path):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layers.Dense(2)(inputs))
    archive = keras.export.ExportArchive()
    archive.track(model)
    for name in ("first", "second"):
        spec = [keras.InputSpec(shape=(1, 3), dtype="float32")]
        archive.add_endpoint(name, model.call, input_signature=spec)
    archive.write_out(tmp_path / "saved", verbose=False)
    path = tmp_path / "two.tflite"
    converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "saved"))
    path.write_bytes(converter.convert())
    with pytest.raises(ValueError, match="3 signatures, .*'second'"):
        tfc.verify(model, path, np.zeros((1, 3)))
