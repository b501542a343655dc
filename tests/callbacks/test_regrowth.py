"""Dynamic sparse training and rewinding: `tfc.Pruning(regrow=...)`, `rewind=...`."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from callbacks.test_pruning import fit, prune_all
from networks import Subclassed, compiled, conv_net, image_data, zeros

import tfcompress as tfc
from tfcompress.graph import slots_of
from tfcompress.numerics.layer_sparsity import erdos_renyi_kernel


class Watch(keras.callbacks.Callback):
    """Notes the kernels before every step, and after the last."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_begin(self, batch, logs=None):
        found = tfc.graph.kernels(self.model)
        self.seen.append({path: v.numpy() for path, v in found.items()})

    def masks(self, path):
        return [seen[path] != 0 for seen in self.seen]


def _pruning_masks(pruning):
    return {p.path: p.mask.numpy() for p in pruning._pruned}


class WatchMasks(keras.callbacks.Callback):
    """Notes the masks after every step; stands behind the `Pruning`."""

    def __init__(self, pruning):
        super().__init__()
        self.pruning = pruning
        self.seen = []

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 0:
            self.seen.append(_pruning_masks(self.pruning))

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(_pruning_masks(self.pruning))

    def of(self, path):
        return [masks[path] for masks in self.seen]


def _data():
    return tuple(array[:64] for array in image_data())


@pytest.mark.slow
@pytest.mark.parametrize("regrow", ["random", "gradient"])
@pytest.mark.parametrize("scope", ["layer", "erk", "global"])
def test_the_sparsity_is_the_same_throughout_while_masks_move(regrow, scope):
    model = compiled(conv_net())
    pruning = prune_all(0.7, scope=scope, regrow=regrow, data=_data(), frequency=3)
    watch = WatchMasks(pruning)
    history = fit(model, pruning, watch, epochs=8).history
    for path, first in watch.seen[0].items():
        counts = {np.count_nonzero(masks[path]) for masks in watch.seen}
        assert counts == {np.count_nonzero(first)}, path
    total = sum(mask.size for mask in watch.seen[0].values())
    kept = sum(np.count_nonzero(mask) for mask in watch.seen[0].values())
    # ERK is rounded kernel by kernel.
    assert total - kept == pytest.approx(0.7 * total, abs=3)
    hidden = watch.of("hidden/kernel")
    assert not np.array_equal(hidden[0], hidden[-1])
    # 48 steps: nothing moves from step 36 on.
    assert np.array_equal(hidden[36], hidden[-1])
    if scope == "erk":
        # Elsewhere the last layer, of 24 weights, keeps too few to be sure.
        assert history["accuracy"][-1] > 0.8


def test_the_optimizer_forgets_what_grows_back():
    model = compiled(conv_net(), optimizer=keras.optimizers.Adam(0.01))
    pruning = prune_all(0.7, regrow="random", frequency=3)
    grown = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            masks, before = _pruning_masks(pruning), self.before
            self.before = masks
            for slot in slots_of(model.optimizer, model.trainable_variables):
                if slot.what != "momentum" or slot.weight.path not in masks:
                    continue
                new = masks[slot.weight.path] & ~before[slot.weight.path]
                values = slot.variable.numpy()
                assert not values[new].any()
                if new.any():
                    # What stayed is remembered.
                    assert values[masks[slot.weight.path] & ~new].any()
                    grown.append(slot.weight.path)

        def on_epoch_begin(self, epoch, logs=None):
            self.before = _pruning_masks(pruning)

    fit(model, pruning, Look(), epochs=4)
    assert "hidden/kernel" in grown


def test_erk_is_shared_out_from_the_first_step():
    model = compiled(conv_net())
    pruning = prune_all(0.7, scope="erk", regrow="random")
    watch = WatchMasks(pruning)
    fit(model, pruning, watch)
    shapes = [mask.shape for mask in watch.seen[0].values()]
    expected = erdos_renyi_kernel(shapes, 0.7)
    for mask, sparsity in zip(watch.seen[0].values(), expected, strict=True):
        assert np.count_nonzero(~mask) == round(sparsity * mask.size)


def test_as_many_move_as_the_cosine_says():
    # Weights stand still and the lowest stay the lowest: what is dropped is known.
    model = compiled(conv_net(), optimizer=keras.optimizers.SGD(0.0))
    pruning = tfc.Pruning(0.5, include="hidden", regrow="random", frequency=6)
    watch = WatchMasks(pruning)
    fit(model, pruning, watch, epochs=4)
    masks = watch.of("hidden/kernel")
    alive = masks[0].sum()
    for step in (6, 12):
        wanted = round(0.3 / 2 * (1 + math.cos(math.pi * step / 18)) * alive)
        lost = masks[step - 1] & ~masks[step]
        # Some of what is dropped is drawn again.
        assert 0.2 * wanted < lost.sum() <= wanted
        assert lost.sum() == (masks[step] & ~masks[step - 1]).sum()
    changes = [i for i in range(1, 25) if not np.array_equal(masks[i], masks[i - 1])]
    assert changes == [6, 12]


def test_rigl_grows_where_the_gradient_is_largest_from_zero():
    model = compiled(conv_net(), optimizer=keras.optimizers.SGD(0.01))
    x, y = image_data()
    pruning = tfc.Pruning(
        0.6, include="hidden", regrow="gradient", data=(x[:32], y[:32]), frequency=6
    )
    watch = WatchMasks(pruning)
    found = {}

    class ByHand(keras.callbacks.Callback):
        """Gradients by another way, before the Pruning updates."""

        def on_train_batch_end(self, batch, logs=None):
            if len(watch.seen) == 6 and not found:
                kernel = self.model.get_layer("hidden").kernel
                clone = keras.models.clone_model(self.model)
                clone.set_weights(self.model.get_weights())
                loss = keras.losses.SparseCategoricalCrossentropy()
                with tf.GradientTape() as tape:
                    value = loss(y[:32], clone(x[:32], training=True))
                slope = tape.gradient(value, clone.get_layer("hidden").kernel.value)
                found.update(slope=np.abs(slope.numpy()), weight=kernel.numpy())

    class After(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if len(watch.seen) == 7:
                found["after"] = self.model.get_layer("hidden").kernel.numpy()

    fit(model, ByHand(), pruning, watch, After(), epochs=4)
    before, after = watch.of("hidden/kernel")[5:7]
    size = np.abs(found["weight"])
    swapped = round(0.15 * (1 + math.cos(math.pi / 3)) * before.sum())
    # The lowest of those alive went, unless their gradient brings them back.
    threshold = np.sort(size[before])[swapped]
    survivors = before & (size >= threshold)
    assert after[survivors].all()
    grown = after & ~survivors
    assert grown.sum() == swapped
    rest = ~after
    # 1e-4 of the largest: float32 sums in another order.
    assert found["slope"][grown].min() >= (
        found["slope"][rest].max() - 1e-4 * found["slope"].max()
    )
    assert (found["after"][grown & ~before] == 0).all()
    # And they are not what magnitude, or chance, would have taken.
    assert found["slope"][grown].mean() > 2 * found["slope"][rest].mean()


def test_what_grew_is_trained():
    model = compiled(conv_net())
    pruning = tfc.Pruning(0.8, include="hidden", regrow="random", frequency=4)
    watch = WatchMasks(pruning)
    fit(model, pruning, watch, epochs=6)
    masks = watch.of("hidden/kernel")
    grown = masks[-1] & ~masks[0]
    assert grown.any()
    kernel = model.get_layer("hidden").kernel.numpy()
    # An input that is always zero behind ReLU has no gradient.
    assert np.mean(kernel[grown] != 0) > 0.8
    assert (kernel[~masks[-1]] == 0).all()


@pytest.mark.parametrize("pattern", [(4, 1), "filter", "channel"], ids=str)
def test_units_of_a_pattern_grow_as_wholes(pattern):
    model = compiled(conv_net())
    pruning = tfc.Pruning(
        0.5, include="hidden", pattern=pattern, regrow="random", frequency=2
    )
    watch = WatchMasks(pruning)
    fit(model, pruning, watch, epochs=6)
    masks = watch.of("hidden/kernel")
    assert not np.array_equal(masks[0], masks[-1])
    for mask in masks:
        units = {
            (4, 1): mask.reshape(-1, 4, 8).transpose(0, 2, 1).reshape(-1, 4),
            "filter": mask.T,
            "channel": mask,
        }[pattern]
        assert (units.all(axis=1) | ~units.any(axis=1)).all()
        assert np.mean(mask) == 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{"jit_compile": True}, {"steps_per_execution": 4}, {"subclassed": True}],
    ids=str,
)
def test_regrowth_however_a_step_runs(settings):
    x, _ = image_data()
    model = conv_net()
    if settings.pop("subclassed", False):
        model = Subclassed()
        model(x[:1])
    model = compiled(model, **settings)
    pruning = prune_all(0.6, regrow="gradient", data=_data())
    fit(model, pruning, epochs=8)
    for kernel in tfc.graph.kernels(model).values():
        assert np.mean(kernel.numpy() == 0) >= round(0.6 * kernel.numpy().size) / (
            kernel.numpy().size
        )


@pytest.mark.slow
def test_a_resumed_run_has_the_same_sparsity():
    model = compiled(conv_net())
    fit(model, tfc.Pruning(0.7, include="hidden", regrow="random"), epochs=2)
    pruning = tfc.Pruning(0.7, include="hidden", regrow="random")
    watch = WatchMasks(pruning)
    first = model.get_layer("hidden").kernel.numpy() != 0
    fit(model, pruning, watch, epochs=8, initial_epoch=2)
    counts = {int(mask.sum()) for mask in watch.of("hidden/kernel")}
    assert counts == {1024 - round(0.7 * 1024)}
    start = watch.of("hidden/kernel")[0]
    # What had just grown and is zero still cannot be told from what is masked.
    assert np.mean(start == first) > 0.95


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"regrow": "always"}, "`regrow` must be one of"),
        ({"regrow": "random", "regrow_fraction": 0}, r"must be in \(0, 1\)"),
        ({"regrow": "random", "pattern": "2:4", "sparsity": 0.5}, "not N of M"),
        (
            {
                "regrow": "random",
                "schedule": tfc.schedules.Polynomial(0, 0.5, end=9),
            },
            "same throughout",
        ),
        ({"regrow": "random", "sparsity": None}, "needs a `sparsity`"),
        ({"regrow": "random", "rewind": "weights"}, "do not go together"),
        ({"rewind": "time"}, "`rewind` must be one of"),
        ({"rewind": "weights", "sparsity": None}, "needs a `sparsity`"),
        ({"rewind": "weights", "rewind_step": -1}, "whole number of steps"),
        (
            {"rewind": "weights", "schedule": tfc.schedules.Cosine(0, 0.5, end=9)},
            "schedule in rounds",
        ),
    ],
    ids=str,
)
def test_arguments_that_contradict_each_other(settings, text):
    with pytest.raises(ValueError, match=text):
        tfc.Pruning(**settings)


def test_gradients_without_data():
    with pytest.raises(ValueError, match="regrow='gradient'.*Pass `data`"):
        fit(compiled(conv_net()), tfc.Pruning(0.5, regrow="gradient"))


# Rewinding.


class WatchState(keras.callbacks.Callback):
    """Notes all weights and the optimizer after each step, behind the `Pruning`."""

    def __init__(self):
        super().__init__()
        self.weights, self.optimizer = [], []

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 0:
            self._note()

    def on_train_batch_end(self, batch, logs=None):
        self._note()

    def _note(self):
        self.weights.append(self.model.get_weights())
        self.optimizer.append([v.numpy() for v in self.model.optimizer.variables])


def _fit_rewinding(rewind, rewind_step=0, **settings):
    model = compiled(conv_net(), **settings)
    watch = WatchState()
    # 24 steps: rounds end at 6, 12 and 18.
    pruning = prune_all(
        schedule=tfc.schedules.Iterative(0.875, rounds=3, every=6),
        rewind=rewind,
        rewind_step=rewind_step,
    )
    history = fit(model, pruning, watch, epochs=4).history
    return model, watch, history


@pytest.mark.parametrize("step", [0, 2])
def test_weights_and_optimizer_go_back_and_masks_stay(step):
    model, watch, history = _fit_rewinding("weights", step)
    early, early_optimizer = watch.weights[step], watch.optimizer[step]
    kernel_ids = {id(v) for v in tfc.graph.kernels(model).values()}
    for end, sparsity in ((6, 0.5), (12, 0.75), (18, 0.875)):
        for variable, old, new in zip(
            model.weights, early, watch.weights[end], strict=True
        ):
            if id(variable) not in kernel_ids:
                np.testing.assert_array_equal(new, old)
                continue
            assert np.count_nonzero(new == 0) == round(sparsity * new.size)
            np.testing.assert_array_equal(new[new != 0], old[new != 0])
        for old, new in zip(early_optimizer, watch.optimizer[end], strict=True):
            np.testing.assert_array_equal(new, old)
        assert model.optimizer.iterations.numpy() == 24 - 18 + step
    np.testing.assert_allclose(
        history["sparsity"], [0.5, 0.75, 0.875, 0.875], atol=0.01
    )


def test_what_is_dropped_was_low_at_the_end_of_its_round():
    # Early weights are given back, but late ones are judged.
    _, watch, _ = _fit_rewinding("weights")
    index = [w.shape for w in watch.weights[0]].index((128, 8))
    early, after = watch.weights[0][index], watch.weights[6][index]
    kept = after != 0
    assert np.abs(early[kept]).min() < np.abs(early[~kept]).max()


def test_only_the_learning_rate_goes_back():
    rate = keras.optimizers.schedules.PiecewiseConstantDecay([3], [0.01, 0.001])
    model, watch, _ = _fit_rewinding(
        "learning_rate", optimizer=keras.optimizers.Adam(rate)
    )
    weights = [v.path for v in model.weights].index(
        model.get_layer("classifier").bias.path
    )
    # No jump: the bias goes on from where it was, at most a step of Adam away.
    for end in (6, 12, 18):
        moved = np.abs(watch.weights[end][weights] - watch.weights[end - 1][weights])
        assert 0 < moved.max() < 0.02
        assert not np.array_equal(
            watch.weights[end][weights], watch.weights[0][weights]
        )
        iterations, *moments = watch.optimizer[end][:1], *watch.optimizer[end][2:]
        assert iterations[0] == 0
        assert all(not np.any(m) for m in moments)
    assert model.optimizer.iterations.numpy() == 6


@pytest.mark.slow
@pytest.mark.parametrize("rewind", ["weights", "learning_rate"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"jit_compile": True}, {"steps_per_execution": 4}],
    ids=str,
)
def test_rewound_models_train(rewind, settings):
    model = compiled(conv_net(), **settings)
    history = fit(model, prune_all(0.7, rewind=rewind), epochs=24).history
    assert zeros(model) == [
        round(0.7 * v.numpy().size) / v.numpy().size
        for v in tfc.graph.kernels(model).values()
    ]
    assert history["accuracy"][-1] > 0.8
    # Five rounds, each of which takes the same fraction of what is left.
    expected = {round(1 - 0.3 ** (i / 5), 2) for i in range(6)}
    # 0.01: whole weights of small kernels.
    assert all(min(abs(s - e) for e in expected) < 0.011 for s in history["sparsity"])


def test_one_round_alone():
    model = compiled(conv_net())
    pruning = tfc.Pruning(
        schedule=tfc.schedules.Constant(0.8, begin=12),
        include="hidden",
        rewind="weights",
        rewind_step=3,
    )
    watch = WatchState()
    fit(model, pruning, watch, epochs=4)
    index = [w.shape for w in watch.weights[0]].index((128, 8))
    early, after = watch.weights[3][index], watch.weights[12][index]
    np.testing.assert_array_equal(after[after != 0], early[after != 0])
    assert np.count_nonzero(after == 0) == round(0.8 * 1024)


def test_a_run_that_cannot_go_back_says_so():
    with pytest.raises(ValueError, match="starts at step 12.*without `rewind`"):
        fit(
            compiled(conv_net()),
            tfc.Pruning(0.8, rewind="weights"),
            epochs=8,
            initial_epoch=2,
        )
    with pytest.raises(ValueError, match="ends at step 4.*lower `rewind_step`"):
        fit(compiled(conv_net()), tfc.Pruning(0.8, rewind="weights", rewind_step=9))


def test_a_model_without_an_optimizer_of_its_own():
    class Own(keras.Model):
        def train_step(self, data):
            return {"loss": 0.0}

    plain = conv_net()
    model = Own(plain.input, plain.output)
    model.compile()
    model.optimizer = None
    with pytest.raises(ValueError, match="resets `model.optimizer`"):
        fit(model, tfc.Pruning(0.5, rewind="weights"))


def test_a_run_resumed_after_the_last_round_goes_on():
    model = compiled(conv_net())
    fit(model, prune_all(0.8, rewind="weights"), epochs=6)
    before = zeros(model)
    fit(model, prune_all(0.8, rewind="weights"), epochs=7, initial_epoch=6)
    assert zeros(model) == before


@pytest.mark.parametrize(
    "settings",
    [
        {"regrow": "random", "regrow_fraction": 0.2, "scope": "erk"},
        {"rewind": "weights", "rewind_step": 5},
        {"schedule": tfc.schedules.Iterative(0.6, rounds=2, every=9)},
        {"pattern": "filter", "score": "movement", "skip_small_and_last": False},
    ],
    ids=str,
)
def test_the_config_comes_back(settings):
    pruning = tfc.Pruning(**settings)
    serialized = keras.saving.serialize_keras_object(pruning)
    back = keras.saving.deserialize_keras_object(serialized)
    assert back.get_config() == pruning.get_config()
