"""The `fit` stage of a recipe: how a model is trained on, and by what loss.

Example:
    ```python
    plan = Fit(epochs=10, learning_rate=1e-3)
    plan.train(model, data, objective, title="Pruning", callbacks=[tfc.Pruning(0.8)])
    ```
"""

import json
import numbers
from dataclasses import dataclass

import keras
import numpy as np

from tfcompress import progress

_DECAYS = ("cosine", "none")


@dataclass(frozen=True)
class Fit:
    """Settings of a `fit` stage.

    Args:
        epochs: Number of epochs.
        learning_rate: Of the first step.
        decay: `"cosine"`, down to zero over the stage; or `"none"`.
        optimizer: Name of a Keras optimizer.
        batch_size: Of arrays; `None` is 32. A data set has batches of its own.
        loss: Name of a Keras loss; `None` is the one the run was given, or else that
            of the compiled model.

    Raises:
        TypeError: If a setting is of a wrong type.
        ValueError: If one is out of range, or Keras does not know a name.
    """

    epochs: int
    learning_rate: float = 1e-3
    decay: str = "cosine"
    optimizer: str = "adam"
    batch_size: int | None = None
    loss: str | None = None

    def __post_init__(self):
        _check_count("epochs", self.epochs)
        if self.batch_size is not None:
            _check_count("batch_size", self.batch_size)
        rate = self.learning_rate
        if isinstance(rate, bool) or not isinstance(rate, numbers.Real):
            raise TypeError(f"`learning_rate` must be a number. Received: {rate!r}")
        if rate <= 0:
            raise ValueError(f"`learning_rate` must be above 0. Received: {rate!r}")
        if self.decay not in _DECAYS:
            raise ValueError(
                f"`decay` must be one of {_DECAYS}. Received: decay={self.decay!r}"
            )
        _check_known("optimizer", self.optimizer, keras.optimizers)
        if self.loss is not None:
            _check_known("loss", self.loss, keras.losses)

    def compile(self, model, data, objective):
        """Compiles the model for this stage.

        Args:
            model: `keras.Model` to train, a distiller included.
            data: `RunData` to train on.
            objective: Function that returns loss and metrics, as `compile` takes them.
        """
        steps = data.steps(self.batch_size)
        rate = self.learning_rate
        if self.decay == "cosine":
            if steps is None:
                raise ValueError(
                    "`decay: cosine` must know how many batches an epoch has, and the "
                    "data set does not say. Give it a length "
                    "(`data.apply(tf.data.experimental.assert_cardinality(n))`), or "
                    "set `decay: none`."
                )
            rate = keras.optimizers.schedules.CosineDecay(rate, self.epochs * steps)
        kind = type(keras.optimizers.get(self.optimizer))
        model.compile(kind(learning_rate=rate), **objective(self.loss))

    def train(self, model, data, title, callbacks=(), *, epochs_done=0):
        """Trains a compiled model; returns the history, a dict of lists.

        A fit that goes on after a kill has the epochs since: none, if all were done.

        Args:
            model: Compiled `keras.Model`.
            data: `RunData`.
            title: What the progress bar says.
            callbacks: Keras callbacks.
            epochs_done: Number of epochs before the kill.
        """
        x, settings = data.for_fit(self.batch_size)
        with progress.bar(title, self.epochs - epochs_done) as advance:
            count = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: advance())
            history = model.fit(
                x,
                epochs=self.epochs,
                initial_epoch=epochs_done,
                verbose=0,
                callbacks=[*callbacks, count],
                **settings,
            )
        return {
            name: [_plain(v) for v in values]
            for name, values in history.history.items()
        }


def _plain(value):
    """A value of the history as a number, or a list of metrics that give several."""
    value = np.asarray(value)
    return value.item() if value.ndim == 0 else value.tolist()


def objective_of(model, loss=None):
    """What to compile a model with: a function of the loss that a stage names.

    Args:
        model: The model that the recipe starts from; its loss, metrics and weights of
            losses are taken where nothing else is said.
        loss: Loss of the run, which comes before the model's.

    Returns:
        Function from the name of a loss, or `None`, to keyword arguments of `compile`.

    Raises:
        ValueError: From the function, if there is no loss.
    """

    def found(name):
        if name is not None or loss is not None:
            return {"loss": loss if name is None else name}
        if getattr(model, "compiled", False):
            config = keras.saving.deserialize_keras_object(model.get_compile_config())
            kept = ("loss", "loss_weights", "metrics", "weighted_metrics")
            return {key: config[key] for key in kept if config.get(key) is not None}
        raise ValueError(
            f"Model {model.name!r} is not compiled, so it is not known by what loss to "
            "train it. Compile it, pass loss=..., or set it in the stage: {'fit': "
            "{'epochs': 5, 'loss': 'sparse_categorical_crossentropy'}}."
        )

    return found


def loss_text(objective):
    """What a model is trained by as text, the same in another process.

    A function is told by its name, a loss by its class and settings.

    Args:
        objective: Keyword arguments of `compile`.
    """
    kept = {key: objective.get(key) for key in ("loss", "loss_weights")}
    return json.dumps(kept, sort_keys=True, default=_described)


def _described(thing):
    if isinstance(thing, np.generic):
        return thing.item()
    name = getattr(thing, "__name__", type(thing).__name__)
    if not isinstance(thing, keras.losses.Loss):
        return name
    try:
        return [name, thing.get_config()]
    except NotImplementedError:  # A loss of a user's own.
        return name


def _check_count(name, value):
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(
            f"`{name}` must be a whole number. Received: {value!r} (of type "
            f"{type(value).__name__})"
        )
    if value < 1:
        raise ValueError(f"`{name}` must be 1 or more. Received: {name}={value}")


def _check_known(argument, name, module):
    """Raises unless Keras knows an optimizer or loss of this name."""
    if not isinstance(name, str):
        raise TypeError(f"`{argument}` must be a name. Received: {name!r}")
    try:
        module.get(name)
    except ValueError as err:
        raise ValueError(
            f"`{argument}` must be the name of one of keras.{argument}"
            f"{'es' if argument == 'loss' else 's'}. Received: {name!r}"
        ) from err
