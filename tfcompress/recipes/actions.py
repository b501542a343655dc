"""What each kind of stage does to a model: the same in `apply`, rehearsal and run.

Example:
    ```python
    model, report = act(stage, model, data)              # a pass
    model = wrapped(held, model, teacher)                # distillation, if it is held
    callbacks = made_callbacks(held, data)
    ```
"""

import contextlib
import inspect
import pathlib
import tempfile

import keras

from tfcompress.deploy.teachers import as_teacher
from tfcompress.distill import distill
from tfcompress.passes.distill import Distiller
from tfcompress.recipes.stages import CALLBACKS

# Scores that are read from gradients or values of the loss.
_BY_LOSS = ("taylor", "loss")


@contextlib.contextmanager
def named(number, stage):
    """Puts the stage's place and name in front of errors that a user can mend."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError) as err:
        kind = TypeError if isinstance(err, TypeError) else ValueError
        raise kind(f"Stage {number}, `{stage.name}`: {err}") from err


def act(stage, model, data, objective=None):
    """Runs a pass on a model.

    Args:
        stage: `Stage` of one of `PASSES`.
        model: `keras.Model`.
        data: `RunData` to take examples from, or `None`.
        objective: As of `Fit.compile`; for scores by the loss.

    Returns:
        Pair of the new model and the verb's report as text, `""` if it has none.
    """
    settings = stage.arguments() | examples_for(stage, data)
    if settings.get("score") in _BY_LOSS and objective and not model.compiled:
        model.compile("adam", **objective(None))
    if "return_report" not in inspect.signature(stage.verb).parameters:
        return stage.verb(model, **settings), ""
    model, report = stage.verb(model, return_report=True, **settings)
    return model, str(report)


def examples_for(stage, data):
    """Dict of the examples that a stage reads, from the data of the run."""
    if data is None:
        return {}
    return {
        name: data.first(count)
        for name, count in stage.examples().items()
        if count is not None
    }


def made_callbacks(held, data):
    """New callbacks of the stages that are held for a `fit`.

    Args:
        held: List of `Stage`.
        data: `RunData`, or `None`.
    """
    return [
        stage.verb(**stage.arguments(), **examples_for(stage, data))
        for stage in held
        if stage.name in CALLBACKS
    ]


def wrapped(held, model, teacher):
    """The model with its teacher, if distillation is held; else the model.

    Args:
        held: List of `Stage`.
        model: The model to train.
        teacher: `keras.Model` to learn from where the stage names no other.
    """
    for stage in held:
        if stage.name == "distill":
            settings = stage.arguments()
            path = settings.pop("teacher", None)
            if path:
                teacher = _loaded(path)
            elif teacher is model:
                # It is trained now, and is to teach what it knew before.
                teacher = copied(model)
            return distill(model, teacher, **settings)
    return model


def unwrapped(model):
    """The student of a distiller, or the model itself."""
    return model.student if isinstance(model, Distiller) else model


def copied(model):
    """A copy of a model, not compiled, by way of a `.keras` file."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.keras"
        model.save(path)
        return keras.models.load_model(path, compile=False)


def _loaded(path):
    try:
        return as_teacher(path)
    except (OSError, TypeError, ValueError) as err:
        raise ValueError(f"`teacher` {path!r} cannot be loaded: {err}") from err
