"""Runs a recipe in a folder: each stage once, whatever happens in between.

Example:
    ```python
    result = recipe.run(model, (x, y), "out", test_data=(x_test, y_test))
    print(result)   # each stage, and the files beside the original
    ```
"""

import os
import pathlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import keras
from absl import logging

from tfcompress.callbacks import ChannelPruning, Pruning
from tfcompress.checks import check_model
from tfcompress.deploy.edgetpu_check import check_edgetpu
from tfcompress.deploy.files import save_keras
from tfcompress.deploy.onnx import export_onnx
from tfcompress.deploy.tflite import export_tflite
from tfcompress.measure import measure
from tfcompress.recipes.actions import (
    act,
    made_callbacks,
    named,
    unwrapped,
    wrapped,
)
from tfcompress.recipes.backup import EpochBackup
from tfcompress.recipes.data import RunData
from tfcompress.recipes.folder import RunFolder, model_fingerprint
from tfcompress.recipes.order import has_zeros
from tfcompress.recipes.rehearsal import (
    check_door,
    export_settings,
    has_accuracy,
    rehearse,
    with_export,
)
from tfcompress.recipes.result import RecipeResult, stage_rows, summary
from tfcompress.recipes.stages import (
    FILES,
    HELD,
    PASSES,
    TRAINING,
)
from tfcompress.recipes.training import loss_text, objective_of
from tfcompress.report import report

_ORIGINAL = "original"


def run_recipe(
    stages,
    model,
    data,
    directory,
    *,
    title,
    test_data=None,
    teacher=None,
    loss=None,
    callbacks=(),
    seed=0,
    say=None,
):
    """Runs checked stages; see `Recipe.run`."""
    check_model(model)
    data = RunData(data, "data")
    test = None if test_data is None else RunData(test_data, "test_data")
    for given in (data, test):
        if given is not None:
            given.check_end()
    stages = with_export(stages)
    objective = objective_of(model, loss)
    check_door(stages, model, data, objective)
    run = _Run(
        folder=RunFolder(directory),
        stages=stages,
        original=model,
        teacher=model if teacher is None else teacher,
        data=data,
        test=test,
        scored=test is not None and has_accuracy(model, test),
        objective=objective,
        callbacks=list(callbacks),
        seed=seed,
        title=title,
        say=say or _log,
    )
    return run.to_the_end()


def _log(line):
    logging.info("%s", line)


@dataclass
class _Run:
    """A run in progress; the fields are what `Recipe.run` was given, checked."""

    folder: RunFolder
    stages: list
    original: keras.Model
    teacher: keras.Model
    data: RunData
    test: RunData | None
    scored: bool
    objective: Callable
    callbacks: list
    seed: int
    title: str
    say: Callable

    def to_the_end(self):
        """Does what is left to do, and reports."""
        started_with = self._started_with()
        self.folder.check(started_with)
        reports = self._reports_there_are()
        if not reports:
            rehearse(
                self.stages, self.original, self.teacher, self.data, self.objective
            )
            self.say(f"Rehearsed {len(self.stages)} stages; nothing is in the way.")
            self._start(started_with)
        model, held = self._model_after(len(reports)), []
        for number, stage in enumerate(self.stages, start=1):
            if stage.name in HELD:
                held.append(stage)
            if number <= len(reports):
                self._say(number, stage, "done before")
            else:
                model, found = self._done(number, stage, model, held)
                reports.append(found)
            if stage.name == "fit":
                held = []
        return self._result(model, reports)

    def _started_with(self):
        return {
            "recipe": [stage.config() for stage in self.stages],
            "model": model_fingerprint(self.original),
            "teacher": model_fingerprint(self.teacher),
            "data": self.data.fingerprint(),
            "test_data": None if self.test is None else self.test.fingerprint(),
            "seed": self.seed,
            "loss": [
                loss_text(self.objective(stage.arguments().get("loss")))
                for stage in self.stages
                if stage.name == "fit"
            ],
        }

    def _done(self, number, stage, model, held):
        """Does a stage and writes it down; the model and the report."""
        began = time.monotonic()
        with named(number, stage):
            # The same whether or not the stages before ran in this process.
            keras.utils.set_random_seed(self.seed + number)
            model, found = self._do(number, stage, model, held)
        found = {
            "stage": number,
            "name": stage.name,
            "settings": stage.settings,
            "seconds": round(time.monotonic() - began, 3),
            **found,
        }
        changed = stage.name in TRAINING or stage.name in PASSES
        self.folder.finish(number, stage.name, found, model if changed else None)
        return model, found

    def _reports_there_are(self):
        found = []
        for number, stage in enumerate(self.stages, start=1):
            one = self.folder.report_of(number, stage.name)
            if one is None:
                break
            found.append(one)
        return found

    def _start(self, started_with):
        """Keeps the original: what is trained is a copy, and files compare with it."""
        self.folder.begin(started_with)
        save_keras(self.original, self.folder.path / f"{_ORIGINAL}.keras")
        export_tflite(self.original, self._file(f"{_ORIGINAL}.tflite"), kind="float32")

    def _model_after(self, count):
        """The model as the first `count` stages left it."""
        for number in range(count, 0, -1):
            stage = self.stages[number - 1]
            if stage.name == "fit" or stage.name in PASSES:
                return self.folder.load(number, stage.name)
        path = self.folder.path / f"{_ORIGINAL}.keras"
        return keras.models.load_model(path, compile=False)

    def _file(self, name):
        return self.folder.path / name

    def _say(self, number, stage, text=""):
        line = f"[{number}/{len(self.stages)}] {stage.name}"
        self.say(f"{line}: {text}" if text else line)

    # One stage.

    def _do(self, number, stage, model, held):
        """The model after a stage, and a dict for its report."""
        if stage.name in HELD:
            self._say(number, stage, "in the next fit")
            return model, {}
        if stage.name in FILES:
            return model, self._write(number, stage, model)
        if stage.name == "fit":
            model, found = self._fit(number, stage, model, held)
        else:
            model, text = act(stage, model, self.data, self.objective)
            found = {"changes": text} if text else {}
        measured = measure(model, self._test())
        found |= {
            key: getattr(measured, key)
            for key in (
                "parameters",
                "nonzero_parameters",
                "sparsity",
                "macs",
                "bytes",
                "gzip_bytes",
                "accuracy",
            )
        }
        self._say(number, stage, summary(found))
        return model, found

    def _test(self):
        """The data to count right classes with, `None` if there is no accuracy."""
        if not self.scored:
            return None
        return self.test.data[:2] if self.test.is_arrays else self.test.data

    def _fit(self, number, stage, model, held):
        plan = stage.verb(**stage.arguments())
        made = made_callbacks(held, self.data)
        if not any(isinstance(c, (Pruning, ChannelPruning)) for c in made):
            pruned = any(s.name == "Pruning" for s in self.stages[:number])
            if pruned or has_zeros(model):
                made.append(Pruning(sparsity=None))
        pupil = wrapped(held, model, self.teacher)
        plan.compile(pupil, self.data, self.objective)
        title = ", ".join(
            [f"[{number}/{len(self.stages)}] fit", *(s.name for s in held)]
        )
        # In the order that Keras needs: what restores weights comes before what masks.
        backups = self._backup(number, made)
        history = plan.train(
            pupil,
            self.data,
            title,
            [*backups, *self.callbacks, *made],
            epochs_done=sum(backup.epoch for backup in backups),
        )
        model = unwrapped(pupil)
        for callback in made:
            if isinstance(callback, ChannelPruning):
                model = callback.cut()
        return model, {"history": history}

    def _backup(self, number, callbacks):
        # Rewinding cannot go on in the middle (it raises): its stage starts again.
        if any(getattr(callback, "rewind", None) for callback in callbacks):
            return []
        # Kept until the stage is written down: what comes after training may fail.
        folder = self.folder.backup(number, "fit")
        # But a `ChannelPruning` learns in an epoch what to cut: one must be left.
        cuts = any(isinstance(callback, ChannelPruning) for callback in callbacks)
        return [EpochBackup(folder, delete=cuts)]

    def _write(self, number, stage, model):
        if stage.verb is check_edgetpu:
            found = check_edgetpu(self._last_file(number))
            self._say(
                number,
                stage,
                f"{found.mapped_count} of {len(found.operations)} operations map",
            )
            return {
                "mapped": found.mapped_count,
                "operations": len(found.operations),
                "text": str(found),
            }
        path = self._file(_file_name(self.stages, number))
        if stage.verb is export_onnx:
            result = export_onnx(model, path, **stage.arguments())
        else:
            result = export_tflite(
                model, path, **export_settings(stage, model, self.data)
            )
        self._say(number, stage, str(result).splitlines()[0])
        return {
            "file": path.name,
            "bytes": result.bytes,
            "gzip_bytes": result.gzip_bytes,
            "text": str(result),
        }

    def _last_file(self, number):
        before = range(1, number)
        last = max(n for n in before if self.stages[n - 1].verb is export_tflite)
        return self._file(_file_name(self.stages, last))

    # Before and after the stages.

    def _result(self, model, reports):
        names = [r["file"] for r in reports if "file" in r]
        files = [f"{_ORIGINAL}.tflite", *(n for n in names if n.endswith(".tflite"))]
        test = self._test()
        # All of them now: times compare within one process only.
        measured = tuple(
            measure(self._file(name), test, name=pathlib.Path(name).stem)
            for name in files
        )
        written = report(
            measured,
            self._file("report.html"),
            title=self.title,
            tables=[("Stages", stage_rows(reports))],
        )
        self.say(f"Report: {written.path}")
        return RecipeResult(
            directory=os.fspath(self.folder.path),
            model=model,
            files=tuple(os.fspath(self._file(name)) for name in names),
            measurements=measured,
            stages=tuple(reports),
            report=written.path,
        )


def _file_name(stages, number):
    """What the file of an export is called: after its kind, once each."""

    def name(stage):
        if stage.verb is export_onnx:
            return "model.onnx"
        return f"{stage.settings.get('kind', 'float32')}.tflite"

    own = name(stages[number - 1])
    others = [
        s
        for n, s in enumerate(stages, start=1)
        if n != number and s.verb in (export_tflite, export_onnx) and name(s) == own
    ]
    stem, _, suffix = own.partition(".")
    return f"{stem}_{number:02d}.{suffix}" if others else own
