"""`tfc.export_tflite`: files that are what they say, and old files that survive."""

import os

import keras
import numpy as np
import pytest
from keras import layers
from networks import Subclassed, compiled, conv_net, image_data

import tfcompress as tfc
from tfcompress.deploy.runtime import TFLiteRunner
from tfcompress.deploy.tflite import NotFullyIntegerError


@pytest.fixture(scope="module")
def trained():
    """A trained float model and its quantization-aware form."""
    keras.utils.set_random_seed(0)
    x, y = image_data()
    model = compiled(conv_net())
    model.fit(x, y, epochs=4, verbose=0)
    qat = compiled(tfc.quantize_aware(model, calibration_data=x))
    qat.fit(x, y, epochs=1, verbose=0)
    return model, qat


def test_the_float_file_computes_what_keras_does(trained, tmp_path):
    model, _ = trained
    x, _ = image_data(64, seed=1)
    result = tfc.export_tflite(model, tmp_path / "m.tflite")
    found = TFLiteRunner(result.path).predict([x])[0]
    # Other kernels sum in another order.
    np.testing.assert_allclose(found, model.predict(x, verbose=0), atol=1e-5)
    assert not result.fully_integer
    assert result.bytes == os.path.getsize(result.path)


def test_the_integer_file_agrees_with_the_trained_model(trained, tmp_path):
    _, qat = trained
    x, _ = image_data(128, seed=1)
    result = tfc.export_tflite(qat, tmp_path / "m.tflite", kind="int8")
    assert result.fully_integer and not result.float_operators
    assert set(result.tensor_types) <= {"INT8", "INT32"}
    assert result.operators["DEPTHWISE_CONV_2D"] == 1
    found = TFLiteRunner(result.path).integers([x])[0].astype(int)
    expected = np.round(qat.predict(x, verbose=0) * 256).astype(int) - 128
    # One step of an inner tensor that falls the other way moves softmax by a few.
    assert np.mean(found == expected) > 0.9
    assert np.abs(found - expected).max() <= 3
    assert np.mean(found.argmax(1) == expected.argmax(1)) >= 0.99


@pytest.mark.parametrize(
    ("io", "dtype"), [("int8", np.int8), ("uint8", np.uint8), ("float32", np.float32)]
)
def test_inputs_and_outputs_have_the_asked_type(trained, tmp_path, io, dtype):
    model, qat = trained
    x, _ = image_data(32, seed=1)
    result = tfc.export_tflite(qat, tmp_path / "m.tflite", kind="int8", io=io)
    assert result.fully_integer
    runner = TFLiteRunner(result.path)
    assert runner.inputs[0]["dtype"] == dtype and runner.outputs[0]["dtype"] == dtype
    found = runner.predict([x])[0]
    assert np.mean(found.argmax(1) == model.predict(x, verbose=0).argmax(1)) > 0.95


def test_a_plain_model_becomes_integer_by_calibration(trained, tmp_path):
    model, _ = trained
    x, y = image_data(64, seed=1)
    result = tfc.export_tflite(
        model, tmp_path / "m.tflite", kind="int8", calibration_data=(x, y)
    )
    assert result.fully_integer
    found = TFLiteRunner(result.path).predict([x])[0]
    np.testing.assert_allclose(found, model.predict(x, verbose=0), atol=0.1)


@pytest.mark.slow
def test_pruned_weights_are_zeros_in_the_file(tmp_path):
    x, y = image_data()
    model = compiled(conv_net())
    model.fit(
        x,
        y,
        epochs=3,
        verbose=0,
        callbacks=[tfc.Pruning(0.8, scope="layer", skip_small_and_last=False)],
    )
    qat = tfc.quantize_aware(model, calibration_data=x)
    result = tfc.export_tflite(qat, tmp_path / "m.tflite", kind="int8")
    for name, _, sparsity in tfc.measure(result.path).kernels:
        assert sparsity >= 0.79, name
    dense = tfc.export_tflite(
        tfc.quantize_aware(conv_net(), calibration_data=x),
        tmp_path / "d.tflite",
        kind="int8",
    )
    assert result.gzip_bytes < dense.gzip_bytes


@pytest.mark.slow
def test_several_inputs_and_outputs(tmp_path):
    a, b = keras.Input((4,), name="a"), keras.Input((6,), name="b")
    joined = layers.Concatenate()([layers.Dense(5)(a), layers.Dense(5)(b)])
    model = keras.Model(
        {"a": a, "b": b},
        [layers.Dense(2, activation="softmax")(joined), layers.Dense(3)(joined)],
    )
    rng = np.random.default_rng(0)
    data = {
        k: rng.normal(size=(32, n)).astype("float32") for k, n in (("a", 4), ("b", 6))
    }
    expected = model.predict(data, verbose=0)
    inputs = [data["a"], data["b"]]
    for kind, atol, source in (
        ("float32", 1e-5, model),
        ("int8", 0.1, tfc.quantize_aware(model, calibration_data=data)),
        ("int8", 0.1, model),
    ):
        more = {"calibration_data": data} if source is model and kind == "int8" else {}
        path = tmp_path / "m.tflite"
        tfc.export_tflite(source, path, kind=kind, **more)
        found = TFLiteRunner(path).predict(inputs)
        for f, e in zip(found, expected, strict=True):
            np.testing.assert_allclose(f, e, atol=atol)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_a_mixed_precision_model_exports_in_float32(policy, tmp_path):
    x, _ = image_data(16)
    inputs = keras.Input((8, 8, 3))
    y = layers.Conv2D(4, 3, activation="relu", dtype=policy)(inputs)
    y = layers.Dense(3, dtype=policy)(layers.Flatten(dtype=policy)(y))
    model = keras.Model(inputs, layers.Activation("softmax", dtype="float32")(y))
    result = tfc.export_tflite(model, tmp_path / "m.tflite")
    found = TFLiteRunner(result.path).predict([x])[0]
    # bfloat16 has 8 significant bits.
    np.testing.assert_allclose(found, model.predict(x, verbose=0), atol=0.02)


@pytest.mark.slow
def test_a_fixed_batch_size_is_filled_up(trained, tmp_path):
    model, _ = trained
    x, y = image_data(10, seed=1)
    result = tfc.export_tflite(model, tmp_path / "m.tflite", batch_size=4)
    found = TFLiteRunner(result.path).predict([x])[0]
    np.testing.assert_allclose(found, model.predict(x, verbose=0), atol=1e-5)
    assert tfc.measure(result.path, (x, y)).accuracy is not None


def test_an_open_batch_size(trained, tmp_path):
    _, qat = trained
    result = tfc.export_tflite(qat, tmp_path / "m.tflite", kind="int8", batch_size=None)
    runner = TFLiteRunner(result.path)
    assert runner.inputs[0]["shape_signature"][0] == -1


def test_nothing_is_printed(trained, tmp_path, capfd):
    model, qat = trained
    x, _ = image_data(16)
    tfc.export_tflite(qat, tmp_path / "a.tflite", kind="int8")
    tfc.export_tflite(model, tmp_path / "b.tflite", kind="int8", calibration_data=x)
    tfc.export_tflite(model, tmp_path / "c.tflite")
    assert capfd.readouterr() == ("", "")


def test_the_result_prints_as_a_summary(trained, tmp_path):
    text = str(tfc.export_tflite(trained[1], tmp_path / "m.tflite", kind="int8"))
    assert "CONV_2D" in text and "integers only: yes" in text


# Indices, recurrent layers, float islands.


@pytest.mark.slow
@pytest.mark.parametrize("io", ["int8", "uint8", "float32"])
@pytest.mark.parametrize("quantized", [True, False])
def test_inputs_that_are_indices_stay_integers(quantized, io, tmp_path):
    words, numbers = keras.Input((6,), dtype="int32"), keras.Input((4,))
    x = layers.Flatten()(layers.Embedding(20, 8)(words))
    x = layers.Concatenate()([x, layers.Dense(5)(numbers)])
    model = keras.Model([words, numbers], layers.Dense(3)(x))
    rng = np.random.default_rng(0)
    data = [
        rng.integers(0, 20, (32, 6)).astype("int32"),
        rng.normal(size=(32, 4)).astype("float32"),
    ]
    more = {} if quantized else {"calibration_data": data}
    if quantized:
        model = tfc.quantize_aware(model, calibration_data=data)
    result = tfc.export_tflite(model, tmp_path / "m", kind="int8", io=io, **more)
    assert result.fully_integer
    runner = TFLiteRunner(result.path)
    assert [i["dtype"] for i in runner.inputs] == [np.int32, np.dtype(io)]
    np.testing.assert_allclose(
        runner.predict(data)[0], model.predict(data, verbose=0), atol=0.05
    )


def image_net(dtype="uint8", first=None):
    inputs = keras.Input((8, 8, 3), dtype=dtype, name="image")
    x = (first or layers.Rescaling(1 / 127.5, -1))(inputs)
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(x)
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


def images():
    return np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3), np.uint8)


@pytest.mark.parametrize("quantized", [True, False])
def test_an_image_of_integers_is_to_be_a_float_input(quantized, tmp_path):
    path, x = tmp_path / "m.tflite", images()

    def export(model, **settings):
        if quantized:
            qat = tfc.quantize_aware(model, calibration_data=x)
            return tfc.export_tflite(qat, path, kind="int8", **settings)
        return tfc.export_tflite(
            model, path, kind="int8", calibration_data=x, **settings
        )

    advice = (
        "Input 'image' is uint8: give the model a float32 input and pass io='uint8'"
    )
    for io in ("int8", "uint8", "float32"):
        with pytest.raises(ValueError, match=advice):
            export(image_net(), io=io)
    assert not path.exists()
    # What the message says works.
    model = image_net("float32")
    assert export(model, io="uint8").fully_integer
    runner = TFLiteRunner(path)
    assert runner.inputs[0]["dtype"] == np.uint8
    expected = model.predict(x, verbose=0)
    found = runner.predict([x.astype("float32")])[0]
    np.testing.assert_allclose(found, expected, atol=np.ptp(expected) / 50)


def test_who_allows_a_cast_gets_one(tmp_path):
    x, path = images(), tmp_path / "m.tflite"
    model = image_net()
    qat = tfc.quantize_aware(model, calibration_data=x)
    result = tfc.export_tflite(qat, path, kind="int8", allow_float=["CAST", "CONV"])
    assert result.operators["CAST"] == 1 and not result.fully_integer
    runner, expected = TFLiteRunner(path), qat.predict(x, verbose=0)
    assert runner.inputs[0]["dtype"] == np.uint8
    np.testing.assert_allclose(
        runner.predict([x])[0], expected, atol=np.ptp(expected) / 50
    )
    tfc.export_tflite(model, path)
    np.testing.assert_allclose(
        TFLiteRunner(path).predict([x])[0], model.predict(x, verbose=0), atol=1e-5
    )


def test_integers_are_followed_to_what_computes_with_them(tmp_path):
    x, path = images(), tmp_path / "m.tflite"
    crop = keras.Sequential([layers.Cropping2D(1), layers.Rescaling(1 / 255)])
    settings = {"kind": "int16x8", "calibration_data": x}
    with pytest.raises(ValueError, match="is int8: give the model a float32 input[.]"):
        tfc.export_tflite(image_net("int8", crop), path, **settings)
    words = keras.Input((6,), dtype="uint8")
    outputs = layers.Dense(3)(layers.Flatten()(layers.Embedding(20, 8)(words)))
    data = np.random.default_rng(0).integers(0, 20, (32, 6), np.uint8)
    result = tfc.export_tflite(
        keras.Model(words, outputs), path, kind="int8", calibration_data=data
    )
    assert result.fully_integer


def recurrent_net(layer):
    inputs = keras.Input((3, 4))
    return keras.Model(inputs, layers.Dense(3)(layer(inputs)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.LSTM(6),
        lambda: layers.SimpleRNN(6),
        lambda: layers.Bidirectional(layers.GRU(3)),
    ],
)
def test_recurrent_layers_in_float_and_by_calibration(layer, tmp_path):
    model = recurrent_net(layer())
    x = np.random.default_rng(0).normal(size=(32, 3, 4)).astype("float32")
    expected = model.predict(x, verbose=0)
    result = tfc.export_tflite(model, tmp_path / "f.tflite")
    np.testing.assert_allclose(
        TFLiteRunner(result.path).predict([x])[0], expected, atol=1e-5
    )
    result = tfc.export_tflite(
        model, tmp_path / "i.tflite", kind="int8", calibration_data=x
    )
    assert result.fully_integer and "WHILE" not in result.operators
    # Steps of 1/128 of the state, three times over.
    np.testing.assert_allclose(
        TFLiteRunner(result.path).predict([x])[0], expected, atol=0.1
    )


def island_net():
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(4, 3, activation="relu", name="before")(inputs)
    # More weights than the converter by itself would round to 8 bits.
    x = layers.Conv2D(40, 3, activation="elu", name="island")(x)
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "int16x8"])
def test_a_float_island_is_accepted_by_name_and_told(kind, tmp_path):
    x = np.random.default_rng(0).normal(size=(16, 8, 8, 4)).astype("float32")
    rules = [tfc.Rule("island", quantize=False)]
    qat = tfc.quantize_aware(island_net(), kind, calibration_data=x, rules=rules)
    path = tmp_path / "m.tflite"
    with pytest.raises(NotFullyIntegerError, match=r"allow_float=\['CONV_2D', 'ELU'\]"):
        tfc.export_tflite(qat, path, kind=kind)
    with pytest.raises(NotFullyIntegerError, match=r"\(DEQUANTIZE, CONV_2D\)"):
        tfc.export_tflite(qat, path, kind=kind, allow_float=["ELU"])
    assert not path.exists()
    result = tfc.export_tflite(qat, path, kind=kind, allow_float=["ELU", "^CONV"])
    assert result.float_operators == ["DEQUANTIZE", "CONV_2D", "ELU", "QUANTIZE"]
    assert not result.fully_integer and result.weights.tensors == {8: 2, 32: 1}
    found = TFLiteRunner(path).predict([x])[0]
    expected = qat.predict(x, verbose=0)
    # The weights within are as they were: no more than a step of the output is off.
    np.testing.assert_allclose(found, expected, atol=np.ptp(expected) / 200)


# Bad input: a message, and the old file stays.


@pytest.fixture
def old_file(tmp_path):
    """A file that must survive, and the folder it must stay alone in."""
    path = tmp_path / "model.tflite"
    path.write_bytes(b"the old model")
    yield path
    assert path.read_bytes() == b"the old model"
    assert list(tmp_path.iterdir()) == [path]


def test_a_plain_model_without_calibration_data(trained, old_file):
    with pytest.raises(ValueError, match="needs `calibration_data`"):
        tfc.export_tflite(trained[0], old_file, kind="int8")


def test_calibration_data_for_a_model_that_has_ranges(trained, old_file):
    with pytest.raises(ValueError, match="has ranges of its own"):
        tfc.export_tflite(trained[1], old_file, kind="int8", calibration_data=1)


def test_calibration_data_for_a_float_file(trained, old_file):
    with pytest.raises(ValueError, match="pass kind='int8'"):
        tfc.export_tflite(trained[0], old_file, calibration_data=image_data(4)[0])


def test_calibration_data_of_the_wrong_type(trained, old_file):
    with pytest.raises(TypeError, match="must be arrays, a tf.data.Dataset"):
        tfc.export_tflite(trained[0], old_file, kind="int8", calibration_data=3)


def test_calibration_data_of_the_wrong_shape(trained, old_file):
    with pytest.raises(ValueError, match="does not fit"):
        tfc.export_tflite(
            trained[0], old_file, kind="int8", calibration_data=np.zeros((4, 9, 8, 3))
        )


def test_infinite_calibration_data(trained, old_file):
    x = np.full((4, 8, 8, 3), np.inf)
    with pytest.raises(ValueError, match="NaN or infinite"):
        tfc.export_tflite(trained[0], old_file, kind="int8", calibration_data=x)


def test_nan_weights(old_file):
    model = conv_net()
    model.get_layer("conv").kernel.assign(np.full((3, 3, 3, 8), np.nan))
    with pytest.raises(ValueError, match="NaN or infinite weights"):
        tfc.export_tflite(model, old_file)


def test_what_stays_float_is_named(old_file):
    x, _ = image_data(16)
    inputs = keras.Input((8, 8, 3))
    outputs = layers.Activation("elu")(layers.Conv2D(4, 3)(inputs))
    model = keras.Model(inputs, outputs)
    with pytest.raises(NotFullyIntegerError, match=r"ELU"):
        tfc.export_tflite(model, old_file, kind="int8", calibration_data=x)


def test_unknown_kind_and_io(trained, old_file):
    with pytest.raises(ValueError, match="Received: kind='int7'"):
        tfc.export_tflite(trained[0], old_file, kind="int7")
    with pytest.raises(ValueError, match="Received: io='int16'"):
        tfc.export_tflite(trained[0], old_file, kind="int8", io="int16")
    with pytest.raises(ValueError, match="kind='int16x8' must be one of .'int16', "):
        tfc.export_tflite(trained[0], old_file, kind="int16x8", io="int8")


def test_unknown_pack(trained, old_file):
    with pytest.raises(ValueError, match="'dense', True or False. Received: pack='c"):
        tfc.export_tflite(trained[1], old_file, kind="int8", pack="conv")


def test_16_bits_of_a_plain_model_without_calibration_data(trained, old_file):
    with pytest.raises(ValueError, match="An int16x8 file of a plain model needs"):
        tfc.export_tflite(trained[0], old_file, kind="int16x8")


def test_a_recurrent_layer_that_cannot_be_unrolled(old_file):
    model = recurrent_net(layers.RNN(layers.LSTMCell(3)))
    x = np.zeros((4, 3, 4), "float32")
    with pytest.raises(ValueError, match="'rnn'(?s:.*)through `quantize_aware`. Call"):
        tfc.export_tflite(model, old_file, kind="int8", calibration_data=x)


def test_a_missing_folder_and_a_folder_as_path(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        tfc.export_tflite(trained[0], tmp_path / "none" / "m.tflite")
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        tfc.export_tflite(trained[0], tmp_path)


def test_a_read_only_folder(trained, tmp_path, monkeypatch):
    # Tests may run as root, whom no permission stops.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="the folder is read-only"):
        tfc.export_tflite(trained[0], tmp_path / "m.tflite")


def test_a_subclassed_model_without_inputs(old_file):
    model = Subclassed()
    model(image_data(4)[0])
    with pytest.raises(ValueError, match="has no symbolic inputs. Wrap it"):
        tfc.export_tflite(model, old_file)


def test_a_model_that_is_no_model(old_file):
    with pytest.raises(TypeError, match="must be a Keras 3 model"):
        tfc.export_tflite("model.keras", old_file)


def test_a_wrapped_subclassed_model_exports(tmp_path):
    x, _ = image_data(16)
    model = Subclassed()
    inputs = keras.Input((8, 8, 3))
    wrapped = keras.Model(inputs, model(inputs))
    result = tfc.export_tflite(wrapped, tmp_path / "m.tflite")
    np.testing.assert_allclose(
        TFLiteRunner(result.path).predict([x])[0],
        model.predict(x, verbose=0),
        atol=1e-5,
    )


@pytest.mark.parametrize("batch_size", [0, -3, 1.5, "8", True])
def test_a_batch_size_that_is_none(batch_size, tmp_path):
    (tmp_path / "m").write_bytes(b"older")
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    with pytest.raises(ValueError, match="`batch_size` must be a positive integer"):
        tfc.export_tflite(model, tmp_path / "m", batch_size=batch_size)
    assert (tmp_path / "m").read_bytes() == b"older"


class Fails(layers.Layer):
    def call(self, inputs, training=None):
        if training is False:
            raise RuntimeError("no luck")
        return inputs


def test_an_error_within_a_layer_is_told_without_what_it_was_called_with(tmp_path):
    model = keras.Sequential([keras.Input((4,)), Fails(), layers.Dense(2)])
    with pytest.raises(ValueError, match="refuses model .*no luck") as error:
        tfc.export_tflite(model, tmp_path / "m")
    assert "kwargs" not in str(error.value)


USES = {
    "export_tflite": tfc.export_tflite,
    "export_onnx": tfc.export_onnx,
    "measure": lambda model, _: tfc.measure(model, (np.ones((8, 4)), np.zeros(8))),
}


@pytest.mark.parametrize("use", USES)
def test_a_name_that_no_graph_takes_is_refused_before_keras_stumbles(use, tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="my layer")])
    with pytest.raises(ValueError, match="'my layer' of model .* letters, digits"):
        USES[use](model, tmp_path / "m")
    # Keras would put the model's name in front of all that is built from then on.
    other = layers.Dense(2, name="a")
    other.build((None, 4))
    assert other.kernel.path == "a/kernel"


def test_the_name_of_a_model_is_the_outermost_scope(tmp_path):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2)(inputs), name="_net")
    with pytest.raises(ValueError, match="'_net' of model '_net'"):
        tfc.export_tflite(model, tmp_path / "m")


def test_an_input_may_have_any_name(tmp_path):
    inputs = keras.Input((4,), name="my input")
    model = keras.Model(inputs, layers.Dense(2)(inputs))
    tfc.export_tflite(model, tmp_path / "m")
    x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
    qat = tfc.quantize_aware(model, calibration_data=x)
    qat.compile("sgd", "mse")
    qat.fit(x, x[:, :2], verbose=0)
    assert tfc.export_tflite(qat, tmp_path / "q", kind="int8").fully_integer


def test_through_a_link_the_file_itself_is_written(tmp_path):
    (tmp_path / "old.tflite").write_bytes(b"older")
    (tmp_path / "link.tflite").symlink_to("old.tflite")
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    tfc.export_tflite(model, tmp_path / "link.tflite")
    assert (tmp_path / "link.tflite").is_symlink()
    assert len((tmp_path / "old.tflite").read_bytes()) > 100


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
@pytest.mark.parametrize("find", ["argmax", "argmin"])
def test_a_plain_model_may_end_in_the_index_of_the_class(find, kind, nested, tmp_path):
    inputs = keras.Input((10,))
    scores = keras.layers.Dense(4)(inputs)
    outputs = getattr(keras.ops, find)(scores, axis=-1, keepdims=nested)
    model = keras.Model(inputs, outputs)
    if nested:
        again = keras.Input((10,))
        model = keras.Model(again, model(again))
    x = np.random.default_rng(0).normal(size=(64, 10)).astype("float32")
    path = tmp_path / "m.tflite"
    data = {"calibration_data": x, "io": "float32"} if kind == "int8" else {}
    result = tfc.export_tflite(model, path, kind=kind, **data)
    assert f"ARG_{find[3:].upper()}" in result.operators
    (found,) = TFLiteRunner(path).predict([x])
    assert found.shape == ((64, 1) if nested else (64,))
    same = np.mean(found == model.predict(x, verbose=0))
    assert same == 1 if kind == "float32" else same > 0.9


def test_models_that_need_no_other_form_are_converted_as_they_are(tmp_path):
    class Own(layers.Layer):
        """Without a config of its own: it cannot be copied."""

        def __init__(self, scale):
            super().__init__()
            self.scale = scale

        def call(self, x):
            return x * self.scale

    inner = keras.Input((4,))
    base = keras.Model(inner, layers.Dense(3)(inner))
    inputs = keras.Input((4,))
    model = keras.Model(inputs, Own(np.float32(2.0))(base(inputs)))
    tfc.export_tflite(model, tmp_path / "m.tflite", kind="float32")
    tfc.export_onnx(model, tmp_path / "m.onnx")


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_the_index_of_the_class_whatever_the_global_policy(policy, tmp_path):
    before = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy(policy)
    try:
        inputs = keras.Input((10,))
        scores = layers.Dense(4, dtype="float32", name="index_of")(inputs)
        model = keras.Model(inputs, keras.ops.argmax(scores, axis=-1))
        x = np.random.default_rng(0).normal(size=(64, 10)).astype("float32")
        tfc.export_tflite(model, tmp_path / "m.tflite", kind="float32")
        (found,) = TFLiteRunner(tmp_path / "m.tflite").predict([x])
        np.testing.assert_array_equal(found, model.predict(x, verbose=0))
    finally:
        keras.mixed_precision.set_dtype_policy(before)
