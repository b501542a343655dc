"""What a `.tflite` file costs on this machine: time, memory, energy.

The file runs in a process of its own, in which nothing else runs.

Example:
    ```python
    result = tfc.benchmark("model.tflite", threads=(1, 2))
    print(result)
    result.latencies[0].median_ms, result.peak_memory_bytes
    ```
"""

import os
import pathlib
import statistics
import tempfile
from dataclasses import dataclass, field

import numpy as np

from tfcompress.deploy.apart import FileCrashError, FileRunError, Process
from tfcompress.deploy.litert_process import KERNELS
from tfcompress.deploy.one_operation import alone
from tfcompress.deploy.tflite_file import damage_named, parsed, read_tflite
from tfcompress.progress import tracked

_POWERCAP = "/sys/class/powercap"

# Rounds in which the settings take turns, so that all see the machine alike.
_ROUNDS = 10

# Rows of the printed profile; `.operations` has them all.
_SHOWN = 10


@dataclass(frozen=True)
class Latency:
    """Time of one inference of the file's batch size.

    Attributes:
        kernels: `"xnnpack"`, `"builtin"` or `"reference"`.
        threads: Number of threads.
        median_ms: Median, in milliseconds.
        p95_ms: 95th percentile.
        runs: Number of inferences that were timed, after the warm-up.
    """

    kernels: str
    threads: int
    median_ms: float
    p95_ms: float
    runs: int


@dataclass(frozen=True)
class OperationTime:
    """Estimated time of one operation, run alone.

    Attributes:
        index: Position in the file.
        operator: TFLite's name.
        median_ms: Median milliseconds of the operation as a file of its own; `None`
            where it cannot stand alone.
        share: Fraction of the sum over all operations.
    """

    index: int
    operator: str
    median_ms: float | None
    share: float | None


@dataclass(frozen=True)
class Benchmark:
    """What `benchmark` measured; printed, it is a table.

    Attributes:
        path: Path of the file.
        latencies: Tuple of `Latency`, one for each setting.
        operations: Tuple of `OperationTime` in file order; empty if not asked for.
        peak_memory_bytes: By how much a process grows at most that loads the file and
            runs it, with the first of the settings. `None` if the system keeps no
            peak.
        energy_mj: Millijoules of one inference of all processor packages together, what
            they draw when idle included; `None` where there are no RAPL counters, or
            this user may not read them.
    """

    path: str
    latencies: tuple
    operations: tuple = field(default=(), repr=False)
    peak_memory_bytes: int | None = None
    energy_mj: float | None = None

    def __str__(self):
        lines = [self.path, "  kernels    threads  median, ms    p95, ms   runs"]
        lines += [
            f"  {x.kernels:<9}  {x.threads:>7}  {x.median_ms:>10.3f}  {x.p95_ms:>9.3f}"
            f"  {x.runs:>5}"
            for x in self.latencies
        ]
        memory, energy = self.peak_memory_bytes, self.energy_mj
        shown = "not available" if memory is None else f"{memory:,} bytes"
        lines.append(f"  peak memory: {shown}")
        shown = "not available" if energy is None else f"{energy:.3f} mJ an inference"
        lines.append(f"  energy: {shown}")
        return "\n".join(lines + self._profile())

    def _profile(self):
        timed = [x for x in self.operations if x.median_ms is not None]
        if not timed:
            return []
        slowest = sorted(timed, key=lambda x: -x.median_ms)[:_SHOWN]
        return [
            f"  slowest of {len(self.operations)} operations, each run alone:",
            *(
                f"  {x.index:>5} {x.operator:<28}{x.median_ms:>9.4f} ms {x.share:>6.1%}"
                for x in slowest
            ),
        ]


def benchmark(
    path,
    *,
    threads=None,
    kernels=("xnnpack", "builtin"),
    repeats=50,
    seconds=1.0,
    warmup=5,
    operations=True,
):
    """Measures time, memory and energy of a `.tflite` file on this machine's CPU.

    Settings take turns in one process. LiteRT's Python package has no profiler, so the
    time of an operation is estimated: each runs as a file of its own, on zeros. What
    XNNPACK gains by computing several operations as one is not in it, and neither is
    memory that another operation left in a cache.

    Args:
        path: Path of a `.tflite` file.
        threads: Numbers of threads, an integer or several; `None` is 1, 2, 4 and so on
            up to the processors of this process, and these.
        kernels: Kernel sets, of `"xnnpack"` (what LiteRT does by itself), `"builtin"`
            (without XNNPACK) and `"reference"`.
        repeats: Least number of timed inferences of each setting.
        seconds: Seconds for which each setting is timed at least.
        warmup: Inferences before those that are timed.
        operations: Whether to estimate the time of each operation.

    Returns:
        A `Benchmark`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, the runtime cannot run it, or an argument is out
            of place.
    """
    settings = [(k, t) for k in _kernels(kernels) for t in _threads(threads)]
    _check_counts(repeats=repeats, warmup=warmup, seconds=seconds)
    read_tflite(path)
    patience = 120 + 20 * seconds * len(settings)
    with Process() as process:
        try:
            times = process.ask(
                "turns",
                path,
                timeout_sec=patience,
                settings=settings,
                rounds=_ROUNDS,
                repeats=repeats,
                seconds=seconds,
                warmup=warmup,
            )
        except FileRunError as err:
            raise ValueError(f"LiteRT cannot run the file on the CPU: {err}") from err
        energy = _energy_mj(process, path, settings[0], seconds)
    return Benchmark(
        path=os.fspath(path),
        latencies=tuple(
            _latency(*setting, found)
            for setting, found in zip(settings, times, strict=True)
        ),
        operations=_operations(path) if operations else (),
        peak_memory_bytes=_peak_memory(path, *settings[0]),
        energy_mj=energy,
    )


def _kernels(kernels):
    kernels = (kernels,) if isinstance(kernels, str) else tuple(kernels)
    if not kernels or not set(kernels) <= set(KERNELS):
        raise ValueError(f"`kernels` must be of {KERNELS}. Received: {kernels}")
    return kernels


def _threads(threads):
    if threads is None:
        affinity = getattr(os, "sched_getaffinity", None)
        available = len(affinity(0)) if affinity else os.cpu_count() or 1
        powers = [2**n for n in range(available.bit_length())]
        return sorted({*powers, available})
    threads = [threads] if isinstance(threads, int) else list(threads)
    if not threads or not all(
        isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in threads
    ):
        raise ValueError(f"`threads` must be whole numbers from 1. Received: {threads}")
    return threads


def _check_counts(*, repeats, warmup, seconds):
    if not isinstance(repeats, int) or repeats < 1 or warmup < 0 or seconds < 0:
        raise ValueError(
            "`repeats` must be 1 or more, `warmup` and `seconds` 0 or more. Received: "
            f"repeats={repeats!r}, warmup={warmup!r}, seconds={seconds!r}"
        )


def _latency(kernels, threads, seconds):
    return Latency(
        kernels,
        threads,
        1000 * statistics.median(seconds),
        1000 * float(np.percentile(seconds, 95)),
        len(seconds),
    )


def _peak_memory(path, kernels, threads):
    # Anew: of the other process the peak is that of all settings together.
    with Process() as process:
        try:
            return process.ask("memory", path, kernels=kernels, threads=threads)
        except FileRunError:
            return None


# Operations.


def _operations(path):
    model = parsed(pathlib.Path(path).read_bytes())
    names = [operation.operator for operation in read_tflite(path).operations]
    with Process() as process, tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "operation.tflite")
        times = [
            _operation_ms(process, file, _alone(path, model, index))
            for index in tracked(range(len(names)), "Operations", total=len(names))
        ]
    total = sum(t for t in times if t is not None)
    return tuple(
        OperationTime(index, name, ms, None if ms is None else ms / total)
        for index, (name, ms) in enumerate(zip(names, times, strict=True))
    )


def _alone(path, model, index):
    with damage_named(path):
        return alone(model, index)


def _operation_ms(process, file, content):
    if content is None:
        return None
    file.write_bytes(content)
    try:
        (times,) = process.ask(
            "turns",
            file,
            settings=[("xnnpack", 1)],
            rounds=1,
            repeats=20,
            seconds=0.02,
            warmup=3,
        )
    except (FileCrashError, FileRunError):
        # Alone it may lack what it needs, such as a shape that another would compute.
        return None
    return 1000 * statistics.median(times)


# Energy.


def _energy_mj(process, path, setting, seconds):
    """Millijoules of one inference, by what the counters grew while many ran."""
    before = _counters()
    if not before:
        return None
    (times,) = process.ask(
        "turns",
        path,
        timeout_sec=120 + 20 * seconds,
        settings=[setting],
        rounds=1,
        repeats=1,
        seconds=max(seconds, 1.0),
        warmup=0,
    )
    grown = _growth(before, _counters())
    return sum(grown.values()) / 1000 / len(times) if grown else None


def _counters(folder=None):
    """Dict from processor package to microjoules and the value where it starts anew."""
    found = {}
    # Parts of a package, `intel-rapl:0:0`, are counted in it.
    for package in sorted(pathlib.Path(folder or _POWERCAP).glob("intel-rapl:?*")):
        if package.name.count(":") != 1:
            continue
        try:
            found[package.name] = tuple(
                int((package / name).read_text())
                for name in ("energy_uj", "max_energy_range_uj")
            )
        except (OSError, ValueError):
            return {}
    return found


def _growth(before, after):
    """Dict from package to microjoules, of counters that may have started anew once."""
    return {
        name: after[name][0] - value + (wrap if after[name][0] < value else 0)
        for name, (value, wrap) in before.items()
        if name in after
    }
