"""Runs `edgetpu_compiler` and accepts its result only if something is really mapped.

Example:
    ```python
    compilation = compile_edgetpu("model.tflite")
    compilation.path                                    # model_edgetpu.tflite
    compilation.mapped_count, compilation.off_chip_bytes

    first, second = compile_edgetpu(["a.tflite", "b.tflite"])    # share the memory
    stages = compile_edgetpu("big.tflite", num_segments=3)       # for three Edge TPUs
    ```
"""

import os
import pathlib
import tempfile
from dataclasses import dataclass

from tfcompress.deploy.edgetpu_check import COMPILED_OPERATOR, check_file
from tfcompress.deploy.edgetpu_log import CompiledModel, parse_compiler_output
from tfcompress.deploy.edgetpu_options import (
    DEFAULT_TIMEOUT_SEC,
    compiler_options,
    total_limit,
)
from tfcompress.deploy.edgetpu_places import check_places, input_paths, places
from tfcompress.deploy.edgetpu_process import (
    COMPILER,
    EdgeTPUCompilerError,
    find_compiler,
)
from tfcompress.deploy.edgetpu_process import (
    EdgeTPUCompilerNotFound as EdgeTPUCompilerNotFound,
)
from tfcompress.deploy.files import replace_together
from tfcompress.deploy.tflite_file import TFLiteFile, read_tflite


@dataclass(frozen=True)
class EdgeTPUCompilation:
    """A model, or a segment of one, compiled for the Edge TPU.

    Attributes:
        path: Path of the compiled model.
        log_path: Path of the compiler's log beside it.
        compiler_version: `"16.0.384591198"`; empty if the compiler does not say.
        mapped_count: Number of the model's operations on the Edge TPU.
        cpu_count: Number of its operations on the CPU.
        statuses: The compiler's table, as `OperatorStatus` rows.
        bytes: Size of the compiled model.
        on_chip_bytes: Parameters kept on the Edge TPU; `None` if not said.
        off_chip_bytes: Parameters fetched at every inference; `None` if not said.
        warnings: What makes it slower than it could be, one sentence each.
        container: Name of the docker image that the compiler ran in; empty if none.
    """

    path: str
    log_path: str
    compiler_version: str
    mapped_count: int
    cpu_count: int
    statuses: tuple
    bytes: int
    on_chip_bytes: int | None
    off_chip_bytes: int | None
    warnings: tuple
    container: str = ""


def compile_edgetpu(
    path,
    out_dir=None,
    *,
    compiler=None,
    container=None,
    min_runtime_version=None,
    num_segments=None,
    intermediate_tensors=None,
    search_delegate=False,
    delegate_search_step=None,
    multiple_subgraphs=False,
    timeout_sec=DEFAULT_TIMEOUT_SEC,
    total_timeout_sec=None,
):
    """Compiles a `.tflite` file for the Edge TPU, or several for one Edge TPU.

    The result, `NAME_edgetpu.tflite` and `NAME_edgetpu.log`, is moved to its place
    when all of it is complete: after a failure older results are still there, and no
    new ones. No input is overwritten.

    Args:
        path: Path of an 8-bit `.tflite` file; or an iterable of paths, whose models
            are compiled together and share the memory for parameters, the first ones
            first.
        out_dir: Folder for the result, created if absent; by default that of `path`
            (of a symbolic link, where the link is).
        compiler: Path or name of the compiler; by default `edgetpu_compiler` on PATH.
        container: Name of a docker image that has `edgetpu_compiler`. Where there is
            no compiler but docker has an image `edgetpu-compiler`, that is taken.
        min_runtime_version: Oldest Edge TPU runtime that must run the result, such as
            13; by default the compiler's choice (14 for version 16).
        num_segments: Cuts the model into so many parts, to be run as a pipeline on as
            many Edge TPUs. Not with several models.
        intermediate_tensors: Names of tensors at which the Edge TPU part ends; all
            that follows stays on the CPU.
        search_delegate: Whether to leave more and more of the model's end on the CPU
            until it compiles. Not with `intermediate_tensors`, which it chooses.
        delegate_search_step: Number of operations by which that goes on.
        multiple_subgraphs: Whether the model may go to the Edge TPU in several parts.
            The compiler calls this experimental.
        timeout_sec: Seconds for each try of each segment, of which version 16 of the
            compiler keeps account.
        total_timeout_sec: Seconds after which the compiler is killed with all its
            tries; by default 5 more than `timeout_sec`, or than that times
            `num_segments`, ten times as much with `search_delegate`.

    Returns:
        An `EdgeTPUCompilation`; for several paths a tuple of them in that order; with
        `num_segments` a tuple of them, first segment first.

    Raises:
        FileNotFoundError: If there is no such file; `EdgeTPUCompilerNotFound` if there
            is no compiler.
        TypeError: If `path` is no path and no iterable of them, or a number of
            seconds is none.
        ValueError: If a file is damaged, no TFLite model, or compiled already, an
            option is out of place, or a result would take the place of an input.
        OSError: If a result cannot be written where it belongs.
        EdgeTPUCompilerError: If the compiler fails, takes too long, writes nothing
            usable or maps nothing in one of the models or segments; `.log` holds its
            parsed output.

    Reference:
        https://coral.ai/docs/edgetpu/compiler/ (options of version 16)
    """
    several = not isinstance(path, (str, os.PathLike))
    paths = input_paths(path if several else [path])
    models = [read_tflite(p) for p in paths]
    checks = [check_file(model) for model in models]
    options = compiler_options(
        models,
        min_runtime_version=min_runtime_version,
        num_segments=num_segments,
        intermediate_tensors=intermediate_tensors,
        search_delegate=search_delegate,
        delegate_search_step=delegate_search_step,
        multiple_subgraphs=multiple_subgraphs,
        timeout_sec=timeout_sec,
    )
    limit = total_limit(
        timeout_sec,
        total_timeout_sec,
        num_segments=num_segments,
        search_delegate=search_delegate,
    )
    program = find_compiler(compiler, container)
    out_dir = paths[0].parent if out_dir is None else pathlib.Path(out_dir)
    segments = None if num_segments is None else int(num_segments)
    job = _Job(program, tuple(paths), tuple(checks), segments)
    check_places(out_dir, job.expected(), paths)
    out_dir.mkdir(parents=True, exist_ok=True)
    # Inside `out_dir`, since os.replace is atomic only within a file system.
    with tempfile.TemporaryDirectory(dir=out_dir, prefix=".edgetpu_") as folder:
        folder = pathlib.Path(folder)
        done, log = program.run(options, paths, folder, limit)
        if done.code != 0:
            raise job.failed(log, _why_stopped(done, log, limit))
        outputs = job.outputs(folder, log)
        compiled = _publish(outputs, log, out_dir, job)
    return compiled if several or num_segments else compiled[0]


@dataclass(frozen=True)
class _Output:
    """A compiled file, still in the temporary folder."""

    file: TFLiteFile
    told: CompiledModel
    operations: int


@dataclass(frozen=True)
class _Job:
    """What was asked of the compiler."""

    program: object
    paths: tuple
    checks: tuple
    segments: int | None

    def failed(self, log, why):
        names = ", ".join(repr(path.name) for path in self.paths)
        return EdgeTPUCompilerError(f"{COMPILER} failed on {names}: {why}", log)

    def expected(self):
        """Names of the files that the compiler shall write, with the check of each."""
        stems = [path.stem for path in self.paths]
        if self.segments:
            parts = range(self.segments)
            stems = [f"{stems[0]}_segment_{i}_of_{self.segments}" for i in parts]
        checks = self.checks if not self.segments else self.checks * self.segments
        return {f"{s}_edgetpu.tflite": c for s, c in zip(stems, checks, strict=True)}

    def outputs(self, folder, log):
        """The compiled files in `folder`, as `_Output`s.

        Raises:
            EdgeTPUCompilerError: If one is missing, cannot be read or has nothing for
                the Edge TPU.
        """
        expected = self.expected()
        written = {file.name for file in folder.glob("*_edgetpu.tflite")}
        if written != set(expected):
            why = f"{log.failure}. {log.remedy}" if log.failure else "See .log.text."
            files = "one output file" if len(expected) == 1 else f"{sorted(expected)}"
            raise self.failed(log, f"{files} expected, found {sorted(written)}. {why}")
        told = {pathlib.Path(m.output).name: m for m in log.models if m.output}
        return [
            self._output(folder / name, told.get(name, CompiledModel()), check, log)
            for name, check in expected.items()
        ]

    def _output(self, path, told, check, log):
        try:
            file = read_tflite(path)
        except ValueError as err:
            why = (
                f"its output is no readable TFLite model ({path.stat().st_size} "
                "bytes). Is the disk full? Run it again."
            )
            raise self.failed(log, why) from err
        if not any(op.operator == COMPILED_OPERATOR for op in file.operations):
            raise self.failed(log, _why_nothing_mapped(path, check, log))
        count = told.total_operations if self.segments else len(check.operations)
        return _Output(file, told, count or 0)


def _why_stopped(done, log, limit):
    if done.code is None:
        return (
            f"it did not finish in {limit} seconds, all tries together, and was "
            "killed. Pass a larger total_timeout_sec, or make the input or the largest "
            "layer smaller."
        )
    if log.failure:
        return f"{log.failure}. {log.remedy}"
    if done.crash:
        return (
            f"it crashed ({done.crash}). See check_edgetpu(path) for what is unusual "
            "in the file, or pass search_delegate=True."
        )
    return (
        f"exit code {done.code} without a reason. See check_edgetpu(path) for what is "
        "unusual in the file, or pass search_delegate=True."
    )


def _why_nothing_mapped(path, check, log):
    statuses = _statuses(path, log)
    rows = "; ".join(f"{r.count} {r.operator}: {r.status}" for r in statuses)
    first = next((op for op in check.operations if not op.mapped), None)
    what = path.stem.removesuffix("_edgetpu")
    which = f" of {what!r}" if len(log.models) > 1 else ""
    parts = [
        f"nothing{which} was mapped to the Edge TPU. Compiler: {rows or 'no table'}."
    ]
    if first is not None:
        parts.append(
            f"Operation {first.index} {first.operator}: {first.reason}. {first.remedy}"
        )
    else:
        parts.append("Pass min_runtime_version=13 or higher, or leave it out.")
    return " ".join(parts)


def _statuses(path, log):
    """The table of one compiled file: of its own log, or of the only one there is."""
    own = path.with_suffix(".log")
    statuses = ()
    if own.exists():
        statuses = parse_compiler_output(own.read_text(errors="replace")).statuses
    return statuses or log.statuses


def _publish(outputs, log, out_dir, job):
    """Moves models and logs to `out_dir`: all of them, or none."""
    compiled = tuple(_described(output, log, out_dir, job) for output in outputs)
    written = [pathlib.Path(output.file.path) for output in outputs]
    for path in written:
        if not path.with_suffix(".log").exists():
            path.with_suffix(".log").write_text(log.text, encoding="utf-8")
    sources = places(written[0].parent, [path.name for path in written])
    targets = places(out_dir, [path.name for path in written])
    replace_together(list(zip(sources, targets, strict=True)))
    return compiled


def _described(output, log, out_dir, job):
    written = pathlib.Path(output.file.path)
    target = out_dir / written.name
    statuses = _statuses(written, log)
    cpu = sum(op.operator != COMPILED_OPERATOR for op in output.file.operations)
    total = output.operations or sum(row.count for row in statuses)
    return EdgeTPUCompilation(
        path=str(target),
        log_path=str(target.with_suffix(".log")),
        compiler_version=log.compiler_version,
        mapped_count=total - cpu,
        cpu_count=cpu,
        statuses=statuses,
        bytes=output.file.bytes,
        on_chip_bytes=output.told.on_chip_used_bytes,
        off_chip_bytes=output.told.off_chip_bytes,
        warnings=tuple(_warnings(total, cpu, output.told.off_chip_bytes)),
        container=job.program.image,
    )


def _warnings(total, cpu, off_chip):
    if cpu:
        yield (
            f"{cpu} of {total} operations run on the CPU: see check_edgetpu(path) for "
            "the reasons."
        )
    if off_chip:
        yield (
            f"{off_chip} bytes of parameters do not fit on the chip and are fetched "
            "at every inference: a smaller model, or num_segments for several Edge "
            "TPUs, will be much faster."
        )
