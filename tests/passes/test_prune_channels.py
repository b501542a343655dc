"""Channels that really go: exactness, choice, budgets and errors."""

import sys

import channel_models
import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.graph import Graph, flatten, rewrite
from tfcompress.graph.channel_rules import find_channels
from tfcompress.passes.channel_choice import choose_producers
from tfcompress.passes.channel_plan import ChannelPlan
from tfcompress.passes.channel_removal import remove_channels
from tfcompress.passes.channel_scores import SCORES, find_scores


def _randomized(model):
    """Statistics, scales and biases that are not what every layer starts with."""
    rng = np.random.default_rng(0)
    for variable in model.weights:
        if variable.name in ("mean", "variance"):
            continue  # A Normalization layer does not read them again.
        if "moving_variance" in variable.path or "gamma" in variable.path:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif len(variable.shape) == 1 and "seed" not in variable.path:
            variable.assign(rng.normal(0, 0.2, variable.shape))
    return model


def _planned(model, amount=0.5, scope="layer", score="l2"):
    channels = find_channels(Graph(flatten(model)))
    chosen = choose_producers(channels)
    scores = find_scores(channels, score, None, chosen=chosen, compiled=model)
    plan = ChannelPlan(channels, scores, chosen, scope, 1)
    return plan, plan.removed(amount)


def _mask(plan, removed):
    """Zeros, in the model itself, wherever a channel that goes is made or read."""
    for weight in plan.channels.weights.values():
        values = weight.variable.numpy()
        for axis, ids in enumerate(weight.axes):
            if ids is not None:
                where = np.flatnonzero(removed[plan.channels.groups(ids)])
                np.moveaxis(values, axis, 0)[where] = 0
        weight.variable.assign(values)


def _inputs(model, batch=2):
    rng = np.random.default_rng(1)
    return keras.tree.map_structure(
        lambda t: (
            rng.integers(0, 6, (batch, *t.shape[1:]))
            if "int" in t.dtype
            else rng.normal(size=(batch, *t.shape[1:])).astype("float32")
        ),
        Graph(model).inputs_struct,
    )


def _outputs(model, inputs):
    return [np.asarray(t) for t in keras.tree.flatten(model(inputs, training=False))]


def _assert_equal(found, wanted, share=2e-6):
    for one, other in zip(found, wanted, strict=True):
        # Sums over fewer terms, in another order: float rounding.
        atol = share * np.abs(other).max()
        np.testing.assert_allclose(one, other, rtol=0, atol=atol)


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("name", channel_models.EXACT)
def test_the_smaller_model_equals_the_masked_one(name, scope, tmp_path):
    keras.utils.set_random_seed(0)
    model = _randomized(channel_models.EXACT[name]())
    inputs = _inputs(model)
    before = _outputs(model, inputs)
    plan, removed = _planned(model, scope=scope)
    assert not plan.channels.barriers
    small, _ = remove_channels(plan.channels, removed)
    assert small.count_params() < 0.8 * model.count_params()
    # In a file are the settings that operations were made with.
    small.save(tmp_path / "small.keras")
    small = keras.models.load_model(tmp_path / "small.keras")
    masked = plan.channels.graph.model
    _mask(plan, removed)
    wanted = _outputs(masked, inputs)
    _assert_equal(_outputs(small, inputs), wanted)
    if model.inputs[0].shape[0] is None:
        assert tfc.measure(small).macs in (plan.macs(removed), None)
    assert any(
        np.abs(a - b).max() > 1e-3 for a, b in zip(before, wanted, strict=True)
    ), "nothing that matters was removed, so nothing was tested"


def _statistics_of_kept(plan, removed):
    """The masked model with normalization over the channels that stay alone."""

    def visit(call, clone, args, kwargs):
        operation = call.operation
        kinds = (layers.LayerNormalization, layers.RMSNormalization)
        kept = None
        if isinstance(operation, (*kinds, layers.GroupNormalization)):
            ids = plan.channels.axes_of(call.input_tensors[0])[-1]
            kept = np.flatnonzero(~removed[plan.channels.groups(ids)])
        if kept is None:
            return clone(operation)(*args, **kwargs)
        config = operation.get_config()
        if config.get("groups") == len(ids):
            config["groups"] = len(kept)
        small = type(operation).from_config(config)
        y = small(keras.ops.take(args[0], kept, axis=-1))
        for old, new in zip(operation.weights, small.weights, strict=True):
            new.assign(old.numpy()[kept])
        spread = np.eye(len(ids), dtype="float32")[kept]
        return keras.ops.matmul(y, spread)

    return rewrite(plan.channels.graph, visit)


@pytest.mark.parametrize("name", channel_models.NORMALIZED)
def test_normalization_takes_the_statistics_of_what_stays(name):
    model = _randomized(channel_models.NORMALIZED[name]())
    inputs = _inputs(model)
    plan, removed = _planned(model)
    small, _ = remove_channels(plan.channels, removed)
    _mask(plan, removed)
    reference = _statistics_of_kept(plan, removed)
    _assert_equal(_outputs(small, inputs), _outputs(reference, inputs))


_CONVNEXTS = ("Tiny", "Small", "Base", "Large", "XLarge")


@pytest.mark.slow
@pytest.mark.parametrize("size", _CONVNEXTS)
def test_convnext_loses_channels(size):
    """Layer normalization sees less, which masks alone do not show."""
    make = getattr(keras.applications, f"ConvNeXt{size}")
    model = _randomized(make(input_shape=(32, 32, 3), weights=None, classes=10))
    inputs = _inputs(model)
    plan, removed = _planned(model)
    small, _ = remove_channels(plan.channels, removed)
    assert not plan.channels.barriers
    assert small.count_params() < 0.4 * model.count_params()
    _mask(plan, removed)
    reference = _statistics_of_kept(plan, removed)
    # Rounding adds up over a hundred layers.
    _assert_equal(_outputs(small, inputs), _outputs(reference, inputs), share=1e-5)


_APPLICATIONS = sorted(
    name
    for name, made in vars(keras.applications).items()
    if callable(made) and name[0].isupper() and not name.startswith("ConvNeXt")
)
_LEAST_SIZE = {"InceptionResNetV2": 75, "InceptionV3": 75, "Xception": 71}
# Random networks of that depth make the rounding of float32 as large as the outputs.
_NEED_DOUBLE_PRECISION = ("EfficientNetV2L", "EfficientNetV2M")


@pytest.fixture
def double_precision():
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize(
    "name",
    [
        name if name == "MobileNetV2" else pytest.param(name, marks=pytest.mark.slow)
        for name in _APPLICATIONS
        if name not in _NEED_DOUBLE_PRECISION
    ],
)
def test_architectures_of_keras_applications_lose_channels(name, tmp_path):
    _loses_channels(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", _NEED_DOUBLE_PRECISION)
def test_the_deepest_of_them_lose_channels(name, tmp_path, double_precision):
    _loses_channels(name, tmp_path)


def _loses_channels(name, tmp_path):
    size = _LEAST_SIZE.get(name, 64)
    model = getattr(keras.applications, name)(
        input_shape=(size, size, 3),
        weights=None,
        classes=10,
        classifier_activation=None,
    )
    _randomized(model)
    inputs = _inputs(model)
    plan, removed = _planned(model)
    small, _ = remove_channels(plan.channels, removed)
    assert not plan.channels.barriers
    assert small.count_params() == sum(size for _, size in plan.sizes(removed))
    assert tfc.measure(small).macs == plan.macs(removed)
    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    _mask(plan, removed)
    # Rounding adds up over a hundred layers.
    _assert_equal(_outputs(loaded, inputs), _outputs(model, inputs), share=1e-5)


def test_the_fraction_is_removed_from_every_layer_and_the_model_stays():
    model = tfc.zoo.resnet8()
    weights = model.get_weights()
    small, report = tfc.prune_channels(model, 0.25, return_report=True)
    assert small.get_layer("stack1_conv1").filters == 12
    assert small.get_layer("stack3_conv2").filters == 48
    assert small.get_layer("classifier").units == 10
    assert report.parameters == (model.count_params(), small.count_params())
    assert report.macs == (tfc.measure(model).macs, tfc.measure(small).macs)
    assert "classifier" in str(report) and "output of the model" in str(report)
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_the_result_trains_and_loads_in_safe_mode(tmp_path):
    small = tfc.prune_channels(tfc.zoo.ds_cnn(width=16), 0.5)
    small.compile("adam", "sparse_categorical_crossentropy")
    x = np.random.default_rng(0).normal(size=(8, 49, 10, 1)).astype("float32")
    small.fit(x, np.arange(8), verbose=0)
    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    np.testing.assert_array_equal(loaded(x), small(x))


def _two_filters():
    """Conv filters of which the norms are 1, 2, 3, 4."""
    inputs = keras.Input((4, 4, 1))
    x = layers.Conv2D(4, 1, use_bias=False, name="conv")(inputs)
    model = keras.Model(inputs, layers.Conv2D(1, 1, name="last")(x))
    model.get_layer("conv").kernel.assign([[[[3.0, -1.0, 4.0, 2.0]]]])
    return model


@pytest.mark.parametrize("score", ["l1", "l2"])
def test_the_lowest_norms_go(score):
    small = tfc.prune_channels(_two_filters(), 0.5, score=score)
    np.testing.assert_array_equal(
        small.get_layer("conv").kernel.numpy().ravel(), [3, 4]
    )


def test_a_function_scores_channels():
    small = tfc.prune_channels(
        _two_filters(), 0.5, score=lambda matrix, name: -np.abs(matrix).sum(axis=0)
    )
    np.testing.assert_array_equal(
        small.get_layer("conv").kernel.numpy().ravel(), [-1, 2]
    )


def test_filters_near_the_geometric_median_go():
    model = _two_filters()
    model.get_layer("conv").kernel.assign([[[[0.0, 10.0, 5.0, 4.9]]]])
    small = tfc.prune_channels(model, 0.5, score="geometric_median")
    np.testing.assert_array_equal(
        small.get_layer("conv").kernel.numpy().ravel(), [0, 10]
    )


def test_the_smallest_batch_norm_scales_go():
    inputs = keras.Input((4, 4, 1))
    x = layers.Conv2D(4, 1, name="conv")(inputs)
    x = layers.BatchNormalization(name="bn")(x)
    model = keras.Model(inputs, layers.Conv2D(1, 1)(x))
    model.get_layer("bn").gamma.assign([0.1, -3.0, 0.2, 1.0])
    small = tfc.prune_channels(model, 0.5, score="batch_norm")
    np.testing.assert_allclose(small.get_layer("bn").gamma.numpy(), [-3.0, 1.0])


def test_taylor_scores_are_what_the_loss_changes_by():
    model = _two_filters()
    model.compile("sgd", "mse")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 4, 4, 1)).astype("float32")
    y = rng.normal(size=(8, 4, 4, 1)).astype("float32")
    plan, _ = _planned(model)
    scores = find_scores(
        plan.channels, "taylor", (x, y), chosen={"conv"}, compiled=model
    )
    groups = plan.channels.groups(plan.channels.producers[0].ids)
    # The loss along w * (1 + t) of one filter, differentiated numerically.
    kernel = model.get_layer("conv").kernel
    before = kernel.numpy()
    for index, group in enumerate(groups):
        losses = []
        for t in (-0.01, 0.01):
            changed = before.copy()
            changed[..., index] *= 1 + t
            kernel.assign(changed)
            losses.append(float(np.mean((np.asarray(model(x)) - y) ** 2)))
        kernel.assign(before)
        # 1 %: float32 losses, differences of 1e-2.
        assert abs(losses[1] - losses[0]) / 0.02 == pytest.approx(
            scores[group], rel=0.01, abs=1e-3
        )


def test_feature_maps_of_low_rank_go():
    inputs = keras.Input((4, 4, 1))
    x = layers.Conv2D(2, 3, padding="same", use_bias=False, name="conv")(inputs)
    model = keras.Model(inputs, layers.Conv2D(1, 1)(x))
    kernel = np.zeros((3, 3, 1, 2), "float32")
    kernel[1, 1, 0, 1] = 1.0  # The second map is the image; the first is zero.
    model.get_layer("conv").kernel.assign(kernel)
    images = np.random.default_rng(0).normal(size=(4, 4, 4, 1)).astype("float32")
    small = tfc.prune_channels(model, 0.5, score="rank", data=images)
    assert small.get_layer("conv").kernel.numpy()[1, 1, 0, 0] == 1.0


@pytest.mark.parametrize("score", sorted(set(SCORES) - {"taylor", "rank"}))
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_scores_and_scopes_repeat_themselves(score, scope):
    model = _randomized(tfc.zoo.ds_cnn(width=8))
    first, second = (
        tfc.prune_channels(model, 0.4, scope=scope, score=score) for _ in range(2)
    )
    assert [w.shape for w in first.weights] == [w.shape for w in second.weights]
    for one, other in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "budget",
    [
        {"macs": 0.5},
        {"parameters": 0.3},
        {"parameters": 40_000},
        {"bytes": 0.25},
        {"macs": 0.6, "parameters": 0.5},
    ],
)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_budget_holds_and_is_used(budget, scope):
    model = tfc.zoo.resnet8()
    small = tfc.prune_channels(model, budget=budget, scope=scope)
    before, after = tfc.measure(model), tfc.measure(small)
    shares = []
    for name, limit in budget.items():
        own = getattr(before, name)
        limit = limit * own if isinstance(limit, float) else limit
        assert getattr(after, name) <= limit
        shares.append(getattr(after, name) / limit)
    # One more channel of each layer at most would have stayed.
    assert max(shares) > 0.9


@pytest.mark.slow
def test_a_latency_budget_is_measured_on_the_exported_file(monkeypatch):
    module = sys.modules["tfcompress.prune_channels"]
    plan, removed = _planned(tfc.zoo.ds_cnn(width=8))
    assert module._latency_ms(plan.channels, removed) > 0
    seen = []

    def fake(channels, removed):
        count = lambda ids: np.count_nonzero(~removed[channels.groups(ids)])  # noqa: E731
        seen.append(channels.macs(count))
        return seen[-1] / 1e6

    monkeypatch.setattr(module, "_latency_ms", fake)
    small = tfc.prune_channels(tfc.zoo.resnet8(), budget={"latency": 0.5})
    assert len(seen) <= 10
    share = tfc.measure(small).macs / tfc.measure(tfc.zoo.resnet8()).macs
    assert 0.35 < share <= 0.5


def test_channels_stay_a_multiple():
    model = tfc.zoo.ds_cnn(width=20)
    small = tfc.prune_channels(model, 0.5, round_to=8)
    kept = {
        layer.filters
        for layer in small.layers
        if isinstance(layer, layers.Conv2D)
        and not isinstance(layer, layers.DepthwiseConv2D)
    }
    assert kept == {16}


def test_what_may_not_go_whole_keeps_a_multiple_too():
    inputs = keras.Input((4,))
    x = layers.Dense(32, name="first")(inputs)
    low, high = keras.ops.split(x, 2, axis=-1)
    low, high = layers.Dense(3, name="low")(low), layers.Dense(3, name="high")(high)
    model = keras.Model(inputs, layers.Add()([low, high]))
    kernel = model.get_layer("first").kernel
    kernel.assign(np.where(np.arange(32) < 16, 0.01, 1.0) * np.ones((4, 32)))
    small = tfc.prune_channels(model, 0.5, include="first", round_to=8)
    assert small.get_layer("first").units == 24


def test_tied_layers_with_amounts_of_their_own_are_refused():
    model = tfc.zoo.resnet8()
    rules = [tfc.Rule("stem", amount=0.0), tfc.Rule("stack1_conv2", amount=0.5)]
    with pytest.raises(ValueError, match="'stem' and 'stack1_conv2' share") as error:
        tfc.prune_channels(model, 0.5, rules=rules)
    assert "0.0 and 0.5" in str(error.value)


def test_heads_go_whole():
    inputs = keras.Input((6, 8))
    x = layers.MultiHeadAttention(4, 3, name="mha")(inputs, inputs)
    model = keras.Model(inputs, layers.Dense(2)(x))
    small = tfc.prune_channels(model, 0.5)
    assert small.get_layer("mha").num_heads == 2
    assert small.get_layer("mha").key_dim == 3


def test_include_exclude_and_rules():
    model = tfc.zoo.resnet8()
    small = tfc.prune_channels(
        model,
        0.5,
        exclude="stack1",
        rules=[tfc.Rule("stack3_conv1", amount=0.25)],
    )
    filters = {
        layer.name: layer.filters
        for layer in small.layers
        if isinstance(layer, layers.Conv2D)
    }
    assert filters["stack1_conv1"] == 16
    # Tied to a layer of stack 1 by the addition.
    assert filters["stem"] == 16
    assert filters["stack3_conv1"] == 48
    assert filters["stack2_conv1"] == 16
    only = tfc.prune_channels(model, 0.5, include="stack2_conv1$")
    assert only.get_layer("stack2_conv1").filters == 16
    assert only.get_layer("stack3_conv1").filters == 64


def test_the_optimizer_goes_on_where_it_was():
    model = _two_filters()
    model.compile(keras.optimizers.Adam(0.01), "mse")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 16, 4, 4, 1)).astype("float32")
    model.fit(x, y, epochs=2, verbose=0)
    small = tfc.prune_channels(model, 0.5, keep_optimizer=True)
    kept = [
        i
        for i, w in enumerate(model.get_layer("conv").kernel.numpy().ravel())
        if w in small.get_layer("conv").kernel.numpy()
    ]
    assert int(small.optimizer.iterations) == int(model.optimizer.iterations) == 2
    for before, after in zip(
        model.optimizer.variables, small.optimizer.variables, strict=True
    ):
        values = before.numpy()
        if values.shape != tuple(after.shape):
            axis = next(a for a, n in enumerate(values.shape) if n == 4)
            values = np.take(values, kept, axis)
        np.testing.assert_array_equal(after.numpy(), values)
    small.fit(x, y, verbose=0)


def test_a_subclassed_model_becomes_functional():
    @keras.saving.register_keras_serializable("tests")
    class Net(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.first = layers.Dense(8, activation="relu")
            self.second = layers.Dense(2)

        def call(self, x):
            return self.second(self.first(x))

    model = Net()
    model(np.zeros((1, 4), "float32"))
    small = tfc.prune_channels(model, 0.5)
    assert small.count_params() == 4 * 4 + 4 + 4 * 2 + 2


def test_what_is_not_followed_keeps_its_channels_and_is_named():
    inputs = keras.Input((4, 8))
    x = layers.Dense(8, name="first")(inputs)
    x = layers.Lambda(lambda t: t[..., ::-1], name="turn")(x)
    x = layers.Dense(6, name="second")(x)
    model = keras.Model(inputs, layers.Dense(2, name="last")(x))
    small, report = tfc.prune_channels(model, 0.5, return_report=True)
    assert small.get_layer("first").units == 8
    assert small.get_layer("second").units == 3
    assert "turn" in report.barriers
    assert "'turn'" in next(row for row in report.layers if row[0] == "first")[3]


@keras.saving.register_keras_serializable("tests")
def _turned(x):
    return x[..., ::-1]


@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.SimpleRNN(8, activation="softmax", name="mixed"),
        lambda: layers.LSTM(8, recurrent_activation="softmax", name="mixed"),
        lambda: layers.Dense(8, name="mixed", activation=_turned),
    ],
    ids=["softmax", "recurrent softmax", "custom"],
)
def test_units_that_an_activation_mixes_stay(layer):
    inputs = keras.Input((6, 4))
    x = layers.Dense(6, name="free")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(layer()(x)))
    small = tfc.prune_channels(model, 0.5)
    assert small.get_layer("mixed").units == 8
    assert small.get_layer("free").units == 3


def test_what_a_rule_does_not_fit_stays_and_is_named():
    inputs = keras.Input((6, 8))
    x = layers.Dense(8, name="first")(inputs)
    x = layers.MultiHeadAttention(2, 3, output_shape=(4, 2), name="odd")(x, x)
    x = layers.Dense(6, name="free")(layers.Flatten()(x))
    model = keras.Model(inputs, layers.Dense(2)(x))
    small, report = tfc.prune_channels(model, 0.5, return_report=True)
    assert list(report.barriers) == ["odd"]
    assert small.get_layer("first").units == 8 and small.get_layer("free").units == 3
    # The attention's work counts, though no channel of it can go.
    half = tfc.prune_channels(model, budget={"macs": 0.99})
    assert tfc.measure(half).macs <= 0.99 * tfc.measure(model).macs


def test_layers_with_lora_stay():
    dense = layers.Dense
    model = keras.Sequential(
        [keras.Input((8,)), dense(8, name="lora"), dense(6, name="free"), dense(2)]
    )
    model.get_layer("lora").enable_lora(2)
    small, report = tfc.prune_channels(model, 0.5, return_report=True)
    assert "lora" in report.barriers
    assert small.get_layer("lora").units == 8 and small.get_layer("free").units == 3


def test_layers_that_are_tied_to_others_cannot_be_chosen_alone():
    with pytest.raises(ValueError, match="stem: tied to .*stack1_conv2"):
        tfc.prune_channels(tfc.zoo.resnet8(), 0.5, include="^stem$")
    _, report = tfc.prune_channels(
        tfc.zoo.resnet8(), 0.5, include="stem|stack2_conv1", return_report=True
    )
    why = {name: text for name, *_, text in report.layers}
    assert "not chosen" in why["stem"] and why["stack3_conv1"] == "not chosen"


def test_excluding_what_a_score_lacks_helps():
    inputs = keras.Input((4, 4, 1))
    x = layers.Conv2D(4, 1, name="conv")(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.Dense(4, name="hidden")(layers.Flatten()(x))
    model = keras.Model(inputs, layers.Dense(2)(x))
    with pytest.raises(ValueError, match="hidden"):
        tfc.prune_channels(model, 0.5, score="batch_norm")
    small = tfc.prune_channels(model, 0.5, score="batch_norm", exclude="hidden")
    assert small.get_layer("conv").filters == 2


def test_taylor_reads_frozen_and_nested_layers_and_a_loss_that_nobody_registered():
    inner = keras.Sequential([keras.Input((3,)), layers.Dense(6, name="inner")])
    inner.trainable = False
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layers.Dense(2)(inner(inputs)))
    model.compile("sgd", lambda y, p: keras.ops.mean((y - p) ** 2, axis=-1))
    data = np.ones((8, 3), "float32"), np.zeros((8, 2), "float32")
    kernel = inner.layers[0].kernel
    kernel.assign(np.array([[0, 1, 0, 1, 1, 0]] * 3, "float32"))
    inner.layers[0].bias.assign([0, 0.5, 0, 0.5, 0.5, 0])
    small = tfc.prune_channels(model, 0.5, score="taylor", data=data)
    np.testing.assert_array_equal(small.layers[1].kernel.numpy(), np.ones((3, 3)))


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.SGD(0.01, momentum=0.9),
        lambda: keras.optimizers.Lion(0.001),
        lambda: keras.optimizers.Adam(0.01, use_ema=True),
    ],
    ids=["momentum", "lion", "average"],
)
def test_states_of_any_optimizer_go_on(optimizer):
    model = _two_filters()
    model.compile(optimizer(), "mse")
    x, y = np.random.default_rng(0).normal(size=(2, 16, 4, 4, 1)).astype("float32")
    model.fit(x, y, epochs=2, verbose=0)
    small = tfc.prune_channels(model, 0.5, keep_optimizer=True)
    before = {v.path.split("/")[-1]: v.numpy() for v in model.optimizer.variables}
    for variable in small.optimizer.variables:
        old = before[variable.path.split("/")[-1]]
        if old.shape == tuple(variable.shape):
            np.testing.assert_array_equal(variable.numpy(), old)
        else:
            assert set(variable.numpy().ravel()) <= set(old.ravel())
    small.fit(x, y, verbose=0)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.Adafactor(0.01),
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()),
    ],
    ids=["adafactor", "loss scale"],
)
def test_a_state_that_cannot_be_told_apart_is_refused(optimizer):
    model = _two_filters()
    model.compile(optimizer(), "mse")
    model.fit(np.ones((4, 4, 4, 1)), np.ones((4, 4, 4, 1)), verbose=0)
    with pytest.raises(ValueError, match="Compile the result instead"):
        tfc.prune_channels(model, 0.5, keep_optimizer=True)


def test_a_smaller_model_becomes_integers(tmp_path):
    model = _randomized(channel_models.EXACT["gated halves"]())
    small = tfc.prune_channels(model, 0.5)
    data = _inputs(small, 16)
    qat = tfc.quantize_aware(small, "int8", calibration_data=data)
    result = tfc.export_tflite(qat, tmp_path / "small.tflite", kind="int8")
    assert result.fully_integer


def test_softmax_over_channels_keeps_them():
    inputs = keras.Input((4,))
    x = layers.Dense(8, activation="softmax", name="mixed")(inputs)
    x = layers.Dense(6, name="free")(x)
    model = keras.Model(inputs, layers.Dense(2)(x))
    small = tfc.prune_channels(model, 0.5)
    assert small.get_layer("mixed").units == 8
    assert small.get_layer("free").units == 3


@pytest.mark.parametrize(
    "settings, message",
    [
        ({}, "either `amount`"),
        ({"amount": 0.5, "budget": {"macs": 0.5}}, "either `amount`"),
        ({"amount": 1.0}, r"in \[0, 1\)"),
        ({"amount": "half"}, r"in \[0, 1\)"),
        ({"budget": {"macs": float("nan")}}, "above 0"),
        ({"amount": -0.1}, r"in \[0, 1\)"),
        ({"amount": 0.5, "scope": "erk"}, "`scope`"),
        ({"amount": 0.5, "score": "l3"}, "`score` must be one of"),
        ({"amount": 0.5, "score": "taylor"}, "Pass `data`"),
        ({"amount": 0.5, "score": "rank"}, "Pass `data`"),
        ({"amount": 0.5, "round_to": 0}, "`round_to`"),
        ({"budget": {"speed": 1}}, "`budget` must be a dict"),
        ({"budget": {"macs": 1.5}}, "a float is a share"),
        ({"budget": {"macs": 0}}, "above 0"),
        ({"budget": {"parameters": 2}}, "The least there is"),
        ({"amount": 0.5, "rules": [tfc.Rule("conv", sparsity=0.5)]}, "sets `amount`"),
        ({"amount": 0.5, "rules": [tfc.Rule("conv", amount=1.0)]}, "sets `amount`"),
        ({"amount": 0.5, "exclude": "conv"}, "has channels that can go"),
        ({"amount": 0.5, "include": "nothing"}, "matches nothing"),
        ({"amount": 0.5, "score": "batch_norm"}, "no batch normalization"),
        ({"amount": 0.5, "score": lambda m, n: [1.0]}, "one for each of its 4"),
        ({"amount": 0.5, "keep_optimizer": True}, "no optimizer"),
    ],
)
def test_bad_input_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tfc.prune_channels(_two_filters(), **settings)


def test_a_model_whose_every_channel_stays_says_why():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(3, name="head")(inputs))
    with pytest.raises(ValueError, match="head: they are an output of the model"):
        tfc.prune_channels(model, 0.5)


def test_a_quantization_aware_model_is_refused():
    qat = tfc.quantize_aware(_two_filters())
    with pytest.raises(ValueError, match="tfc.strip"):
        tfc.prune_channels(qat, 0.5)


def test_macs_that_cannot_be_known_are_no_budget():
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 3)(inputs)
    model = keras.Model(inputs, layers.Conv2D(2, 3)(x))
    with pytest.raises(ValueError, match="full shape"):
        tfc.prune_channels(model, budget={"macs": 0.5})
    assert tfc.prune_channels(model, 0.5).layers[1].filters == 2


def test_a_frozen_part_of_a_layer_stays_frozen():
    inputs = keras.Input((5, 8))
    attention = layers.MultiHeadAttention(4, 3, name="attention")
    model = keras.Model(inputs, attention(inputs, inputs))
    attention.query_dense.trainable = False
    small = tfc.prune_channels(model, 0.5)
    assert small.get_layer("attention").num_heads == 2
    assert not small.get_layer("attention").query_dense.trainable
    assert len(small.trainable_variables) == 6
