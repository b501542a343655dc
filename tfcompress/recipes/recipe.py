"""A recipe: the passes, callbacks and trainings of a compression, in order.

Example:
    ```python
    recipe = tfc.Recipe(
        [
            {"prune_channels": {"amount": 0.3}},
            "distill",
            {"fit": {"epochs": 10}},
            {"quantize_aware": {"config": "int8"}},
            {"fit": {"epochs": 2, "learning_rate": 1e-4}},
        ]
    )
    recipe.save("recipe.yaml")
    result = recipe.run(model, (x, y), "out", test_data=(x_test, y_test))
    ```
"""

import difflib
import importlib.resources
import json
import pathlib

from tfcompress.checks import check_model
from tfcompress.deploy.files import check_writable, written_atomically
from tfcompress.recipes import text
from tfcompress.recipes.actions import (
    act,
    made_callbacks,
    named,
    unwrapped,
    wrapped,
)
from tfcompress.recipes.data import RunData
from tfcompress.recipes.order import check_order, made_in
from tfcompress.recipes.run import run_recipe
from tfcompress.recipes.stages import FILES, HELD, PASSES, TRAINING, checked

_KEYS = ("name", "about", "stages")
_SUFFIXES = (".yaml", ".yml", ".json")


class Recipe:
    """An ordered list of stages that compress a model.

    It reads like the script that it stands for. A pass (`prune_channels`, `factorize`,
    `separate_convs`, `prune_layers`, `replace_activations`, `fold`, `cluster`,
    `quantize_aware`) changes the model in its place. A callback (`Pruning`,
    `ChannelPruning`, `QuantizationSchedule`, `ClusteringSchedule`) and `distill` are
    for the next `fit` behind them; there the teacher is the model that the recipe
    started from, or `teacher`, the path of a `.tflite` file, a `.keras` file or a
    SavedModel folder. `fit` trains (`epochs`, `learning_rate`, `decay`, `optimizer`,
    `batch_size`, `loss`). `export_tflite`,
    `export_onnx` and `check_edgetpu` write and check files.

    Settings are those of the verb or callback, by name. Where it takes examples
    (`data`, `calibration_data`) the setting is how many to take of the training data,
    256 by default. An object (`Rule`, `QuantizationConfig`, a schedule, a term of
    `tfc.distillation`) is a mapping from its name to its settings:
    `{"Rule": {"match": "head", "sparsity": 0.5}}`.

    What a stage made stays: the `fit`s behind a `Pruning` hold its zeros, and an order
    in which something would be lost raises and says one that works.

    Args:
        stages: List of stages, each a name (`"fold"`), a mapping from a name to its
            settings (`{"fit": {"epochs": 5}}`), or a callback of this library.
        name: Name of the recipe.
        about: What it is for, in words.

    Attributes:
        stages: Tuple of the stages, each with `name` and `settings`.

    Raises:
        TypeError: If a stage or a setting is of a wrong type, or cannot be written
            down.
        ValueError: If there is no such stage or setting, one is missing or out of
            range, or the order loses something. Names the stage, and the nearest name.
    """

    def __init__(self, stages, *, name=None, about=None):
        if isinstance(stages, (str, dict)) or not hasattr(stages, "__iter__"):
            raise TypeError(
                f"`stages` must be a list. Received: {stages!r} (of type "
                f"{type(stages).__name__})"
            )
        for key, value in (("name", name), ("about", about)):
            if value is not None and not isinstance(value, str):
                raise TypeError(f"`{key}` must be text. Received: {value!r}")
        self.name = name
        self.about = about
        self.stages = tuple(
            checked(entry, f"Stage {number}")
            for number, entry in enumerate(stages, start=1)
        )
        if not self.stages:
            raise ValueError("A recipe has one stage or more. Received: an empty list")
        check_order(self.stages)

    def __repr__(self):
        return f"Recipe({[stage.config() for stage in self.stages]!r})"

    def __eq__(self, other):
        return type(self) is type(other) and self.get_config() == other.get_config()

    __hash__ = None

    # Written down.

    def get_config(self):
        """Returns name, description and stages as plain data."""
        config = {"name": self.name, "about": self.about}
        config = {key: value for key, value in config.items() if value is not None}
        return config | {"stages": [stage.config() for stage in self.stages]}

    @classmethod
    def from_config(cls, config):
        """Rebuilds the recipe from `get_config()`, or from what a file holds."""
        if not isinstance(config, dict) or "stages" not in config:
            raise ValueError(
                "A recipe is a mapping with `stages`, a list, and if you like `name` "
                f"and `about`. Received: {str(config)[:200]}"
            )
        for key in config:
            if key not in _KEYS:
                near = difflib.get_close_matches(str(key), _KEYS, n=1, cutoff=0.5)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(
                    f"A recipe has no {key!r}.{hint} It has {list(_KEYS)}."
                )
        return cls(**config)

    def to_yaml(self):
        """The recipe as YAML text."""
        return text.dumps(self.get_config())

    @classmethod
    def from_yaml(cls, yaml):
        """The recipe of a YAML (or JSON) text.

        Args:
            yaml: String. Read safely: plain data only.

        Raises:
            TypeError: As `Recipe`.
            ValueError: As `Recipe`, or if it is no YAML.
        """
        return cls.from_config(text.loads(yaml))

    def to_json(self):
        """The recipe as JSON text."""
        return json.dumps(self.get_config(), indent=2)

    @classmethod
    def from_json(cls, json_text):
        """The recipe of a JSON text; raises as `from_yaml`."""
        try:
            config = json.loads(json_text)
        except ValueError as err:
            raise ValueError(f"Cannot read the text as JSON: {err}") from err
        except RecursionError as err:
            raise ValueError(
                "Cannot read the text as JSON: lists or mappings are nested too deeply"
            ) from err
        return cls.from_config(config)

    def save(self, path):
        """Writes the recipe to a `.yaml` or `.json` file.

        Args:
            path: Path of the file.

        Raises:
            ValueError: If the suffix is none of these.
            OSError: If it cannot be written.
        """
        path = _checked_path(path)
        check_writable(path)
        content = self.to_json() if path.suffix == ".json" else self.to_yaml()
        with written_atomically(path) as temporary:
            temporary.write_text(content, encoding="utf-8")

    @classmethod
    def load(cls, path):
        """Reads a recipe from a `.yaml` or `.json` file.

        Args:
            path: Path of the file.

        Raises:
            FileNotFoundError: If there is no such file.
            TypeError: As `Recipe`.
            ValueError: As `Recipe`, or if the file is damaged; names it.
        """
        path = _checked_path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"No such recipe file: {str(path)!r}. Presets have no suffix: "
                f"{cls.presets()}"
            )
        content = path.read_text(encoding="utf-8")
        try:
            read = cls.from_json if path.suffix == ".json" else cls.from_yaml
            return read(content)
        except (TypeError, ValueError) as err:
            raise type(err)(f"{str(path)!r}: {err}") from err

    @classmethod
    def presets(cls):
        """Names of the recipes that come with the package."""
        folder = importlib.resources.files("tfcompress") / "recipes" / "presets"
        names = (file.name for file in folder.iterdir())
        return sorted(n.removesuffix(".yaml") for n in names if n.endswith(".yaml"))

    @classmethod
    def preset_text(cls, name):
        """The YAML of a preset with its comments, to read and to copy.

        Args:
            name: One of `Recipe.presets()`.

        Raises:
            ValueError: If there is none of this name.
        """
        if name not in cls.presets():
            near = difflib.get_close_matches(str(name), cls.presets(), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"There is no preset {name!r}.{hint} The presets are {cls.presets()}; "
                "a file has a suffix: 'recipe.yaml'."
            )
        folder = importlib.resources.files("tfcompress") / "recipes" / "presets"
        return (folder / f"{name}.yaml").read_text(encoding="utf-8")

    @classmethod
    def preset(cls, name):
        """A recipe that comes with the package.

        Args:
            name: `"edge-int8"`, `"tiny-mcu"`, `"edgetpu"` or `"smallest"`; the texts
                say what each is for. All are for classifiers.

        Raises:
            ValueError: If there is none of this name.
        """
        return cls.from_yaml(cls.preset_text(name))

    # Used.

    def apply(self, model, data=None, *, teacher=None):
        """The model to train yourself: all passes, and the teacher if it distills.

        For recipes with one training at most, which is then yours: compile the result
        and `fit` it with `recipe.callbacks()`. Files are `run`'s to write.

        Args:
            model: Built `keras.Model`. It is not changed, unless there is no pass:
                then it is the one to train.
            data: As of `run`, for verbs that read examples.
            teacher: `keras.Model` for `distill`; `None` is `model`, of which a copy
                teaches where there is no pass.

        Returns:
            A `keras.Model`, not compiled; a `Distiller` if the recipe distills.

        Raises:
            TypeError: If `model` is no Keras 3 model.
            ValueError: If the recipe trains in between, the order would lose something
                that `model` has, or a verb refuses it; names the stage.
        """
        check_model(model)
        check_order(self.stages, made_in(model))
        self._check_one_training("apply")
        data = None if data is None else RunData(data, "data")
        teacher = model if teacher is None else teacher
        for number, stage in enumerate(self.stages, start=1):
            if stage.name in PASSES:
                with named(number, stage):
                    model, _ = act(stage, unwrapped(model), data)
        held = [stage for stage in self.stages if stage.name in HELD]
        for number, stage in enumerate(self.stages, start=1):
            if stage.name == "distill":
                with named(number, stage):
                    return wrapped(held, model, teacher)
        return model

    def callbacks(self, data=None):
        """New callbacks of the recipe, for the `fit` of what `apply` returned.

        Args:
            data: As of `run`, for scores that read examples.

        Returns:
            List of Keras callbacks. Of a `ChannelPruning` among them call `cut()`
            afterwards.

        Raises:
            ValueError: If the recipe trains in several places.
        """
        self._check_one_training("callbacks")
        data = None if data is None else RunData(data, "data")
        return made_callbacks([s for s in self.stages if s.name in HELD], data)

    def _check_one_training(self, verb):
        trainings = [
            number
            for number, stage in enumerate(self.stages, start=1)
            if stage.name in TRAINING
        ]
        behind = trainings and [
            number
            for number, stage in enumerate(self.stages, start=1)
            if number > trainings[0] and stage.name not in FILES
        ]
        if behind:
            raise ValueError(
                f"`{verb}` is for recipes whose one training is at the end. Stage "
                f"{behind[0]}, `{self.stages[behind[0] - 1].name}`, comes after stage "
                f"{trainings[0]}, `fit`. Call `recipe.run(model, data, directory)`, or "
                "make a recipe for each training."
            )

    def run(
        self,
        model,
        data,
        directory,
        *,
        test_data=None,
        teacher=None,
        loss=None,
        callbacks=(),
        seed=0,
        say=None,
    ):
        """Runs the recipe, training included, and leaves all of it in a folder.

        First everything but the training is rehearsed, so that a setting that does not
        fit the model is refused in the first minute. Then each stage leaves its model
        (`03_fit/model.keras`) and its report (`03_fit/report.json`). Called again
        after it was killed, it goes on: stages that are done are not done again, and a
        `fit` goes on at the last whole epoch. At the end there are the files for
        devices (one `export_tflite` if the recipe has no export), and `report.html`
        compares them with the original.

        Args:
            model: Built `keras.Model`; it is not changed. Its loss and metrics are
                used if it is compiled.
            data: Training data: `(x, y)` or `(x, y, sample_weight)` of arrays, or a
                batched `tf.data.Dataset` or `keras.utils.PyDataset` of such tuples.
            directory: Folder; new, empty, or of the same run.
            test_data: The same, for the accuracy in reports; `None` leaves it out.
                There is none for several outputs, or labels that are no classes.
            teacher: `keras.Model` for `distill`; `None` is `model`.
            loss: Loss for all of training instead of the model's own.
            callbacks: Keras callbacks for every `fit`.
            seed: Seed of every stage, with its number added.
            say: Function that shows a line; `None` writes to the log.

        Returns:
            A `RecipeResult`; printed, it is two tables.

        Raises:
            TypeError: If model or data are of a wrong type.
            ValueError: If the folder holds another run (says what differs), a stage
                does not fit the model or its place, a callback has no `fit`, or there
                is no loss. Names the stage.
        """
        return run_recipe(
            self.stages,
            model,
            data,
            directory,
            title=f"Recipe: {self.name}"
            if self.name
            else "Before and after the recipe",
            test_data=test_data,
            teacher=teacher,
            loss=loss,
            callbacks=callbacks,
            seed=seed,
            say=say,
        )


def _checked_path(path):
    path = pathlib.Path(path)
    if path.suffix not in _SUFFIXES:
        raise ValueError(
            f"A recipe is a file with one of the suffixes {_SUFFIXES}. Received: "
            f"{str(path)!r}"
        )
    return path
