"""Prints accuracy against size and time of recipes, with TFMOT beside them.

Four tasks (see `_pareto_tasks.py`). For each seed one float model is trained; from its
weights every row is made, ours by a `tfc.Recipe`, TFMOT's by its own pipeline on
tf_keras in a process of its own, with the same data, augmentation, optimizer and number
of epochs in all. What is measured is the `.tflite` file: accuracy on the test data,
bytes, bytes after gzip -9, and the time of one inference on one thread: all files of a
task and seed in one process, in turn, medians of the ratio to the float32 file within a
round.

Results are kept in the folder, one JSON file a task and seed: an interrupted run goes
on, `--only_print` prints what there is.

Usage:
    python benchmarks/pareto.py --seeds=3
    python benchmarks/pareto.py --task=imu --seeds=1 --epochs=4 --only="int8;PQAT 80"
"""

import argparse
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

import numpy as np
from _pareto_tasks import TASKS, batches, named_weights

FLOAT = "float32"
# TFMOT's names, without importing it.
TFMOT = (
    "int8, calibration",
    "QAT",
    "pruning 80 %",
    "pruning 90 %",
    "PQAT 50 %",
    "PQAT 80 %",
    "PQAT 90 %",
    "clustering 16",
    "PCQAT 50 %, 16",
    "PCQAT 80 %, 16",
    "PCQAT 90 %, 16",
)
PEER = "TFMOT: "
RATE, FINE_RATE = 1e-3, 3e-4
_DISTILL = {"distill": {"temperature": 4.0, "alpha": 0.1}}
_INT8 = {"export_tflite": {"kind": "int8", "io": "float32"}}


def _cut(macs, round_to=8):
    return {"prune_channels": {"budget": {"macs": macs}, "round_to": round_to}}


def _pruned(sparsity):
    return {"Pruning": {"sparsity": sparsity}}


def ladder(name, epochs):
    """The stages of a row of ours: trainings share the epochs, as TFMOT's do."""
    parts = LADDER[name.removesuffix(LABELS)]
    teacher = [] if name.endswith(LABELS) else [_DISTILL]
    stages, left = [], len(parts)
    for part in parts:
        share = epochs // left
        epochs, left = epochs - share, left - 1
        last = left == 0
        fit = {"epochs": share, "learning_rate": FINE_RATE if last else RATE}
        stages += [*part, *teacher, {"fit": fit}]
    return [*stages, _INT8]


# Name -> for each training, what stands before it.
_QUANTIZE, _QUANTIZE4 = (
    ["quantize_aware"],
    [{"quantize_aware": {"config": "int4_weights"}}],
)
LADDER = {
    "int8": [_QUANTIZE],
    "trained on, int8": [[], _QUANTIZE],
    "50 % zeros, int8": [[_pruned(0.5)], _QUANTIZE],
    "80 % zeros, int8": [[_pruned(0.8)], _QUANTIZE],
    "90 % zeros, int8": [[_pruned(0.9)], _QUANTIZE],
    "95 % zeros, int8": [[_pruned(0.95)], _QUANTIZE],
    "half the MACs, int8": [[_cut(0.5)], _QUANTIZE],
    "half the MACs, 70 % zeros, int8": [[_cut(0.5)], [_pruned(0.7)], _QUANTIZE],
    "half the MACs, 85 % zeros, int8": [[_cut(0.5)], [_pruned(0.85)], _QUANTIZE],
    "30 % of the MACs, int8": [[_cut(0.3)], _QUANTIZE],
    "30 % of the MACs, 70 % zeros, int8": [[_cut(0.3)], [_pruned(0.7)], _QUANTIZE],
    "30 % of the MACs, 85 % zeros, int8": [[_cut(0.3)], [_pruned(0.85)], _QUANTIZE],
    "20 % of the MACs, 50 % zeros, int8": [[_cut(0.2, 4)], [_pruned(0.5)], _QUANTIZE],
    "20 % of the MACs, 70 % zeros, int8": [[_cut(0.2, 4)], [_pruned(0.7)], _QUANTIZE],
    "half the MACs, 70 % zeros, int4": [[_cut(0.5)], [_pruned(0.7)], _QUANTIZE4],
}
# Rows that are trained without distillation too, as all of TFMOT's are.
LABELS = ", labels alone"
ROWS = (
    *LADDER,
    "int8" + LABELS,
    "trained on, int8" + LABELS,
    "50 % zeros, int8" + LABELS,
    "80 % zeros, int8" + LABELS,
    "90 % zeros, int8" + LABELS,
    "half the MACs, 70 % zeros, int8" + LABELS,
)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=TASKS, action="append", help="(all)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="of all compression (per task)")
    parser.add_argument(
        "--float_epochs", type=int, help="of the float model (per task)"
    )
    parser.add_argument("--examples", type=int, help="of the training data (all)")
    parser.add_argument("--rounds", type=int, default=50, help="of timing (50)")
    parser.add_argument("--only", help="parts of the names of rows, with ;")
    parser.add_argument("--folder", default="pareto_results")
    parser.add_argument("--only_print", action="store_true")
    args = parser.parse_args()
    folder = pathlib.Path(args.folder)
    folder.mkdir(exist_ok=True)
    results = {}
    for task in args.task or TASKS:
        for seed in range(args.seeds):
            run = _Run(task, seed, folder, args)
            if not args.only_print:
                run.compute()
            if run.rows:
                results.setdefault(task, []).append(run.rows)
    from _pareto_tables import print_tables

    print_tables(results, folder)


class _Run:
    """One task and seed: its float model, its files and its results."""

    def __init__(self, name, seed, folder, args):
        self.name, self.seed, self.args = name, seed, args
        self.task = TASKS[name]
        self.epochs = args.epochs or self.task.epochs
        self.folder = folder / f"{name}_{seed}"
        self.kept = folder / f"{name}_{seed}.json"
        self.rows = json.loads(self.kept.read_text()) if self.kept.exists() else {}

    def compute(self):
        """Makes what is missing."""
        import keras

        self.folder.mkdir(exist_ok=True)
        (x, y), self.test = self.task.load()
        self.x, self.y = x[: self.args.examples], y[: self.args.examples]
        self.model = self._float_model(keras)
        wanted = [*ROWS, *(PEER + name for name in TFMOT)]
        parts = self.args.only.split(";") if self.args.only else [""]
        wanted = [n for n in wanted if any(part in n for part in parts)]
        fresh = False
        for name in [FLOAT, *wanted]:
            if "file" in self.rows.get(name, ()):
                continue
            began = time.monotonic()
            row = self._row(name)
            row["seconds"] = round(time.monotonic() - began, 1)
            self.rows[name] = row
            self._keep()
            fresh = True
            print(f"{self.name}, seed {self.seed}, {name}: {_short(row)}", flush=True)
        if fresh or any("ms" not in r for r in self.rows.values() if "file" in r):
            self._time()

    def _keep(self):
        temporary = self.kept.with_suffix(".part")
        temporary.write_text(json.dumps(self.rows, indent=1))
        temporary.replace(self.kept)

    def _float_model(self, keras):
        path = self.folder / "float.keras"
        if path.exists():
            return keras.models.load_model(path)
        keras.utils.set_random_seed(self.seed)
        model = self.task.build(keras.layers, keras)
        train = batches(self.task, self.x, self.y, self.seed)
        epochs = self.args.float_epochs or self.task.float_epochs
        rate = keras.optimizers.schedules.CosineDecay(
            self.task.rate, epochs * len(train)
        )
        model.compile(
            keras.optimizers.Adam(rate),
            "sparse_categorical_crossentropy",
            metrics=["accuracy"],
        )
        model.fit(train, epochs=epochs, verbose=0, shuffle=False)
        model.save(path)
        return model

    def _row(self, name):
        import tfcompress as tfc

        safe = "".join(c if c.isalnum() else "_" for c in name)
        path = self.folder / f"{safe}.tflite"
        if name == FLOAT:
            tfc.export_tflite(self.model, path, kind="float32")
        elif name.startswith(PEER):
            error = self._tfmot(name.removeprefix(PEER), path)
            if error:
                return {"error": error}
        else:
            stages = ladder(name, self.epochs)
            run = self.folder / safe
            data = batches(self.task, self.x, self.y, self.seed)
            recipe = tfc.Recipe(stages, name=name)
            result = recipe.run(self.model, data, run, seed=100 * self.seed)
            shutil.copyfile(result.files[-1], path)
        found = tfc.measure(path, data=self.test)
        return {
            "file": path.name,
            "accuracy": 100 * found.accuracy,
            "bytes": found.bytes,
            "gzip": found.gzip_bytes,
            "macs": found.macs,
            "zeros": found.sparsity,
        }

    def _tfmot(self, row, path):
        """Runs TFMOT; returns what it said if it refused the network."""
        weights = self.folder / "float.npz"
        np.savez(weights, **named_weights(self.model))
        command = [
            sys.executable,
            str(pathlib.Path(__file__).with_name("_pareto_tfmot.py")),
            f"--task={self.name}",
            f"--row={row}",
            f"--seed={self.seed}",
            f"--epochs={self.epochs}",
            f"--weights={weights}",
            f"--output={path}",
        ]
        if self.args.examples:
            command.append(f"--examples={self.args.examples}")
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            errors = [line for line in lines if "Error" in line]
            return (errors or lines)[-1][:300]
        return None

    def _time(self):
        """Milliseconds of an inference of every file, in turn."""
        from tfcompress.deploy.runtime import latency_ms

        rows = {n: r for n, r in self.rows.items() if "file" in r}
        times = {name: [] for name in rows}
        for _ in range(self.args.rounds):
            for name, row in rows.items():
                path = self.folder / row["file"]
                times[name].append(latency_ms(path, repeats=5, seconds=0.0))
        base = np.array(times[FLOAT])
        for name, row in rows.items():
            row["ms"] = statistics.median(times[name])
            row["faster"] = float(np.median(base / np.array(times[name])))
        self._keep()


def _short(row):
    if "error" in row:
        return f"refused: {row['error']}"
    return f"{row['accuracy']:.2f} %, {row['gzip']:,} gzip, {row['seconds']} s"


if __name__ == "__main__":
    main()
