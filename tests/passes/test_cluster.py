"""`tfc.cluster`: what it shares, trains, keeps and refuses."""

import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers
from networks import Subclassed, compiled, conv_net, image_data

import tfcompress as tfc
from tfcompress.graph import find_layers, kernels
from tfcompress.layers import KeepZeros, LayerGroup, TransformWeights
from tfcompress.numerics import masks


def _values(model):
    """Number of different values of each kernel, as deployed."""
    found = kernels(tfc.strip(model))
    return {path: len(np.unique(v.numpy())) for path, v in found.items()}


def _pruned(sparsity=0.6):
    model = conv_net()
    for name in ("conv", "hidden"):
        kernel = model.get_layer(name).kernel
        kernel.assign(kernel * masks.magnitude_mask(kernel.numpy(), sparsity))
    return model


def _fit(model, epochs=2, **settings):
    x, y = image_data()
    return compiled(model, **settings).fit(x, y, epochs=epochs, verbose=0)


def test_kernels_have_so_many_values_and_the_model_computes_nearly_the_same():
    x, _ = image_data()
    model = conv_net()
    before = model.get_weights()
    shared = tfc.cluster(model, 32)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert all(n <= 32 for n in _values(shared).values())
    difference = shared.predict(x, verbose=0) - model.predict(x, verbose=0)
    # 32 values of a kernel are off by some percent of its spread.
    assert np.abs(difference).max() < 0.1


def test_it_learns_and_its_values_move():
    shared = tfc.cluster(conv_net(), 8)
    wrapper = shared.get_layer("hidden")
    before = set(np.unique(wrapper.effective_weights()["kernel"]))
    latent = wrapper.layer.kernel.numpy()
    history = _fit(shared, epochs=8).history
    assert history["accuracy"][-1] > 0.9
    after = set(np.unique(wrapper.effective_weights()["kernel"]))
    assert len(after & before) <= 1 and len(after) <= 8  # Zero alone stays.
    assert np.any(wrapper.layer.kernel.numpy() != latent)


def test_a_pruned_kernel_keeps_its_zeros_through_training():
    model = _pruned()
    zero = model.get_layer("hidden").kernel.numpy() == 0
    shared = tfc.cluster(model, 8)
    _fit(shared)
    kernel = tfc.strip(shared).get_layer("hidden").kernel.numpy()
    assert np.all(kernel[zero] == 0) and zero.mean() > 0.59
    # One that was not pruned has no mask.
    chains = [w.transforms for w in find_layers(shared, TransformWeights)]
    kept = [any(isinstance(t, KeepZeros) for t in c["kernel"]) for c in chains]
    assert kept == [True, False, True, False]
    loose = tfc.cluster(model, 8, preserve=())
    assert not any(
        isinstance(t, KeepZeros)
        for w in find_layers(loose, TransformWeights)
        for t in w.transforms["kernel"]
    )


@pytest.mark.parametrize(
    "config",
    [
        "int8",
        pytest.param("int8_per_tensor", marks=pytest.mark.slow),
        pytest.param("int16x8", marks=pytest.mark.slow),
    ],
)
def test_values_and_zeros_go_through_8_bits(config, tmp_path):
    x, _ = image_data()
    model = _pruned()
    zeros = {n: model.get_layer(n).kernel.numpy() == 0 for n in ("conv", "hidden")}
    shared = tfc.cluster(model, 6)
    _fit(shared, epochs=1)
    qat = tfc.quantize_aware(shared, config, calibration_data=x)
    _fit(qat, epochs=1)
    kind = "int16x8" if config == "int16x8" else "int8"
    tfc.export_tflite(qat, tmp_path / "m.tflite", kind=kind)
    found = [layer for layer in tfc.measure(tmp_path / "m.tflite").layers]
    assert len(found) == 4
    assert all(layer.channel_values <= 6 for layer in found)
    by_size = {layer.parameters: layer for layer in found}
    for zero in zeros.values():
        assert by_size[zero.size].sparsity >= zero.mean()


@pytest.mark.slow
def test_a_plain_kernel_with_few_values_starts_a_codebook():
    x, _ = image_data(16)
    plain = tfc.strip(tfc.cluster(_pruned(), 6))
    qat = tfc.quantize_aware(plain, calibration_data=x)
    _fit(qat, epochs=1)
    # Kernels of a few dozen weights have few values in any case.
    for name in ("conv", "hidden"):
        kernel = qat.get_layer(name).effective_weights()["kernel"]
        channels = kernel.reshape(-1, kernel.shape[-1]).T
        assert max(len(np.unique(channel)) for channel in channels) <= 6
    loose = tfc.quantize_aware(plain, calibration_data=x, preserve=("zeros",))
    assert not any(
        type(t).__name__ == "Codebook"
        for w in find_layers(loose, TransformWeights)
        for t in w.transforms["kernel"]
    )


@pytest.mark.slow
def test_quantizing_goes_on_where_clustering_was():
    x, _ = image_data()
    shared = tfc.cluster(conv_net(), 16, biases=True)
    _fit(shared, epochs=3)
    qat = tfc.quantize_aware(shared, calibration_data=x)
    # As the plain model does: 8 bits of weights and activations are between them.
    difference = qat.predict(x, verbose=0) - shared.predict(x, verbose=0)
    assert np.abs(difference).mean() < 0.01
    assert {"kernel", "bias"} == set(qat.get_layer("hidden").transforms)


# Every kind of layer.


@keras.saving.register_keras_serializable(package="tests.cluster")
class Twice(layers.Layer):
    """A weight of its own, of another name."""

    def build(self, input_shape):
        self.mixing = self.add_weight(
            name="mixing", shape=(input_shape[-1], input_shape[-1])
        )

    def call(self, x):
        return keras.ops.matmul(keras.ops.matmul(x, self.mixing), self.mixing)


LAYERS = {
    "dense": (lambda: layers.Dense(9), (11,)),
    "conv 1D": (lambda: layers.Conv1D(6, 3), (8, 5)),
    "conv 2D": (lambda: layers.Conv2D(6, 3), (8, 8, 5)),
    "conv 3D": (lambda: layers.Conv3D(4, 2), (4, 4, 4, 3)),
    "depthwise": (lambda: layers.DepthwiseConv2D(3), (8, 8, 7)),
    "separable": (lambda: layers.SeparableConv2D(6, 3), (8, 8, 5)),
    "transposed": (lambda: layers.Conv2DTranspose(6, 3), (8, 8, 5)),
    "einsum": (lambda: layers.EinsumDense("abc,cd->abd", (6, 9)), (6, 8)),
    "embedding": (lambda: layers.Embedding(20, 6), (5,)),
    "LSTM": (lambda: layers.LSTM(5), (4, 6)),
    "GRU": (lambda: layers.GRU(5), (4, 6)),
    "bidirectional": (lambda: layers.Bidirectional(layers.LSTM(4)), (4, 6)),
    "time distributed": (lambda: layers.TimeDistributed(layers.Dense(7)), (4, 9)),
    "custom": (Twice, (8,)),
}


_QUICK = ("depthwise", "embedding", "LSTM", "custom")


@pytest.mark.parametrize(
    "name",
    [
        name if name in _QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in LAYERS
    ],
)
def test_every_layer_with_a_kernel(name, tmp_path):
    make, shape = LAYERS[name]
    dtype = "int32" if name == "embedding" else "float32"
    inputs = keras.Input(shape, dtype=dtype)
    outputs = layers.Flatten()(make()(inputs))
    model = keras.Model(inputs, outputs)
    shared = tfc.cluster(model, 5)
    shared.compile("sgd", "mse")
    rng = np.random.default_rng(0)
    x = rng.integers(0, 20, (8, *shape)).astype(dtype)
    shared.fit(x, np.zeros((8, outputs.shape[-1])), verbose=0)
    values = _values(shared)
    assert values and all(n <= 5 for n in values.values())
    expected = shared.predict(x, verbose=0)
    shared.save(tmp_path / "m.keras")
    back = keras.models.load_model(tmp_path / "m.keras", safe_mode=True)
    np.testing.assert_array_equal(back.predict(x, verbose=0), expected)
    plain = tfc.strip(back)
    # 1e-5: the same arithmetic, of which TensorFlow may fuse other parts.
    np.testing.assert_allclose(plain.predict(x, verbose=0), expected, atol=1e-5)


@pytest.mark.slow
def test_attention_and_its_integer_form_keep_the_values(tmp_path):
    inputs = keras.Input((6, 8))
    x = layers.MultiHeadAttention(2, 4, name="attention")(inputs, inputs)
    model = keras.Model(inputs, layers.Dense(3, name="last")(x))
    shared = tfc.cluster(model, 7)
    assert len(shared.get_layer("attention").transforms) == 4
    x = np.random.default_rng(0).normal(size=(16, 6, 8)).astype("float32")
    qat = tfc.quantize_aware(shared, calibration_data=x)
    qat.compile("sgd", "mse")
    qat.fit(x, np.zeros((16, 6, 3)), verbose=0)
    tfc.export_tflite(qat, tmp_path / "m.tflite", kind="int8")
    found = tfc.measure(tmp_path / "m.tflite").layers
    assert len(found) == 5 and all(layer.channel_values <= 7 for layer in found)


def test_a_table_of_words_keeps_its_values_in_the_file(tmp_path):
    inputs = keras.Input((4,), dtype="int32")
    x = layers.Embedding(50, 6, name="words")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
    shared = tfc.cluster(model, 9)
    x = np.random.default_rng(0).integers(0, 50, (16, 4))
    qat = tfc.quantize_aware(shared, calibration_data=x)
    qat.compile("sgd", "mse")
    qat.fit(x, np.zeros((16, 2)), verbose=0)
    result = tfc.export_tflite(qat, tmp_path / "m.tflite", kind="int8")
    assert result.fully_integer
    found = {w.parameters: w for w in tfc.measure(tmp_path / "m.tflite").layers}
    assert found[300].distinct_values <= 9


def test_masks_of_a_sequence_pass_through():
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(20, 6, mask_zero=True)(inputs)
    model = keras.Model(inputs, layers.LSTM(4)(x))
    shared = tfc.cluster(model, 200)  # As many as there are: nothing changes.
    tokens = np.random.default_rng(0).integers(0, 20, (16, 5)) * (np.arange(5) < 3)
    # 1e-6: the same operations.
    np.testing.assert_allclose(
        shared.predict(tokens, verbose=0), model.predict(tokens, verbose=0), atol=1e-6
    )


def test_nested_shared_and_subclassed_models():
    encoder = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(4, 3, name="conv"), layers.ReLU()],
        name="encoder",
    )
    a, b = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    pooled = layers.GlobalAveragePooling2D()(encoder(a) + encoder(b))
    shared = tfc.cluster(keras.Model([a, b], layers.Dense(9, name="last")(pooled)), 5)
    assert [w.name for w in find_layers(shared, TransformWeights)] == [
        "encoder_conv",
        "last",
    ]
    x, _ = image_data(8)
    subclassed = Subclassed()
    subclassed(x)
    found = _values(tfc.cluster(subclassed, 5))
    assert len(found) == 2 and set(found.values()) == {5}


def _attention(**settings):
    def make(x, mask):
        layer = layers.MultiHeadAttention(2, 4, name="attention")
        if "query" in settings:
            return layer(query=x, value=x)
        outputs = layer(x, x, attention_mask=mask, **settings)
        return outputs if isinstance(outputs, keras.KerasTensor) else outputs[0]

    return make


_CALLS = {
    "a tensor and a constant": _attention(use_causal_mask=True),
    "keywords only": _attention(query=True),
    "two outputs": _attention(return_attention_scores=True),
    "a step of a sequence": lambda x, mask: layers.LSTM(4)(
        layers.Masking()(x), training=False
    ),
    "a dense layer by keyword": lambda x, mask: layers.Dense(4)(inputs=x),
}


@pytest.mark.parametrize("call", list(_CALLS))
def test_layers_may_be_called_in_any_way(call, tmp_path):
    inputs, mask = keras.Input((7, 8)), keras.Input((7, 7), dtype="bool")
    outputs = _CALLS[call](inputs, mask)
    model = keras.Model([inputs, mask], outputs)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 7, 8)).astype("float32")
    x[:, 5:] = 0
    data = [x, rng.random((4, 7, 7)) < 0.7]
    expected = model.predict(data, verbose=0)
    shared = tfc.cluster(model, 2048)  # As many as there are: nothing changes.
    shared.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras", safe_mode=True)
    for one in (shared, loaded, tfc.strip(loaded)):
        # 1e-5: the same arithmetic, of which TensorFlow may fuse other parts.
        np.testing.assert_allclose(one.predict(data, verbose=0), expected, atol=1e-5)


@pytest.mark.parametrize("call", ["a tensor and a constant", "keywords only"])
def test_a_call_that_a_group_cannot_make_is_refused(call):
    inputs, mask = keras.Input((7, 8)), keras.Input((7, 7), dtype="bool")
    model = keras.Model([inputs, mask], _CALLS[call](inputs, mask))
    with pytest.raises(ValueError, match="'attention' cannot be in a group"):
        tfc.cluster(model, 8, group="all")


def test_frozen_layers_are_named(caplog):
    model = conv_net()
    model.get_layer("conv").trainable = False
    values = _values(tfc.cluster(model, 4))
    assert "conv/kernel" not in values and values["hidden/kernel"] == 4
    lines = [line for line in caplog.text.splitlines() if "frozen" in line]
    assert len(lines) == 1 and lines[0].endswith("['conv/kernel']")
    caplog.clear()
    tfc.cluster(conv_net(), 4)
    assert "frozen" not in caplog.text


@pytest.mark.parametrize("sequences", [True, False], ids=["sequences", "last"])
def test_a_group_takes_layers_within_layers_and_their_masks(sequences, tmp_path):
    inputs = keras.Input((7,), dtype="int32")
    x = layers.Embedding(20, 6, mask_zero=True, name="words")(inputs)
    x = layers.Bidirectional(layers.GRU(3, return_sequences=True))(x)
    x = layers.LSTM(5, return_sequences=sequences, name="lstm")(x)
    model = keras.Model(inputs, layers.Dense(3, name="last")(x))
    tokens = np.random.default_rng(0).integers(0, 20, (8, 7)) * (np.arange(7) < 4)
    shared = tfc.cluster(model, 2048, group="all")
    shared.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras", safe_mode=True)
    expected = model(tokens)
    for one in (shared, loaded, tfc.strip(loaded)):
        found = one(tokens)
        # 1e-5: the same arithmetic, of which TensorFlow may fuse other parts.
        np.testing.assert_allclose(found, expected, atol=1e-5)
        masks_of = [getattr(t, "_keras_mask", None) for t in (found, expected)]
        assert (masks_of[0] is None) == (masks_of[1] is None) == (not sequences)
        if sequences:
            np.testing.assert_array_equal(*masks_of)


@pytest.mark.parametrize("group", ["classifier", "hidden", "a/b", "my group"])
def test_a_group_may_have_any_name(group, tmp_path):
    rule = tfc.Rule("^(conv|hidden)", group=group)
    shared = tfc.cluster(conv_net(), 4, include="^(conv|hidden)", rules=[rule])
    names = [layer.name for layer in shared.layers]
    assert len(set(names)) == len(names) and "classifier" in names
    shared.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras", safe_mode=True)
    plain = tfc.strip(loaded)
    kernels_of = [plain.get_layer(name).kernel for name in ("conv", "hidden")]
    values = np.concatenate([kernel.numpy().ravel() for kernel in kernels_of])
    assert len(np.unique(values)) <= 4


# Settings.


def test_rules_and_patterns_choose():
    shared = tfc.cluster(
        conv_net(),
        4,
        exclude="classifier",
        rules=[tfc.Rule("hidden", clusters=12, start="linear", steps=0)],
    )
    values = _values(shared)
    assert values["hidden/kernel"] == 12 and values["conv/kernel"] == 4
    assert values["classifier/kernel"] == 24
    per_channel = tfc.cluster(conv_net(), 4, per_channel=True, include="depthwise")
    kernel = tfc.strip(per_channel).get_layer("depthwise").kernel.numpy()
    assert max(len(np.unique(c)) for c in kernel.reshape(9, 8).T) == 4
    assert len(np.unique(kernel)) > 8


def test_biases_are_clustered_if_asked():
    model = conv_net()
    bias = np.random.default_rng(0).normal(size=8)
    model.get_layer("hidden").bias.assign(bias)
    for biases, expected in ((False, 8), (True, 3)):
        plain = tfc.strip(tfc.cluster(model, 3, biases=biases))
        assert len(np.unique(plain.get_layer("hidden").bias.numpy())) == expected


@pytest.mark.slow
def test_weights_of_a_group_share_one_codebook_across_layers():
    x, _ = image_data()
    shared = tfc.cluster(
        conv_net(), 8, rules=[tfc.Rule("conv|hidden|classifier", group="all")]
    )
    _fit(shared, epochs=1)
    plain = tfc.strip(shared)
    values = np.concatenate(
        [
            plain.get_layer(name).kernel.numpy().ravel()
            for name in ("conv", "hidden", "classifier")
        ]
    )
    assert len(np.unique(values)) <= 8
    assert not find_layers(plain, LayerGroup)
    # 1e-5: the same arithmetic, of which TensorFlow may fuse other parts.
    np.testing.assert_allclose(
        plain.predict(x, verbose=0), shared.predict(x, verbose=0), atol=1e-5
    )
    qat = tfc.quantize_aware(shared, calibration_data=x)
    kernel = qat.get_layer("hidden").effective_weights()["kernel"]
    assert max(len(np.unique(c)) for c in kernel.T) <= 8


def test_product_quantization_shares_vectors():
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(200, 8, name="words")(inputs)
    x = layers.Dense(16, name="hidden")(layers.Flatten()(x))
    shared = tfc.cluster(keras.Model(inputs, x), 32, block=4)
    shared.compile("adam", "mse")
    tokens = np.random.default_rng(0).integers(0, 200, (32, 5))
    shared.fit(tokens, np.zeros((32, 16)), verbose=0)
    plain = tfc.strip(shared)
    table = plain.get_layer("words").get_weights()[0].reshape(-1, 4)
    units = plain.get_layer("hidden").kernel.numpy().T.reshape(-1, 4)
    for blocks in (table, units):
        assert len(blocks) > 150 and len(np.unique(blocks, axis=0)) <= 32


# Bad input.


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"clusters": 1}, "`clusters` must be a whole number from 2"),
        ({"start": "best"}, "`start` must be one of"),
        ({"gradient": "max"}, "`gradient` must be one of"),
        ({"block": 4}, "for kernels of Dense layers and tables"),
        ({"block": 4, "per_channel": True, "include": "hidden"}, "does not go with"),
        ({"group": "a", "per_channel": True}, "does not go with"),
        ({"include": "nowhere"}, "matches nothing"),
        ({"exclude": "kernel"}, "Nothing is left to cluster"),
        ({"rules": [tfc.Rule("conv", bits=4)]}, "A rule cannot set"),
        ({"preserve": ("channels",)}, "`preserve` may hold"),
        (
            {"group": "a", "rules": [tfc.Rule("conv", group="a", clusters=3)]},
            "have different settings",
        ),
    ],
    ids=lambda value: value.replace("`", "") if isinstance(value, str) else "",
)
def test_settings_out_of_place(settings, text):
    with pytest.raises(ValueError, match=text):
        tfc.cluster(conv_net(), **settings)


def test_models_out_of_place():
    x, _ = image_data(8)
    shared = tfc.cluster(conv_net(), 8)
    for model, text in (
        (shared, "clustered already"),
        (tfc.quantize_aware(conv_net(), calibration_data=x), "Cluster first"),
        (tfc.distill(conv_net(), conv_net()), "Cluster its student"),
    ):
        with pytest.raises(ValueError, match=text):
            tfc.cluster(model)
    with pytest.raises(TypeError, match="must be a Keras 3 model"):
        tfc.cluster(3)
    with pytest.raises(ValueError, match="wrapped by quantization, clustering"):
        tfc.fold(shared)


# Against TFMOT, in a process of its own: it flips `tf.keras` to the legacy package.

_TFMOT = """
import json, sys
import numpy as np
import tensorflow_model_optimization as tfmot
import tf_keras as keras
clustering = tfmot.clustering.keras
kernel = np.load(sys.argv[1])
dense = keras.layers.Dense(kernel.shape[1], use_bias=False)
model = keras.Sequential([keras.layers.InputLayer((kernel.shape[0],)), dense])
dense.set_weights([kernel])
model = clustering.cluster_weights(
    model, 9, clustering.CentroidInitialization.LINEAR)
model = clustering.strip_clustering(model)
np.save(sys.argv[2], model.get_weights()[0])
print(json.dumps("done"))
"""


@pytest.mark.slow
def test_linear_clusters_are_those_of_tfmot(tmp_path):
    rng = np.random.default_rng(0)
    kernel = rng.uniform(-1, 1, (60, 50)).astype("float32")
    # Of nine values from -1 to 1 one is zero, as ours has it.
    kernel[0, 0], kernel[0, 1] = -1, 1
    np.save(tmp_path / "in.npy", kernel)
    done = subprocess.run(
        [sys.executable, "-c", _TFMOT, tmp_path / "in.npy", tmp_path / "out.npy"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == "done"
    expected = np.load(pathlib.Path(tmp_path, "out.npy"))
    inputs = keras.Input((60,))
    dense = layers.Dense(50, use_bias=False, name="dense")
    model = keras.Model(inputs, dense(inputs))
    dense.kernel.assign(kernel)
    found = tfc.strip(tfc.cluster(model, 9, start="linear", steps=0))
    # 1e-6: the steps of a line, in float32.
    np.testing.assert_allclose(
        found.get_layer("dense").kernel.numpy(), expected, atol=1e-6
    )
