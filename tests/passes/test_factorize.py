"""`tfc.factorize`: chains of small layers, as near as the figures say."""

import keras
import numpy as np
import pytest
from keras import layers
from networks import compiled, image_data

import tfcompress as tfc


def _model(shape, *stack):
    inputs = x = keras.Input(shape)
    for layer in stack:
        x = layer(x)
    model = keras.Model(inputs, x)
    rng = np.random.default_rng(1)
    for variable in model.weights:
        if variable.name == "bias":
            variable.assign(rng.normal(size=variable.shape))
    return model


def _x(model, count=4):
    shape = (count, *model.inputs[0].shape[1:])
    return np.random.default_rng(2).normal(size=shape).astype("float32")


def _outputs(model, x):
    return np.asarray(model(x, training=False))


def _set_kernel(model, name, kernel):
    model.get_layer(name).kernel.assign(kernel)
    return model


def _low_rank(rows, columns, rank, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, columns)) / rank


def _tucker(shape, ranks, seed=0):
    rng = np.random.default_rng(seed)
    core = rng.normal(size=(*shape[:-2], *ranks))
    first = rng.normal(size=(shape[-2], ranks[0])) / shape[-2]
    last = rng.normal(size=(ranks[1], shape[-1])) / ranks[1]
    return np.einsum("ir,...rs,so->...io", first, core, last)


GEOMETRIES = {
    "plain": {},
    "same, strides": {"padding": "same", "strides": 2},
    "dilated": {"padding": "same", "dilation_rate": 2},
    "no bias, activation": {"use_bias": False, "activation": "tanh"},
    "unequal": {"padding": "same", "strides": (2, 1)},
}


@pytest.mark.parametrize("method", ["svd", "tucker", "spatial"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_convolution_of_the_rank_is_replaced_exactly(method, name):
    conv = layers.Conv2D(12, (3, 5), name="conv", **GEOMETRIES[name])
    model = _model((9, 8, 10), conv)
    kernels = {
        "svd": _low_rank(150, 12, 3).reshape(3, 5, 10, 12),
        "tucker": _tucker((3, 5, 10, 12), (3, 4)),
        "spatial": np.transpose(
            _low_rank(30, 60, 3).reshape(3, 10, 5, 12), (0, 2, 1, 3)
        ),
    }
    _set_kernel(model, "conv", kernels[method])
    rank = (3, 4) if method == "tucker" else 3
    found, report = tfc.factorize(model, method=method, rank=rank, return_report=True)
    parts = found.layers[1:]
    assert [p.kernel_size for p in parts] == {
        "svd": [(3, 5), (1, 1)],
        "tucker": [(1, 1), (3, 5), (1, 1)],
        "spatial": [(3, 1), (1, 5)],
    }[method]
    assert parts[-1].name == "conv" and parts[0].name == "conv_factor1"
    assert found.count_params() < model.count_params()
    assert report.changes[0].error < 1e-6
    # Sums over 150 products in another order.
    np.testing.assert_allclose(
        _outputs(found, _x(model)), _outputs(model, _x(model)), rtol=1e-4, atol=2e-5
    )


@pytest.mark.parametrize("name", ["plain", "same, strides", "dilated"])
def test_cp_is_1x1_depthwise_1x1_and_its_error_is_the_kernel_s(name):
    conv = layers.Conv2D(12, 3, name="conv", **GEOMETRIES[name])
    model = _model((9, 8, 10), conv)
    _set_kernel(model, "conv", _tucker((3, 3, 10, 12), (2, 2)))
    found, report = tfc.factorize(model, method="cp", rank=6, return_report=True)
    kinds = [type(layer) for layer in found.layers[1:]]
    assert kinds == [layers.Conv2D, layers.DepthwiseConv2D, layers.Conv2D]
    first, depthwise, last = (layer.kernel.numpy() for layer in found.layers[1:])
    kernel = np.einsum("ir,hwr,ro->hwio", first[0, 0], depthwise[..., 0], last[0, 0])
    _set_kernel(model, "conv", kernel)
    np.testing.assert_allclose(
        _outputs(found, _x(model)), _outputs(model, _x(model)), rtol=1e-4, atol=2e-5
    )
    assert report.changes[0].error < 0.05


@pytest.mark.parametrize(
    "make, shape, method",
    [
        (lambda: layers.Conv1D(8, 5, padding="causal", name="k"), (9, 8), "tucker"),
        (lambda: layers.Conv1D(8, 5, strides=2, name="k"), (9, 8), "cp"),
        (lambda: layers.Conv3D(8, 2, padding="same", name="k"), (4, 4, 4, 8), "tucker"),
        (lambda: layers.Conv2D(8, 1, strides=2, name="k"), (5, 5, 16), "svd"),
        (lambda: layers.Dense(16, activation="relu", name="k"), (3, 16), "svd"),
    ],
)
def test_every_kind_of_layer_computes_with_the_kernel_that_its_factors_make(
    make, shape, method
):
    model = _model(shape, make())
    found = tfc.factorize(model, rules=[tfc.Rule("k", rank=2, method=method)])
    kernel = found.layers[1].kernel.numpy()
    for layer in found.layers[2:]:
        factor = layer.kernel.numpy()
        if isinstance(layer, layers.DepthwiseConv1D):
            kernel = kernel * factor[:, None, :, 0]
        elif len(kernel.shape) > 2 and max(factor.shape[:-2]) > 1:
            kernel = np.einsum(
                "ir,...rs->...is", kernel.reshape(-1, kernel.shape[-1]), factor
            )
        else:
            kernel = kernel @ factor.reshape(factor.shape[-2:])
    assert kernel.shape == model.get_layer("k").kernel.shape
    _set_kernel(model, "k", kernel)
    np.testing.assert_allclose(
        _outputs(found, _x(model)), _outputs(model, _x(model)), rtol=1e-4, atol=2e-5
    )


def test_the_error_of_outputs_is_within_the_bounds_of_the_svd():
    model = _model((40,), layers.Dense(30, use_bias=False, name="dense"))
    values = np.linalg.svd(model.get_layer("dense").kernel.numpy(), compute_uv=False)
    x = _x(model, 50)
    for rank in (1, 5, 15):
        found, report = tfc.factorize(model, rank=rank, return_report=True)
        difference = np.linalg.norm(_outputs(found, x) - _outputs(model, x), axis=1)
        bound = values[rank] * np.linalg.norm(x, axis=1)
        assert np.all(difference <= bound * (1 + 1e-4))
        error = np.sqrt(np.sum(values[rank:] ** 2) / np.sum(values**2))
        np.testing.assert_allclose(report.changes[0].error, error, rtol=1e-4)
        # In expectation over white inputs the Frobenius norm is the error itself.
        whole = np.linalg.norm(difference) / np.linalg.norm(_outputs(model, x))
        assert abs(whole - error) < 0.15


def _network():
    return _model(
        (16, 16, 8),
        layers.Conv2D(32, 3, padding="same", activation="relu", name="conv"),
        layers.BatchNormalization(name="bn"),
        layers.Conv2D(48, 3, strides=2, name="strided"),
        layers.Conv2D(24, 1, name="point"),
        layers.Flatten(name="flatten"),
        layers.Dense(20, name="hidden"),
        layers.Dense(3, name="out"),
    )


@pytest.mark.parametrize("energy", [0.5, 0.9, 1.0])
def test_the_energy_asked_for_is_kept(energy):
    model = _network()
    found, report = tfc.factorize(model, energy=energy, return_report=True)
    assert [c.layer for c in report.changes] == [
        "conv",
        "strided",
        "point",
        "hidden",
        "out",
    ]
    for change in report.changes:
        if change.error is None:
            assert change.what.startswith("left alone")
        else:
            assert change.error <= np.sqrt(1 - energy) + 1e-6
            assert change.parameters_after < change.parameters_before
    assert any(c.error is None for c in report.changes) == (energy > 0.5)
    assert report.parameters_after == found.count_params() <= model.count_params()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_the_share_of_parameters_is_reached(share):
    model = _network()
    found = tfc.factorize(model, parameters=share)
    assert share * 0.93 < found.count_params() / model.count_params() <= share


def test_the_budget_goes_where_it_keeps_the_most():
    model = _model(
        (60,), layers.Dense(60, name="simple"), layers.Dense(60, name="rich")
    )
    rng = np.random.default_rng(0)
    for name, decay in (("simple", 0.5), ("rich", 0.97)):
        left, right = (np.linalg.qr(rng.normal(size=(60, 60)))[0] for _ in range(2))
        _set_kernel(model, name, left * decay ** np.arange(60) @ right)
    found = tfc.factorize(model, parameters=0.5)
    simple, rich = (found.get_layer(f"{n}_factor1").units for n in ("simple", "rich"))
    assert 3 <= simple <= 10 and rich >= 15


def test_rules_come_first_and_what_they_fix_counts_in_the_budget():
    model = _network()
    found, report = tfc.factorize(
        model,
        parameters=0.5,
        exclude="^out$",
        rules=[
            tfc.Rule("^conv$", rank=(3, 5)),
            tfc.Rule("strided", rank=0.25, method="spatial"),
            tfc.Rule("point", energy=0.3),
        ],
        return_report=True,
    )
    what = {c.layer: c.what for c in report.changes}
    assert what["conv"] == "tucker, rank 3 x 5"
    assert what["strided"] == f"spatial, rank {round(0.25 * 96)}"
    assert what["point"].startswith("svd") and "out" not in what
    assert found.count_params() <= 0.5 * model.count_params()


def test_vbmf_finds_the_ranks_beneath_noise():
    rng = np.random.default_rng(0)
    model = _model(
        (8, 8, 40),
        layers.Conv2D(50, 3, name="conv"),
        layers.Flatten(),
        layers.Dense(60, name="dense"),
    )
    noisy = _tucker((3, 3, 40, 50), (4, 6))
    noisy += 0.1 * noisy.std() * rng.normal(size=noisy.shape)
    _set_kernel(model, "conv", noisy)
    dense = _low_rank(1800, 60, 7)
    dense += 0.1 * dense.std() * rng.normal(size=dense.shape)
    _set_kernel(model, "dense", dense)
    _, report = tfc.factorize(model, rank="vbmf", return_report=True)
    found = [c.what for c in report.changes]
    assert found == ["tucker, rank 4 x 6", "svd, rank 7"]
    assert all(c.error < 0.11 for c in report.changes)


@pytest.mark.parametrize("method", ["auto", "spatial"])
def test_vbmf_leaves_noise_alone(method):
    model = _model((8, 8, 30), layers.Conv2D(40, 3, name="conv"))
    found, report = tfc.factorize(model, rank="vbmf", method=method, return_report=True)
    assert found.count_params() == model.count_params()
    assert report.changes[0].what == "left alone: no rank stands out from noise"


def test_cp_of_a_causal_convolution_is_refused():
    model = _model((9, 12), layers.Conv1D(16, 3, padding="causal", name="conv"))
    with pytest.raises(ValueError, match="'conv' .*another padding than 'causal'"):
        tfc.factorize(model, method="cp", rank=4)


def test_cp_keeps_the_energy_and_the_budget_too():
    model = _model((6, 6, 12), layers.Conv2D(16, 3, name="conv"))
    _, report = tfc.factorize(model, method="cp", energy=0.5, return_report=True)
    assert report.changes[0].error <= np.sqrt(0.5)
    found = tfc.factorize(model, method="cp", parameters=0.5)
    assert 0.4 < found.count_params() / model.count_params() <= 0.5


def test_a_layer_that_would_not_be_smaller_is_left_alone_and_said_so():
    model = _model((4,), layers.Dense(3, name="dense"))
    found, report = tfc.factorize(model, rank=3, return_report=True)
    assert [layer.name for layer in found.layers[1:]] == ["dense"]
    assert report.changes[0].what == "left alone: not smaller at this rank"
    assert found is not model
    zeros = _set_kernel(
        _model((40,), layers.Dense(40, name="d")), "d", np.zeros((40, 40))
    )
    _, report = tfc.factorize(zeros, return_report=True)
    assert report.changes[0].what == "left alone: all zeros"


def test_a_shared_layer_stays_shared_and_nested_models_are_inlined():
    inner = keras.Sequential(
        [keras.Input((30,)), layers.Dense(30, name="d")], name="in"
    )
    a, b = keras.Input((30,)), keras.Input((30,))
    model = keras.Model([a, b], layers.Add()([inner(a), inner(inner(b))]))
    found = tfc.factorize(model, rank=5)
    assert [n for n in (x.name for x in found.layers) if "in_d" in n] == [
        "in_d_factor1",
        "in_d",
    ]
    assert found.count_params() == 2 * 30 * 5 + 30


def test_regularizers_act_on_factors_and_the_end_is_the_layer_s():
    dense = layers.Dense(
        30,
        activation="relu",
        kernel_regularizer=keras.regularizers.L2(0.1),
        bias_regularizer="l1",
        kernel_constraint="non_neg",
        name="dense",
    )
    dense.trainable = False
    first, last = tfc.factorize(_model((30,), dense), rank=4).layers[1:]
    assert not first.use_bias and first.activation is keras.activations.linear
    assert last.activation is keras.activations.relu
    assert first.kernel_regularizer.l2 == last.kernel_regularizer.l2
    assert last.bias_regularizer.l1 > 0 and last.kernel_constraint is None
    assert not first.trainable and not last.trainable
    np.testing.assert_array_equal(last.bias, dense.bias)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tucker", "spatial", "cp"])
def test_the_result_saves_loads_and_trains_and_the_original_is_as_it_was(
    method, tmp_path
):
    x, y = image_data()
    model = _model(
        (8, 8, 3),
        layers.Conv2D(16, 3, activation="relu", name="conv"),
        layers.Conv2D(16, 3, activation="relu", name="conv2"),
        layers.Flatten(),
        layers.Dense(3, activation="softmax", name="out"),
    )
    before = model.get_weights()
    found = tfc.factorize(model, method=method, parameters=0.6)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    found.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(_outputs(loaded, x), _outputs(found, x))
    history = compiled(loaded).fit(x, y, epochs=4, verbose=0).history["loss"]
    assert history[-1] < history[0]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"energy": 1.5}, r"`energy` must be a number in \(0, 1\]"),
        ({"parameters": 1.0}, r"`parameters` must be a number in \(0, 1\)"),
        ({"parameters": 0.01}, "cannot be reached: at rank 1 everywhere"),
        ({"rank": 0}, "`rank` must be a whole number from 1"),
        ({"rank": "all"}, "Received: rank='all'"),
        ({"rank": True}, "Received: rank=True"),
        ({"rank": 3, "energy": 0.9}, "Give one of `energy`, `parameters` and `rank`"),
        ({"method": "qr"}, "`method` must be 'auto' or one of 'svd'"),
        ({"rules": [tfc.Rule("out", ranks=3)]}, "Received: ranks for layer 'out'"),
        ({"rules": [tfc.Rule("out", rank=3, energy=0.5)]}, "not both"),
        ({"rules": [tfc.Rule("out", method="cp")]}, "CP needs a Conv1D or Conv2D"),
        ({"rules": [tfc.Rule("out", rank=(2, 3))]}, "A pair of ranks is for Tucker"),
        ({"include": "nowhere"}, "'nowhere' matches nothing"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        tfc.factorize(_network(), **settings)


def test_a_model_without_such_layers_is_refused():
    model = _model((8, 8, 4), layers.DepthwiseConv2D(3), layers.ReLU())
    with pytest.raises(ValueError, match="of DepthwiseConv2D, ReLU"):
        tfc.factorize(model)
    unequal = _model((9, 8, 4), layers.Conv2D(5, 3, strides=(2, 1), name="c"))
    with pytest.raises(ValueError, match="'c' .*equal strides"):
        tfc.factorize(unequal, method="cp")
