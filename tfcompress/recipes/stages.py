"""The stages that a recipe may have, and the check of their settings.

A stage is a verb or callback of this library by its public name, with its keyword
settings as plain data. An object among them is written as the stages are, a mapping
from its public name to its settings: `{"Rule": {"match": "head", "sparsity": 0.5}}`.

Example:
    ```python
    stage = checked({"prune_channels": {"amount": 0.5}}, "stage 1")
    small = stage.verb(model, **stage.arguments())
    ```
"""

import difflib
import inspect
import math
from dataclasses import dataclass, field

from tfcompress import schedules
from tfcompress.callbacks import (
    ChannelPruning,
    ClusteringSchedule,
    Pruning,
    QuantizationSchedule,
)
from tfcompress.deploy.edgetpu_check import check_edgetpu
from tfcompress.deploy.onnx import export_onnx
from tfcompress.deploy.tflite import export_tflite
from tfcompress.distill import distill
from tfcompress.passes import distillation
from tfcompress.passes.cluster import cluster
from tfcompress.passes.factorize import factorize
from tfcompress.passes.fold import fold
from tfcompress.passes.prune_layers import prune_layers
from tfcompress.passes.quantization_config import QuantizationConfig
from tfcompress.passes.quantize import quantize_aware
from tfcompress.passes.replace_activations import replace_activations
from tfcompress.passes.separate_convs import separate_convs
from tfcompress.prune_channels import prune_channels
from tfcompress.recipes.training import Fit
from tfcompress.selection import Rule


def _by_name(*things):
    return {thing.__name__: thing for thing in things}


# Model in, model out: at once, in their place in the list.
PASSES = _by_name(
    prune_channels,
    factorize,
    separate_convs,
    prune_layers,
    replace_activations,
    fold,
    cluster,
    quantize_aware,
)
# For the next `fit` behind them, whatever stands between.
CALLBACKS = _by_name(Pruning, ChannelPruning, QuantizationSchedule, ClusteringSchedule)
HELD = {**CALLBACKS, "distill": distill}
TRAINING = {"fit": Fit}
# Write or read files; the model goes on as it is.
FILES = _by_name(export_tflite, export_onnx, check_edgetpu)
STAGES = {**PASSES, **HELD, **TRAINING, **FILES}

OBJECTS = _by_name(
    Rule,
    QuantizationConfig,
    schedules.Constant,
    schedules.Cosine,
    schedules.Iterative,
    schedules.Polynomial,
    distillation.AttentionTransfer,
    distillation.Contrastive,
    distillation.DecoupledSoftLabels,
    distillation.DeepSupervision,
    distillation.HardLabels,
    distillation.Hint,
    distillation.LogitsCosine,
    distillation.LogitsMSE,
    distillation.Regression,
    distillation.Relational,
    distillation.SimilarityPreserving,
    distillation.SoftLabels,
)

# Lists and mappings within each other; what a stage takes has a handful.
_DEEPEST = 50
# Settings that are numbers of examples in a recipe, which a run takes from its data.
EXAMPLES = ("data", "calibration_data")
EXAMPLES_BY_DEFAULT = 256
# What the run of a recipe hands in by itself.
_NOT_SETTINGS = ("model", "student", "path", "return_report", "keep_optimizer")


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe, checked.

    Attributes:
        name: Public name of the verb or callback, or `"fit"`.
        settings: Dict of its keyword settings, plain data.
    """

    name: str
    settings: dict = field(default_factory=dict)

    @property
    def verb(self):
        """The function or class that the name stands for."""
        return STAGES[self.name]

    def config(self):
        """The stage as plain data, as it stands in a file."""
        return {self.name: self.settings} if self.settings else self.name

    def arguments(self):
        """The settings with objects built; numbers of examples are left out."""
        return {
            name: _built(value)
            for name, value in self.settings.items()
            if name not in EXAMPLES
        }

    def examples(self):
        """Dict from parameters that take examples to how many; `None` for none."""
        known = parameters(self.name)
        return {
            name: self.settings.get(name, EXAMPLES_BY_DEFAULT)
            for name in EXAMPLES
            if name in known
        }


def parameters(name):
    """The settings that a stage of this name takes, as `inspect.Parameter`s by name."""
    found = _taken(STAGES[name])
    return {key: p for key, p in found.items() if key not in _NOT_SETTINGS}


def checked(entry, where):
    """The `Stage` of what a user wrote.

    Args:
        entry: A name; or a mapping from a name to a dict of settings; or a callback
            object; or a `Stage`.
        where: Its place, for messages.

    Raises:
        TypeError: If it is none of these.
        ValueError: If there is no such stage or setting (names the nearest), one is
            missing, or a value cannot be written down or is out of range.
    """
    name, settings = _name_and_settings(entry, where)
    if name not in STAGES:
        raise ValueError(
            f"{where}: there is no stage {name!r}.{_near(name, STAGES)} The stages are "
            f"{sorted(STAGES)}."
        )
    where = f"{where}, `{name}`"
    if not isinstance(settings, dict):
        raise TypeError(
            f"{where}: settings are a mapping of names to values, for example "
            f"{{'fit': {{'epochs': 5}}}}. Received: {settings!r}"
        )
    settings = {key: plain(value, where, key) for key, value in settings.items()}
    known = parameters(name)
    required = {
        key
        for key, p in known.items()
        if p.default is p.empty and key not in ("teacher", *EXAMPLES)
    }
    _check_names(settings, known, required, where)
    stage = Stage(name, settings)
    _check_examples(stage, where)
    _check_teacher(stage, where)
    try:
        arguments = stage.arguments()
        if name in CALLBACKS or name in TRAINING:
            stage.verb(**arguments)
    except (TypeError, ValueError) as err:
        raise type(err)(f"{where}: {err}") from err
    return stage


def _name_and_settings(entry, where):
    if isinstance(entry, Stage):
        return entry.name, entry.settings
    if isinstance(entry, str):
        return entry, {}
    if isinstance(entry, tuple(CALLBACKS.values())):
        return type(entry).__name__, _settings_of(entry, where)
    if not isinstance(entry, dict):
        raise TypeError(
            f"{where}: a stage is a name, or a mapping from a name to its settings: "
            f"{{'prune_channels': {{'amount': 0.5}}}}. Received: {entry!r} (of type "
            f"{type(entry).__name__})"
        )
    if len(entry) != 1 or not isinstance(next(iter(entry)), str):
        raise ValueError(
            f"{where}: a stage has one name, and its settings are below it: "
            f"{{'prune_channels': {{'amount': 0.5}}}}. Received: {list(entry)}"
        )
    ((name, settings),) = entry.items()
    return name, {} if settings is None else settings


def _settings_of(callback, where):
    """What was set on a callback object."""
    settings = {}
    for name, parameter in _taken(type(callback)).items():
        value = getattr(callback, name)
        value = None if name == "rules" and not value else value
        default = None if name == "rules" else parameter.default
        if value is None and default is None:
            continue
        if name in EXAMPLES:
            raise ValueError(
                f"{where}: a recipe holds no data. Say how many examples of the run's "
                f"data to take: {{{type(callback).__name__!r}: {{{name!r}: 256}}}}."
            )
        if type(value) is not type(default) or value != default:
            settings[name] = value
    return settings


def _taken(factory):
    """Dict from name to parameter of a function, or of what a class is made with.

    Of a Keras layer Python 3.11.2 and older say `*args, **kwargs`, as its `__new__`.
    """
    if not isinstance(factory, type):
        return dict(inspect.signature(factory).parameters)
    found = dict(inspect.signature(factory.__init__).parameters)
    found.pop("self")
    return found


def plain(value, where, key, depth=0):
    """A value as YAML and JSON have it, copied; objects as mappings.

    Raises:
        TypeError: If it cannot be written down so that it reads the same again.
        ValueError: If it is nested too deeply.
    """
    if depth > _DEEPEST:
        raise ValueError(f"{where}: settings are nested too deeply.")
    depth += 1
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(item, where, key, depth) for item in value]
    if isinstance(value, dict) and value.get("class_name") in OBJECTS:
        # As Keras writes an object within another's config.
        return {value["class_name"]: plain(value["config"], where, key, depth)}
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {name: plain(item, where, key, depth) for name, item in value.items()}
    if type(value) in OBJECTS.values():
        config = value.get_config()
        return {type(value).__name__: plain(config, where, key, depth)}
    hint = (
        " Write pairs instead: [[200, 8], [400, 6]]." if isinstance(value, dict) else ""
    )
    raise TypeError(
        f"{where}: `{key}` must be text, a finite number, true, false, null, a list, a "
        f"mapping with words as keys, or one of {sorted(OBJECTS)}.{hint} Received: "
        f"{value!r} (of type {type(value).__name__})"
    )


def _built(value):
    """A plain value with its objects."""
    if isinstance(value, list):
        return [_built(item) for item in value]
    if not isinstance(value, dict):
        return value
    name = next(iter(value), "")
    is_object = len(value) == 1 and isinstance(value[name], dict)
    if not is_object or not name[:1].isupper():
        return {key: _built(item) for key, item in value.items()}
    if name not in OBJECTS:
        raise ValueError(
            f"there is no object {name!r}.{_near(name, OBJECTS)} The objects are "
            f"{sorted(OBJECTS)}."
        )
    settings = {key: _built(item) for key, item in value[name].items()}
    known = _taken(OBJECTS[name])
    open_ended = any(p.kind is p.VAR_KEYWORD for p in known.values())
    required = {
        key
        for key, p in known.items()
        if p.default is p.empty and p.kind is not p.VAR_KEYWORD
    }
    _check_names(settings, settings if open_ended else known, required, f"`{name}`")
    return OBJECTS[name](**settings)


def _check_names(settings, known, required, where):
    for key in settings:
        if key not in known:
            raise ValueError(
                f"{where}: there is no setting {key!r}.{_near(key, known)} It takes "
                f"{sorted(known)}."
            )
    missing = sorted(required - set(settings))
    if missing:
        raise ValueError(f"{where}: {missing} must be set.")


def _check_examples(stage, where):
    for name in stage.examples():
        count = stage.settings.get(name)
        whole = isinstance(count, int) and not isinstance(count, bool)
        if count is not None and not (whole and count > 0):
            raise ValueError(
                f"{where}: `{name}` is how many examples to take of the data of the "
                f"run, a whole number from 1, or null for none. Received: {count!r}"
            )


def _check_teacher(stage, where):
    teacher = stage.settings.get("teacher", "")
    if stage.name == "distill" and not isinstance(teacher, str):
        raise TypeError(
            f"{where}: `teacher` is the path of a .tflite file, a .keras file or a "
            "SavedModel folder; left out, it is the model that the recipe started "
            f"from. Received: {teacher!r}"
        )


def _near(name, known):
    found = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    lower = {key.lower(): key for key in known}
    if not found and str(name).lower() in lower:
        found = [lower[str(name).lower()]]
    return f" Did you mean {found[0]!r}?" if found else ""
