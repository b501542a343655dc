"""A user's class of model outlives the passes."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.graph.remade import remade


class Counting(keras.Model):
    """Counts its steps."""

    steps = 0

    def train_step(self, data):
        type(self).steps += 1
        return super().train_step(data)


class Tracking(Counting):
    """As the guides of Keras write it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.tracker = keras.metrics.Mean(name="tracked")


class Spelled(Counting):
    def __init__(self, inputs, outputs, name=None):
        super().__init__(inputs, outputs, name=name)


class Positional(Counting):
    """Takes no name."""

    def __init__(self, *args):
        super().__init__(*args)


class OtherNames(Counting):
    """Keras loads no file of a class whose arguments have other names."""

    def __init__(self, *tensors, **settings):
        super().__init__(*tensors, **settings)


class Wider(Counting):
    """Needs what nobody else knows."""

    def __init__(self, inputs, outputs, temperature, **kwargs):
        super().__init__(inputs, outputs, **kwargs)
        self.temperature = temperature


class WithWeight(Counting):
    """A weight beside the graph."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.temperature = self.add_weight(shape=(), name="temperature")


class WithLayer(Counting):
    """A layer beside the graph."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.projection = layers.Dense(2)


class MadeInsideOfKeywords(Counting):
    def __init__(self, **kwargs):
        inputs, outputs = _tensors()
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)


class MadeInsideWhatever(Counting):
    """Takes a graph and makes another."""

    def __init__(self, *args, **kwargs):
        super().__init__(*_tensors(), name=kwargs.get("name"))


class MadeInside(Counting):
    def __init__(self):
        super().__init__(*_tensors())


class OwnSequence(keras.Sequential):
    pass


class OwnCall(keras.Model):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.dense = layers.Dense(3)

    def call(self, x):
        return self.dense(x)


def _tensors():
    inputs = keras.Input((6,))
    x = layers.Dense(8, activation="relu")(inputs)
    return inputs, layers.Dense(3, activation="softmax")(x)


@pytest.mark.parametrize("cls", [keras.Model, Counting, Tracking, Spelled])
def test_a_class_that_takes_a_graph_is_kept(cls):
    model = cls(*_tensors(), name="own")
    made = remade(model, *_tensors())
    assert type(made) is type(model) and made.name == "own"
    assert remade(model, *_tensors(), name="other").name == "other"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Positional(*_tensors()),
        lambda: OtherNames(*_tensors()),
        lambda: Wider(*_tensors(), temperature=3),
        lambda: WithWeight(*_tensors()),
        lambda: WithLayer(*_tensors()),
        MadeInside,
        MadeInsideOfKeywords,
        MadeInsideWhatever,
        lambda: OwnSequence([keras.Input((6,)), layers.Dense(3)]),
        OwnCall,
    ],
)
def test_of_another_it_is_a_plain_model(make):
    made = remade(make(), *_tensors())
    assert type(made) is type(keras.Model(*_tensors()))


@pytest.mark.parametrize(
    "compress",
    [
        tfc.quantize_aware,
        lambda model: tfc.cluster(model, 4),
        lambda model: tfc.prune_channels(model, 0.5),
        lambda model: tfc.fold(tfc.strip(tfc.quantize_aware(model))),
    ],
    ids=["quantize_aware", "cluster", "prune_channels", "strip and fold"],
)
@pytest.mark.parametrize("cls", [Counting, Tracking])
def test_its_train_step_trains_the_compressed_model(cls, compress):
    keras.utils.set_random_seed(0)
    made = compress(cls(*_tensors()))
    made.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)
    before = cls.steps
    x = np.random.default_rng(0).normal(size=(8, 6)).astype("float32")
    made.fit(x, np.arange(8) % 3, batch_size=4, verbose=0)
    assert cls.steps == before + 2


def test_plain_attributes_go_along_and_those_of_a_fit_do_not():
    model = Tracking(*_tensors())
    model.temperature, model.loss_of_own = 2.5, keras.losses.MeanSquaredError()
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(np.zeros((4, 6)), np.zeros((4, 3)), verbose=0)
    made = remade(model, *_tensors())
    assert made.temperature == 2.5 and made.loss_of_own is model.loss_of_own
    assert getattr(made, "optimizer", None) is None and not made.compiled
    assert made.tracker is not model.tracker


def test_a_layer_among_the_attributes_is_of_the_old_graph():
    model = Tracking(*_tensors())
    model.head = model.layers[-1]
    assert type(remade(model, *_tensors())) is type(keras.Model(*_tensors()))


class Tenfold(keras.Model):
    """A graph, and a `call` that does more."""

    def call(self, x, training=None):
        return 10 * super().call(x, training=training)


@pytest.mark.parametrize("compress", [tfc.fold, tfc.quantize_aware, tfc.strip])
def test_a_call_of_its_own_is_what_counts(compress):
    model = Tenfold(*_tensors())
    x = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
    made = compress(model)
    if compress is tfc.quantize_aware:
        made = tfc.quantize_aware(model, calibration_data=x)
    assert np.abs(made(x) - model(x)).max() < 0.1


class OwnCompile(Tracking):
    def compile(self, rate, **kwargs):
        super().compile(keras.optimizers.SGD(rate), **kwargs)


@pytest.mark.filterwarnings("ignore:`compile")
def test_an_optimizer_that_its_own_compile_made_is_not_carried_over():
    model = OwnCompile(*_tensors())
    model.compile(0.1, loss="mse")
    model.fit(np.zeros((4, 6)), np.zeros((4, 3)), verbose=0)
    with pytest.raises(ValueError, match="OwnCompile has a `compile` of its own"):
        tfc.prune_channels(model, 0.5, keep_optimizer=True)
    assert type(tfc.prune_channels(model, 0.5)) is type(model)


def test_it_goes_the_whole_way(tmp_path):
    model = Tracking(*_tensors())
    x = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    qat = tfc.quantize_aware(model, calibration_data=x)
    qat.compile("adam", "sparse_categorical_crossentropy")
    qat.fit(x, np.arange(64) % 3, verbose=0)
    qat.save(tmp_path / "qat.keras")
    loaded = keras.models.load_model(
        tmp_path / "qat.keras", custom_objects={"Tracking": Tracking}
    )
    assert type(loaded).__name__ == "Tracking"
    result = tfc.export_tflite(loaded, tmp_path / "model.tflite", kind="int8")
    assert result.fully_integer
