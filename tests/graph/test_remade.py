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


class Wider(Counting):
    """Needs what nobody else knows."""

    def __init__(self, inputs, outputs, temperature, **kwargs):
        super().__init__(inputs, outputs, **kwargs)
        self.temperature = temperature


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
        lambda: Wider(*_tensors(), temperature=3),
        MadeInside,
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
