"""`tfc.quantize_aware`: what it builds, trains and refuses."""

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from networks import Subclassed, compiled, conv_net, image_data, zeros

import tfcompress as tfc
from tfcompress.deploy.runtime import TFLiteRunner
from tfcompress.layers import FakeQuant, TransformWeights
from tfcompress.passes.export_graph import export_graph


def quantizers(model):
    return {q.name: q for q in model._flatten_layers() if isinstance(q, FakeQuant)}


def test_the_original_model_is_left_as_it_was():
    x, _ = image_data()
    model = conv_net()
    before, config = model.get_weights(), model.get_config()
    tfc.quantize_aware(model, calibration_data=x)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert model.get_config() == config
    assert model.get_layer("conv").output.shape == (None, 8, 8, 8)


def test_predictions_stay_close_to_the_float_model():
    x, y = image_data()
    model = compiled(conv_net())
    model.fit(x, y, epochs=5, verbose=0)
    qat = tfc.quantize_aware(model, calibration_data=x)
    # Eight bits of 0 to 1 are steps of 0.004; a few of them add up over six layers.
    difference = np.abs(qat.predict(x, verbose=0) - model.predict(x, verbose=0))
    assert difference.max() < 0.1
    assert difference.mean() < 0.01


def test_calibrated_ranges_are_the_extremes_of_the_float_activations():
    x, _ = image_data()
    model = conv_net()
    qat = tfc.quantize_aware(model, calibration_data=x)
    found = quantizers(qat)
    assert found["image_quant"].observed[:2, 0].numpy().tolist() == [x.min(), x.max()]
    # The grid holds both ends of an input that is about as wide below zero.
    assert found["image_quant"].range() == pytest.approx((x.min(), x.max()), rel=0.005)
    activations = keras.Model(model.inputs[0], model.get_layer("conv_relu").output)
    # The convolution runs with rounded weights: up to 1/254 of the largest off.
    expected = np.asarray(activations(x)).max()
    np.testing.assert_allclose(found["conv_relu_quant"].range()[1], expected, rtol=0.05)


def test_one_quantizer_serves_what_has_one_scale():
    inputs = keras.Input((8, 8, 3), name="image")
    a = layers.Conv2D(4, 1, activation="relu", name="a")(inputs)
    b = layers.Conv2D(4, 3, padding="same", name="b")(inputs)
    joined = layers.Concatenate(name="join")([a, layers.AveragePooling2D(1)(b)])
    outputs = layers.Conv2D(2, 1, name="out")(layers.MaxPooling2D()(joined))
    qat = tfc.quantize_aware(keras.Model(inputs, outputs))
    found = quantizers(qat)
    assert {name: q.sites for name, q in found.items()} == {
        "image_quant": 1,
        "join_quant": 2,
        "out_quant": 1,
    }


def test_a_prescribed_range_is_rounded_again_where_it_is_joined_with_another():
    x, _ = image_data(16)
    inputs = keras.Input((8, 8, 3), name="image")
    gate = layers.Conv2D(4, 1, activation="sigmoid", name="gate")(inputs)
    value = layers.Conv2D(4, 1, name="value")(inputs)
    outputs = layers.Concatenate(name="join")([layers.Reshape((8, 8, 4))(gate), value])
    qat = tfc.quantize_aware(keras.Model(inputs, outputs), calibration_data=x)
    found = quantizers(qat)
    assert found["gate_sigmoid_quant"].range() == (0, 255 / 256)
    low, high = found["join_quant"].range()
    step = (high - low) / 255
    values = qat.predict(x, verbose=0) / step
    # float32: a whole number of steps up to rounding of the quotient.
    np.testing.assert_allclose(values, np.round(values), atol=1e-3)


def test_nothing_is_quantized_between_kernel_normalization_and_relu():
    qat = tfc.quantize_aware(conv_net())
    assert set(quantizers(qat)) == {
        "image_quant",
        "conv_relu_quant",
        "depthwise_relu_quant",
        "add_quant",
        "hidden_quant",
        "classifier_quant",
        "classifier_softmax_quant",
    }


def test_kernels_lie_on_255_values_a_channel():
    qat = tfc.quantize_aware(conv_net())
    for layer in qat.layers:
        if isinstance(layer, TransformWeights):
            kernel = layer.effective_weights()["kernel"]
            depthwise = isinstance(layer.layer, layers.DepthwiseConv2D)
            flat = kernel.reshape(
                -1, np.prod(kernel.shape[-2:] if depthwise else kernel.shape[-1:])
            )
            steps = flat / (np.abs(flat).max(axis=0) / 127)
            # float32 division: a few ulp of numbers up to 127.
            np.testing.assert_allclose(steps, np.round(steps), atol=1e-4)


def test_training_learns_and_the_export_graph_computes_the_same():
    x, y = image_data()
    qat = compiled(tfc.quantize_aware(conv_net()))
    qat.fit(x, y, epochs=6, verbose=0)
    assert qat.evaluate(x, y, verbose=0)[1] > 0.95
    exported = export_graph(qat)
    kinds = {type(layer).__name__ for layer in exported.layers}
    assert not kinds & {"BatchNormalization", "TransformWeights", "FakeQuant"}
    # Folding changes the order of float operations; where a value sits on the border
    # of two steps it may fall to the other one: one step of softmax is 1/256.
    difference = np.abs(exported.predict(x, verbose=0) - qat.predict(x, verbose=0))
    assert difference.max() <= 2 / 256 + 1e-6
    assert np.mean(difference == 0) > 0.95


def test_zeros_survive_quantization_and_the_training_after_it():
    x, y = image_data()
    model = compiled(conv_net())
    model.fit(x, y, epochs=4, verbose=0, callbacks=[tfc.Pruning(0.8)])
    zero = model.get_layer("hidden").kernel.numpy() == 0
    qat = compiled(tfc.quantize_aware(model))
    qat.fit(x, y, epochs=2, verbose=0)
    kernel = qat.get_layer("hidden").effective_weights()["kernel"]
    assert (kernel[zero] == 0).all()
    # Small weights may round to zero as well, but not all of them.
    assert zero.mean() <= np.mean(kernel == 0) < 0.9


@pytest.mark.slow
def test_preserve_nothing_lets_zeros_go():
    x, y = image_data()
    model = compiled(conv_net())
    model.fit(x, y, epochs=4, verbose=0, callbacks=[tfc.Pruning(0.8)])
    qat = compiled(tfc.quantize_aware(model, preserve=()))
    qat.fit(x, y, epochs=2, verbose=0)
    kernel = qat.get_layer("hidden").effective_weights()["kernel"]
    assert np.mean(kernel == 0) < 0.7


def test_a_zero_initialised_kernel_is_no_mask():
    inputs = keras.Input((4,))
    outputs = layers.Dense(3, kernel_initializer="zeros")(inputs)
    qat = tfc.quantize_aware(keras.Model(inputs, outputs))
    (wrapper,) = [v for v in qat.layers if isinstance(v, TransformWeights)]
    assert [type(t).__name__ for t in wrapper.transforms["kernel"]] == [
        "FakeQuantizeWeight"
    ]


def test_pruning_and_quantization_train_together():
    x, y = image_data()
    qat = compiled(tfc.quantize_aware(conv_net(), calibration_data=x))
    qat.fit(
        x,
        y,
        epochs=6,
        verbose=0,
        callbacks=[tfc.Pruning(0.7, scope="layer", skip_small_and_last=False)],
    )
    assert min(zeros(qat)) > 0.69
    assert qat.evaluate(x, y, verbose=0)[1] > 0.9


def test_sequential_nested_shared_and_many_inputs():
    encoder = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, name="conv"),
            layers.BatchNormalization(),
            layers.ReLU(),
        ],
        name="encoder",
    )
    a, b = keras.Input((8, 8, 3), name="a"), keras.Input((8, 8, 3), name="b")
    both = encoder(a) + encoder(b)
    pooled = layers.GlobalAveragePooling2D()(both)
    model = keras.Model(
        {"a": a, "b": b},
        {
            "p": layers.Dense(3, activation="softmax")(pooled),
            "q": layers.Dense(1)(pooled),
        },
    )
    x, _ = image_data(40)
    data = {"a": x, "b": x[::-1]}
    qat = tfc.quantize_aware(model, calibration_data=data)
    wrapped = [v.name for v in qat.layers if isinstance(v, TransformWeights)]
    assert wrapped[0] == "encoder_conv" and len(wrapped) == 3
    found, expected = qat.predict(data, verbose=0), model.predict(data, verbose=0)
    for key in ("p", "q"):
        np.testing.assert_allclose(found[key], expected[key], atol=0.05)


def test_every_activation_of_the_relu_family():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="relu6")(inputs)
    x = layers.LeakyReLU(negative_slope=0.1)(x)
    x = layers.Conv2D(4, 1)(x)
    x = layers.PReLU(shared_axes=[1, 2])(x)
    x = layers.Activation("tanh")(x)
    x = keras.ops.relu(layers.ZeroPadding2D()(x))
    model = keras.Model(inputs, layers.Dense(2, activation="sigmoid")(x))
    data, _ = image_data(16)
    qat = tfc.quantize_aware(model, calibration_data=data)
    np.testing.assert_allclose(
        qat.predict(data, verbose=0), model.predict(data, verbose=0), atol=0.03
    )


def test_an_activation_given_as_a_layer():
    x, _ = image_data(16)
    inputs = keras.Input((8, 8, 3))
    outputs = layers.Conv2D(4, 3, activation=layers.LeakyReLU())(inputs)
    model = keras.Model(inputs, outputs)
    qat = tfc.quantize_aware(model, calibration_data=x)
    np.testing.assert_allclose(
        qat.predict(x, verbose=0), model.predict(x, verbose=0), atol=0.1
    )


def test_a_batch_that_overflows_does_not_ruin_the_ranges():
    x, _ = image_data(64)
    qat = tfc.quantize_aware(conv_net(), calibration_data=x)
    before = quantizers(qat)["image_quant"].range()
    for bad in (np.inf, -np.inf, np.nan):
        qat(np.full_like(x, bad), training=True)
    assert quantizers(qat)["image_quant"].range() == before
    assert np.isfinite([q.range() for q in quantizers(qat).values()]).all()


# Bad input.


def test_a_distiller_is_refused_with_advice():
    with pytest.raises(ValueError, match="Quantize its student"):
        tfc.quantize_aware(tfc.distill(conv_net(), conv_net()))


@keras.saving.register_keras_serializable(package="tests")
class Opaque(layers.Layer):
    """Uses TensorFlow directly, which Keras does not record."""

    def call(self, inputs):
        return tf.sin(inputs)


def _with_opaque_layers():
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, name="first")(inputs)
    x = Opaque(name="wave")(x)
    x = layers.Conv2D(4, 3, name="second")(x)
    return keras.Model(inputs, keras.ops.cumsum(x, axis=1))


def test_layers_without_an_integer_form_are_all_named_with_the_reason():
    with pytest.raises(ValueError) as error:
        tfc.quantize_aware(_with_opaque_layers())
    for text in (
        "Cannot quantize 2 layer(s)",
        "'wave' (Opaque): The call of 'wave' (Opaque) cannot be recorded",
        "Cumsum",
        "allow_float",
    ):
        assert text in str(error.value)


def test_layers_may_stay_float_by_name_and_the_rest_is_quantized():
    x, _ = image_data(16)
    model = _with_opaque_layers()
    qat = tfc.quantize_aware(model, calibration_data=x, allow_float=["wave", "cumsum"])
    # What the island reads and what reads the island is rounded; it is not.
    assert set(quantizers(qat)) == {
        "image_quant",
        "first_quant",
        "wave_quant",
        "second_quant",
    }
    np.testing.assert_allclose(
        qat.predict(x, verbose=0), model.predict(x, verbose=0), atol=0.1
    )


def test_batch_normalization_of_another_axis_is_refused():
    inputs = keras.Input((8, 8, 3))
    outputs = layers.BatchNormalization(axis=2, name="columns")(inputs)
    with pytest.raises(ValueError, match="'columns'.*normalizes axis 2"):
        tfc.quantize_aware(keras.Model(inputs, outputs))


def test_masked_sequences_are_refused():
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(10, 4, mask_zero=True)(inputs)
    model = keras.Model(inputs, layers.LSTM(3, name="lstm")(x))
    with pytest.raises(ValueError, match="'lstm' .LSTM.*mask"):
        tfc.quantize_aware(model)


def test_a_subclassed_model_becomes_functional_and_learns():
    x, y = image_data()
    model = Subclassed()
    model(x)
    qat = compiled(tfc.quantize_aware(model, calibration_data=x))
    qat.fit(x, y, epochs=6, verbose=0)
    assert qat.evaluate(x, y, verbose=0)[1] > 0.9


def test_rules_choose_bits_and_what_stays_float():
    x, _ = image_data(16)
    qat = tfc.quantize_aware(
        conv_net(),
        calibration_data=x,
        rules=[
            tfc.Rule("^hidden$", weight_bits=4, per_channel=False),
            tfc.Rule("classifier", quantize=False),
        ],
    )
    assert isinstance(qat.get_layer("classifier"), layers.Dense)
    kernel = qat.get_layer("hidden").effective_weights()["kernel"]
    assert len(np.unique(kernel)) <= 15
    assert len(np.unique(qat.get_layer("conv").effective_weights()["kernel"])) > 15


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (tfc.Rule("nowhere", weight_bits=4), "matches nothing"),
        (tfc.Rule("hidden", weight_bits=9), "`weight_bits` must be one of"),
        (tfc.Rule("hidden", colour="red"), "A rule cannot set"),
        (tfc.Rule("hidden", activation_bits=16), "what activations have in common"),
        (tfc.Rule("hidden", ranges="kl"), "what activations have in common"),
    ],
)
def test_rules_out_of_place(rule, text):
    with pytest.raises(ValueError, match=text):
        tfc.quantize_aware(conv_net(), rules=[rule])


@pytest.mark.parametrize("weights", ["learned_step", "ternary", "binary"])
def test_scales_that_are_trained_are_no_powers_of_two(weights):
    with pytest.raises(ValueError, match="take weights='max'"):
        tfc.QuantizationConfig(weights=weights, power_of_two=True)


@pytest.mark.parametrize("ranges", ["moving_average", "percentile", "kl"])
def test_ranges_by_other_methods_leave_an_outlier_out(ranges):
    x, _ = image_data(128)
    spoilt = x.copy()
    spoilt[0, 0, 0, 0] = 100.0
    qat = tfc.quantize_aware(
        conv_net(),
        tfc.QuantizationConfig(ranges=ranges, percentile=99.9),
        calibration_data=spoilt,
    )
    assert quantizers(qat)["image_quant"].range()[1] < 60


def test_ids_that_index_a_table_are_integers():
    inputs = keras.Input((4,), name="tokens")
    x = layers.Embedding(1000, 3)(inputs)
    qat = tfc.quantize_aware(keras.Model(inputs, layers.Flatten()(x)))
    assert qat.inputs[0].dtype == "int32"
    assert set(quantizers(qat)) == {"embedding_quant"} or len(quantizers(qat)) == 1


def test_quantizing_twice_is_refused():
    with pytest.raises(ValueError, match="already"):
        tfc.quantize_aware(tfc.quantize_aware(conv_net()))


def test_an_unknown_config_or_preserve():
    with pytest.raises(ValueError, match="Received: config='int3'"):
        tfc.quantize_aware(conv_net(), "int3")
    with pytest.raises(ValueError, match="`preserve`"):
        tfc.quantize_aware(conv_net(), preserve=("channels",))


def test_calibration_data_are_checked():
    model = conv_net()
    x, _ = image_data(4)
    for data, text in (
        (x[:, :4], "does not fit"),
        (x[:0], "empty"),
        (np.full_like(x, np.nan), "NaN or infinite"),
        ("data.npz", "must be arrays"),
    ):
        with pytest.raises((ValueError, TypeError), match=text):
            tfc.quantize_aware(model, calibration_data=data)


def test_export_before_any_data_says_what_to_do():
    with pytest.raises(ValueError, match="Pass `calibration_data`"):
        export_graph(tfc.quantize_aware(conv_net()))


def test_a_linear_activation_has_no_quantizer_of_its_own(tmp_path):
    inputs = keras.Input((4,))
    x = keras.layers.Dense(3)(inputs)
    x = keras.layers.Activation("linear")(x)
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    qat = tfc.quantize_aware(model)
    # Input, the first layer's output and the second's.
    assert len(tfc.graph.find_layers(qat, FakeQuant)) == 3
    data = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    qat.compile("sgd", "mse")
    qat.fit(data, data[:, :2], epochs=3, verbose=0)
    assert tfc.export_tflite(qat, tmp_path / "m.tflite", kind="int8").fully_integer


@pytest.fixture
def least_recursion():
    """Python's limit as low as building the float model below it allows."""
    before = sys.getrecursionlimit()
    yield lambda: sys.setrecursionlimit(350)
    sys.setrecursionlimit(before)


def test_a_model_nearly_as_deep_as_python_allows(tmp_path, least_recursion):
    """Keras walks graphs by recursion; quantizers make a chain twice as long."""
    x = inputs = keras.Input((2,))
    for _ in range(170):
        x = layers.Activation("tanh")(x)
    model = keras.Model(inputs, x)
    least_recursion()
    keras.Model(inputs, x)
    qat = tfc.quantize_aware(model)
    qat.save(tmp_path / "deep.keras")
    least_recursion()
    again = keras.models.load_model(tmp_path / "deep.keras")
    assert len(again.layers) == len(qat.layers) > 300
    least_recursion()
    with pytest.raises(RecursionError):
        keras.Model(qat.inputs, qat.outputs)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rules": tfc.Rule("conv", weight_bits=4)}, TypeError, "list of tfc.Rule"),
        ({"rules": {"conv": 4}}, TypeError, "list of tfc.Rule"),
        ({"rules": [tfc.Rule("conv", quantize=0)]}, TypeError, "True or False"),
        (
            {"rules": [tfc.Rule("conv", quantize=False, weight_bits=4)]},
            ValueError,
            "can set nothing else",
        ),
        ({"preserve": "zeros"}, TypeError, "must be a tuple"),
        ({"preserve": None}, TypeError, "must be a tuple"),
        ({"preserve": ("zero",)}, ValueError, "may hold 'zeros'"),
        ({"allow_float": ["nope"]}, ValueError, "`allow_float`: 'nope' matches"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_wrong_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        tfc.quantize_aware(conv_net(), **arguments)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("per_channel", "no"),
        ("power_of_two", 1),
        ("weight_bits", 8.0),
        ("weight_bits", True),
        ("momentum", "a"),
        ("weights", None),
    ],
)
def test_settings_of_another_type_are_named(setting, value):
    with pytest.raises(TypeError, match=f"`{setting}` must be"):
        tfc.QuantizationConfig(**{setting: value})


def test_augmentation_trains_and_is_gone_in_the_file(tmp_path):
    x, y = image_data(32)
    stem = [keras.Input(x.shape[1:]), layers.RandomFlip(), layers.RandomRotation(0.1)]
    rest = [layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(3, name="scores")]
    model = keras.Sequential([*stem, layers.RandomContrast(0.2), *rest])
    qat = tfc.quantize_aware(model, calibration_data=x)
    once = qat(x[:4], training=False)
    np.testing.assert_array_equal(once, qat(x[:4], training=False))
    assert np.any(qat(x[:4], training=True) != once)
    qat.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    qat.fit(x, y, verbose=0)
    result = tfc.export_tflite(qat, tmp_path / "m.tflite", kind="int8")
    assert result.fully_integer and set(result.operators) == {
        "CONV_2D",
        "RESHAPE",
        "FULLY_CONNECTED",
    }


@pytest.mark.parametrize("config", ["int8", "int16x8"])
@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_a_dead_activation_exports(config, activation, tmp_path):
    inputs = keras.Input((10,))
    ones = {"kernel_initializer": "ones", "activation": activation}
    x = layers.Dense(4, **ones)(inputs)
    model = keras.Model(inputs, layers.Dense(3, bias_initializer="ones")(x))
    data = -np.abs(np.random.default_rng(0).normal(size=(32, 10))).astype("float32")
    qat = tfc.quantize_aware(model, config, calibration_data=data)
    path = tfc.export_tflite(qat, tmp_path / "m.tflite", kind=config, io="float32").path
    np.testing.assert_allclose(TFLiteRunner(path).predict([data])[0], 1, atol=0.01)


def test_a_range_narrower_than_a_file_can_hold_is_named(tmp_path, caplog):
    inputs = keras.Input((4,), name="tiny")
    model = keras.Model(inputs, layers.Dense(2)(inputs))
    data = np.full((8, 4), 1e-9, "float32")
    qat = tfc.quantize_aware(model, calibration_data=data)
    tfc.export_tflite(qat, tmp_path / "m.tflite", kind="int8")
    assert "tiny_quant saw values from 0 to 1e-09 only" in caplog.text


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("gelu", lambda x: layers.Activation("gelu")(x)),
        ("log_softmax", lambda x: keras.ops.log_softmax(x)),
        ("Log", lambda x: keras.ops.log(x)),
        ("Greater", lambda x: keras.ops.where(keras.ops.greater(x, 0.2), x, -1.0)),
        ("UpSampling2D", lambda x: layers.UpSampling2D()(x)),
        ("PReLU", lambda x: layers.PReLU()(x)),
    ],
)
def test_what_has_no_16_bit_form_is_refused_at_the_door(name, make):
    inputs = keras.Input((4, 4, 2))
    model = keras.Model(inputs, make(inputs))
    with pytest.raises(ValueError, match=f"{name}.*activations of 16 bits"):
        tfc.quantize_aware(model, "int16x8")
    tfc.quantize_aware(model, "int8")


@pytest.mark.parametrize("find", ["argmax", "argmin"])
def test_the_class_itself_may_be_an_output(find, tmp_path):
    inputs = keras.Input((10,))
    scores = layers.Dense(4, name="scores")(inputs)
    best = getattr(keras.ops, find)(scores, axis=-1)
    kept = getattr(keras.ops, find)(scores, axis=1, keepdims=True)
    model = keras.Model(inputs, {"scores": scores, "best": best, "kept": kept})
    x = np.random.default_rng(0).normal(size=(64, 10)).astype("float32")
    qat = tfc.quantize_aware(model, calibration_data=x)
    result = tfc.export_tflite(qat, tmp_path / "m.tflite", kind="int8", io="float32")
    assert result.fully_integer
    runner = TFLiteRunner(result.path)
    found = dict(
        zip(sorted(["scores", "best", "kept"]), runner.predict([x]), strict=True)
    )
    expected = qat.predict(x, verbose=0)
    np.testing.assert_array_equal(found["best"], expected["best"])
    np.testing.assert_array_equal(found["kept"], expected["kept"])
