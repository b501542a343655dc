"""`debug_quantization`: whose rounding costs most, and what the file makes of it."""

import dataclasses
import math

import architectures
import keras
import numpy as np
import pytest
import tensorflow as tf
from networks import conv_net, image_data

import tfcompress as tfc
from tfcompress.debug import chart, differences, file_tensors
from tfcompress.deploy.tflite_file import read_tflite
from tfcompress.graph import find_layers
from tfcompress.layers import FakeQuant

# Each test compares whole networks with their files; the command is tested by default.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("debug")


@pytest.fixture(scope="module")
def images():
    return image_data(48)[0]


@pytest.fixture(scope="module")
def qat(images):
    keras.utils.set_random_seed(0)
    return tfc.quantize_aware(conv_net(), calibration_data=images)


@pytest.fixture(scope="module")
def file(qat, folder):
    return tfc.export_tflite(qat, folder / "healthy.tflite", kind="int8").path


@pytest.fixture(scope="module")
def healthy(qat, file, images):
    return tfc.debug_quantization(qat, file, images)


def by_name(result):
    return {row.name: row for row in result.layers}


# Numbers worked by hand.


def test_signal_to_noise_by_hand():
    # 9 + 16 against (4 - 3)^2.
    sums = differences.sums(np.array([3.0, -4.0]), np.array([3.0, -3.0]))
    found = differences.difference(sums, step=0.5)
    assert found.sqnr_db == pytest.approx(10 * math.log10(25))
    assert found.max_error == 1.0 and found.max_error_lsb == 2.0


@pytest.mark.parametrize(
    "x, q, decibels",
    [
        ([1.0, 2.0], [1.0, 2.0], math.inf),
        ([0.0, 0.0], [0.0, 0.0], math.inf),
        ([0.0, 0.0], [0.0, 1.0], -math.inf),
        ([1.0, 1.0], [2.0, 0.0], 0.0),
        ([10.0], [9.0], 20.0),
    ],
)
def test_signal_to_noise_at_the_edges(x, q, decibels):
    assert differences.difference(differences.sums(x, q), step=1.0).sqnr_db == decibels


def test_batches_add_up_to_the_whole():
    x, q = np.random.default_rng(0).normal(size=(2, 10)).astype("float32")
    whole = np.asarray(differences.sums(x, q))
    parts = [np.asarray(differences.sums(x[s], q[s])) for s in (slice(4), slice(4, 10))]
    # float32 sums in another order.
    np.testing.assert_allclose(differences.add(*parts), whole, rtol=1e-6)


def test_the_errors_of_a_dense_layer_by_hand():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 6)).astype("float32")
    inputs = keras.Input((6,), name="x")
    model = keras.Model(inputs, keras.layers.Dense(4, name="dense")(inputs))
    qat = tfc.quantize_aware(model, calibration_data=x)
    kernel, bias = model.get_layer("dense").get_weights()

    def rounded(value, quantizer):
        return np.asarray(quantizer(tf.constant(value)))

    xq = rounded(x, qat.get_layer("x_quant"))
    effective = qat.get_layer("dense").effective_weights()["kernel"]
    after = rounded(xq @ effective + bias, qat.get_layer("dense_quant"))
    row = by_name(tfc.debug_quantization(qat, None, x))["dense"]
    for found, x_, q_ in (
        (row.own, xq @ kernel + bias, after),
        (row.weights, xq @ kernel + bias, xq @ effective + bias),
        (row.output, xq @ effective + bias, after),
        (row.model, x @ kernel + bias, after),
    ):
        wanted = 10 * np.log10(np.sum(x_**2) / np.sum((x_ - q_) ** 2))
        # Matrix products are summed in another order: a value may round the other way.
        assert found.sqnr_db == pytest.approx(wanted, abs=0.1)
        assert found.max_error == pytest.approx(np.abs(x_ - q_).max(), rel=0.02)
        assert found.max_error_lsb == pytest.approx(found.max_error / row.scale)


# A healthy model.


def test_a_healthy_model_has_little_noise_everywhere(healthy):
    assert len(healthy.layers) == 7 and healthy.examples == 48
    for row in healthy.layers:
        assert min(row.own.sqnr_db, row.model.sqnr_db) > 30
        # Nearest neighbours on the grid, and what 8-bit weights add to it. The range of
        # the scores is an average over batches: the largest may lie a step beyond.
        most = 1.5 if row.name == "classifier" else 0.51
        assert row.output.max_error_lsb < most and row.own.max_error_lsb < 3


def test_rows_are_ranked_by_their_own_noise(healthy):
    ranks = [row.own.sqnr_db for row in healthy.layers]
    assert ranks == sorted(ranks)
    worst = healthy.layers[0]
    assert (worst.sqnr_db, worst.max_error) == (ranks[0], worst.own.max_error)


def test_a_row_names_what_computes_the_tensor(healthy):
    rows = by_name(healthy)
    assert rows["conv_relu"].operations == ("conv", "conv_bn", "conv_relu")
    assert rows["conv_relu"].kernels == ("conv",)
    assert rows["hidden"].operations == ("max_pool", "flatten", "hidden")
    assert rows["add"].kernels == () and rows["add"].weights is None
    assert rows["image"].operations == ()


def test_every_tensor_is_found_in_the_file_within_two_steps(healthy):
    for row in healthy.layers:
        # Kernels round sums once, and TensorFlow's in floats: one step, and one that
        # it makes further on.
        assert row.file.max_error_lsb <= 2, row
    rows = by_name(healthy)
    # Names play no part in finding them, so they tell whether it was right.
    for name in ("conv_relu", "depthwise_relu", "add", "hidden", "classifier_softmax"):
        assert f"/{name}_" in rows[name].file_tensor
    assert len({row.file_tensor for row in healthy.layers}) == 7


def test_it_prints_as_a_table_worst_first(healthy):
    title, header, *rows = str(healthy).splitlines()
    assert "conv_net" in title and "48 examples" in title
    assert header.split()[0] == "layer" and "file dB" in header
    assert [row.split()[0] for row in rows] == [row.name for row in healthy.layers]


def test_without_a_file_nothing_is_said_of_it(qat, images):
    result = tfc.debug_quantization(qat, data=images, examples=5)
    assert result.examples == 5 and result.path is None
    assert all(row.file is None for row in result.layers)
    assert "file" not in str(result)


def test_the_model_stays_as_it_is(qat, images):
    before = [v.numpy() for v in qat.variables]
    outputs = qat.predict(images, verbose=0)
    nodes = [len(layer._inbound_nodes) for layer in qat.layers]
    tfc.debug_quantization(qat, None, images, examples=4)
    for old, variable in zip(before, qat.variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())
    np.testing.assert_array_equal(outputs, qat.predict(images, verbose=0))
    assert nodes == [len(layer._inbound_nodes) for layer in qat.layers]


# One layer that was broken on purpose.


def outlier(images):
    """One huge weight in each channel: the others fall between two integers."""
    model = conv_net()
    kernel = model.get_layer("hidden").kernel
    values = kernel.numpy()
    values[0] = 100 * np.abs(values).max(axis=0)
    kernel.assign(values)
    return tfc.quantize_aware(model, calibration_data=images)


def wide(images):
    """A range fifty times too wide: five of 256 integers are left."""
    qat = tfc.quantize_aware(conv_net(), calibration_data=images)
    quantizer = qat.get_layer("add_quant")
    low, high = quantizer.range()
    quantizer.set_range(0, 50 * low, 50 * high)
    return qat


def narrow(images):
    """A range that cuts most values off."""
    qat = tfc.quantize_aware(conv_net(), calibration_data=images)
    quantizer = qat.get_layer("conv_relu_quant")
    quantizer.set_range(0, 0.0, quantizer.range()[1] / 20)
    return qat


def two_bits(images):
    """Weights of two bits in one layer."""
    rules = [tfc.Rule("^depthwise$", weight_bits=2)]
    return tfc.quantize_aware(conv_net(), calibration_data=images, rules=rules)


@pytest.mark.parametrize(
    "broken, name, part",
    [
        (outlier, "hidden", "weights"),
        (wide, "add", "output"),
        (narrow, "conv_relu", "output"),
        (two_bits, "depthwise_relu", "weights"),
    ],
)
def test_the_broken_layer_comes_out_on_top(broken, name, part, images, folder):
    qat = broken(images)
    path = tfc.export_tflite(qat, folder / "broken.tflite", kind="int8").path
    worst, *others = tfc.debug_quantization(qat, path, images).layers
    assert worst.name == name
    # What is wrong with it is all that is wrong with it.
    assert getattr(worst, part).sqnr_db == pytest.approx(worst.sqnr_db, abs=0.5)
    assert worst.sqnr_db < min(row.sqnr_db for row in others) - 10
    # The layers behind have the noise, but did not make it.
    behind = next(row for row in others if row.name == "classifier_softmax")
    assert behind.sqnr_db > 40 > behind.model.sqnr_db
    # The file is as bad as the model says, and no worse. (In steps of a narrow grid a
    # tie at the input that it rounds the other way is a long way.)
    assert worst.file is not None and worst.file.sqnr_db > 35


# Tensors of the file.


def test_tensors_that_share_a_grid_are_told_apart(images, folder):
    model = architectures.ARCHITECTURES["dicts of inputs and outputs"]()
    x = architectures.examples(model)
    qat = tfc.quantize_aware(model, calibration_data=x)
    path = folder / "shared.tflite"
    tfc.export_tflite(qat, path, kind="int8")
    shared = next(q for q in find_layers(qat, FakeQuant) if q.sites == 2)
    result = tfc.debug_quantization(qat, path, x)
    step = (shared.range()[1] - shared.range()[0]) / 255
    rows = [row for row in result.layers if row.scale == pytest.approx(step)]
    assert len(rows) == 2 and len({row.file_tensor for row in rows}) == 2
    assert all(row.file.max_error_lsb <= 1 for row in rows)


def candidate(name, signal, noise, *, total=0.0, steps=100.0):
    """A tensor whose ten values were compared with the model's."""
    tensor = dataclasses.make_dataclass("Named", ["name"])(name)
    sums = np.array([signal, noise, 1.0])
    return file_tensors.Candidate(tensor, sums, total, steps, count=10)


@pytest.mark.parametrize(
    "candidates, expected",
    [
        ([], "no tensor of its scale and shape"),
        ([candidate("a", 100, 30)], "values differ"),
        # Ten values around 3 have a sum of squares of 100 and a variance of 1.
        ([candidate("a", 100, 20, total=30.0)], "values differ"),
        # Values of a step or two: noise says little, the average error does.
        ([candidate("a", 2, 1, steps=5.0)], "a"),
        ([candidate("a", 100, 9), candidate("b", 100, 1)], "b"),
        ([candidate("a", 100, 3), candidate("b", 100, 1)], "2 tensors fit"),
        ([candidate("a", 100, 0), candidate("b", 100, 1)], "a"),
        ([candidate("a", 100, 1), candidate("b", 100, 1)], "a"),
    ],
)
def test_a_tensor_is_found_or_a_reason_given(candidates, expected):
    site = dataclasses.make_dataclass("Site", ["grid"])((0.5, 0, "INT8"))
    found = file_tensors.matched(site, candidates)
    assert expected in (found.get("file_tensor"), found.get("file_note"))
    if "file" in found:
        assert found["file"].max_error == 0.5 and found["file"].max_error_lsb == 1


def test_values_that_are_not_the_models_are_not_taken_for_it(
    qat, file, images, monkeypatch
):
    def shuffled(self, index):
        return self._interpreter.get_tensor(index)[..., ::-1]

    monkeypatch.setattr(file_tensors.Recorder, "tensor", shuffled)
    rows = by_name(tfc.debug_quantization(qat, file, images, examples=4))
    assert rows["conv_relu"].file is None and rows["conv_relu"].file_tensor is None
    assert rows["conv_relu"].file_note == "values differ"


@pytest.mark.parametrize(
    "settings",
    [{"batch_size": 5}, {"batch_size": None}, {"io": "uint8"}, {"io": "float32"}],
)
def test_files_of_all_forms(qat, images, folder, settings):
    path = tfc.export_tflite(qat, folder / "form.tflite", kind="int8", **settings).path
    data = tf.data.Dataset.from_tensor_slices(images[:12]).batch(8)
    result = tfc.debug_quantization(qat, path, data)
    assert result.examples == 12
    assert all(row.file.max_error_lsb <= 2 for row in result.layers)


@pytest.mark.parametrize("name", ["attention", "simple rnn", "squeeze and excite"])
def test_rewritten_layers(name, folder):
    model = architectures.ARCHITECTURES[name]()
    x = architectures.examples(model)
    qat = tfc.quantize_aware(model, calibration_data=x)
    path = tfc.export_tflite(qat, folder / "rewritten.tflite", kind="int8").path
    result = tfc.debug_quantization(qat, path, x)
    quantized = sum(t.dtype == "INT8" for t in read_tflite(path).tensors)
    assert len({row.name for row in result.layers}) == len(result.layers) < quantized
    for row in result.layers:
        assert row.own.sqnr_db > 30
        # Errors of a step add up over a few layers.
        assert row.file is not None and row.file.sqnr_db > 35


def test_zeros_that_are_kept_are_no_rounding_error(images):
    model = conv_net()
    kernel = model.get_layer("hidden").kernel
    values = kernel.numpy()
    values[::2] = 0.0
    kernel.assign(values)
    qat = tfc.quantize_aware(model, calibration_data=images)
    latent = next(v for v in qat.variables if v.path.endswith("hidden/kernel"))
    latent.assign(latent + 1.0)
    row = by_name(tfc.debug_quantization(qat, None, images))["hidden"]
    # Zeros that are held are no rounding: the latent weights there do not count.
    assert row.weights.sqnr_db > 30


# The plot.


def test_the_plot_is_written_and_replaces_an_old_one(qat, images, tmp_path):
    path = tmp_path / "errors.png"
    path.write_bytes(b"old")
    tfc.debug_quantization(qat, None, images, examples=2, plot=path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [path]


def test_an_old_plot_survives_a_failure(qat, images, tmp_path, monkeypatch):
    def broken(result):
        raise RuntimeError("no font")

    path = tmp_path / "errors.png"
    path.write_bytes(b"old")
    monkeypatch.setattr("tfcompress.debug.bars", broken)
    with pytest.raises(RuntimeError, match="no font"):
        tfc.debug_quantization(qat, None, images, examples=2, plot=path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def size_of(png):
    """Width and height in pixels, from the header."""
    return tuple(int.from_bytes(png[i : i + 4], "big") for i in (16, 20))


def test_sixty_layers_have_room_and_more_are_left_out(healthy):
    sixty, hundred = (
        dataclasses.replace(healthy, layers=(healthy.layers * 20)[:count])
        for count in (60, 100)
    )
    width, height = size_of(chart.bars(sixty))
    # Labels of 8 points are 17 pixels high at 150 dots an inch.
    assert height / 60 > 2 * 17 and width > 900
    assert size_of(chart.bars(hundred)) == (width, height)
    assert "and 40 more" in str(hundred) and "more" not in str(sixty)


def test_equal_and_hopeless_layers_can_be_drawn(healthy):
    row = healthy.layers[0]
    rows = tuple(
        dataclasses.replace(row, own=differences.Difference(sqnr, 0.0, 0.0))
        for sqnr in (-math.inf, -3.0, math.inf)
    )
    result = dataclasses.replace(healthy, layers=rows)
    assert chart.bars(result).startswith(b"\x89PNG")
    assert "equal" in str(result) and "-inf" in str(result)


# At the door.


def test_a_plain_model_is_refused(images):
    with pytest.raises(ValueError, match="not quantization-aware.*quantize_aware"):
        tfc.debug_quantization(conv_net(), None, images)


def test_a_model_without_ranges_is_refused(images):
    with pytest.raises(ValueError, match="seen no data.*calibration_data"):
        tfc.debug_quantization(tfc.quantize_aware(conv_net()), None, images)


def test_a_file_of_another_model_is_refused(qat, images, folder):
    other = tfc.quantize_aware(conv_net(classes=4, size=8), calibration_data=images)
    path = tfc.export_tflite(other, folder / "other.tflite", kind="int8").path
    with pytest.raises(ValueError, match=r"does not belong.*outputs.*\(3,\).*\(4,\)"):
        tfc.debug_quantization(qat, path, images)


def test_a_file_of_an_earlier_state_is_refused(qat, images, folder):
    other = tfc.quantize_aware(conv_net(), calibration_data=2 * images)
    path = tfc.export_tflite(other, folder / "stale.tflite", kind="int8").path
    with pytest.raises(ValueError, match="does not belong to the model as it is now"):
        tfc.debug_quantization(qat, path, images, examples=2)


def test_a_float_file_is_refused(qat, images, folder):
    path = tfc.export_tflite(qat, folder / "float.tflite").path
    with pytest.raises(ValueError, match="no integer activations.*kind='int8'"):
        tfc.debug_quantization(qat, path, images)


def test_other_arguments_out_of_place(qat, images, folder):
    with pytest.raises(TypeError, match="`path`.*Data go into `data`"):
        tfc.debug_quantization(qat, images)
    with pytest.raises(TypeError, match="`data` must be arrays"):
        tfc.debug_quantization(qat)
    with pytest.raises(ValueError, match="expected shape"):
        tfc.debug_quantization(qat, None, images[:, :4])
    with pytest.raises(ValueError, match="`examples`.*examples=0"):
        tfc.debug_quantization(qat, None, images, examples=0)
    with pytest.raises(FileNotFoundError, match="none.tflite"):
        tfc.debug_quantization(qat, folder / "none.tflite", images)
    with pytest.raises(FileNotFoundError, match="no folder"):
        tfc.debug_quantization(qat, None, images, plot=folder / "no" / "a.png")
