"""Runs `edgetpu_compiler` and accepts its result only if something is really mapped.

Example:
    ```python
    compilation = compile_edgetpu("model.tflite")
    compilation.path                                    # model_edgetpu.tflite
    compilation.mapped_count, compilation.off_chip_bytes
    ```
"""

import os
import pathlib
import shutil
import tempfile
from dataclasses import dataclass

from tfcompress.deploy.edgetpu_check import COMPILED_OPERATOR, check_file
from tfcompress.deploy.edgetpu_log import parse_compiler_output
from tfcompress.deploy.programs import check_timeout, run_program
from tfcompress.deploy.tflite_file import read_tflite

_COMPILER = "edgetpu_compiler"
_DEFAULT_TIMEOUT_SEC = 180


class EdgeTPUCompilerNotFound(FileNotFoundError):
    """There is no `edgetpu_compiler` here."""


class EdgeTPUCompilerError(RuntimeError):
    """The compiler failed, or mapped nothing.

    Attributes:
        log: The `CompilerLog` of its output; `log.text` is the output itself.
    """

    def __init__(self, message, log=None):
        super().__init__(message)
        self.log = log


@dataclass(frozen=True)
class EdgeTPUCompilation:
    """A model compiled for the Edge TPU.

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


def compile_edgetpu(
    path,
    out_dir=None,
    *,
    compiler=None,
    min_runtime_version=None,
    search_delegate=False,
    timeout_sec=_DEFAULT_TIMEOUT_SEC,
):
    """Compiles a `.tflite` file for the Edge TPU.

    The result, `NAME_edgetpu.tflite` and `NAME_edgetpu.log`, is moved to its place
    when it is complete: after a failure an older result is still there, untouched.

    Args:
        path: Path of an 8-bit `.tflite` file.
        out_dir: Folder for the result, created if absent; by default that of `path`.
        compiler: Path or name of the compiler; by default `edgetpu_compiler` on PATH.
        min_runtime_version: Oldest Edge TPU runtime that must run the result, such as
            13; by default the compiler's choice (14 for version 16).
        search_delegate: Whether to leave more and more of the model's end on the CPU
            until it compiles.
        timeout_sec: Seconds after which the compiler is killed, tries included.

    Returns:
        An `EdgeTPUCompilation`.

    Raises:
        FileNotFoundError: If there is no such file; `EdgeTPUCompilerNotFound` if there
            is no compiler.
        ValueError: If the file is damaged, no TFLite model, or compiled already, or
            `timeout_sec` is not positive.
        EdgeTPUCompilerError: If the compiler fails, takes too long, writes nothing
            usable or maps nothing; `.log` holds its parsed output.
    """
    check_timeout(timeout_sec)
    model = read_tflite(path)
    check = check_file(model)
    program = _find(compiler)
    path = pathlib.Path(path).resolve()
    out_dir = path.parent if out_dir is None else pathlib.Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    command = [program, "-s"]
    if min_runtime_version is not None:
        command += ["-m", str(min_runtime_version)]
    if search_delegate:
        command += ["-d"]
    if timeout_sec != _DEFAULT_TIMEOUT_SEC:
        # Only from version 16 on: older compilers refuse options they do not know.
        command += ["--timeout_sec", str(max(1, round(timeout_sec)))]
    # Inside `out_dir`, since os.replace is atomic only within a file system.
    with tempfile.TemporaryDirectory(dir=out_dir, prefix=".edgetpu_") as folder:
        folder = pathlib.Path(folder)
        command += ["-o", str(folder), str(path)]
        done, log = _run(command, folder, timeout_sec)
        if done.code != 0:
            raise _failed(path, log, _why_stopped(done, log, timeout_sec))
        output = _checked_output(folder, path, check, log)
        return _publish(output, model, log, out_dir, path.stem)


def _find(compiler):
    found = shutil.which(os.fspath(compiler or _COMPILER))
    if found is None:
        where = f"at {os.fspath(compiler)!r}" if compiler else "on PATH"
        raise EdgeTPUCompilerNotFound(
            f"No executable {_COMPILER} {where}. It is a proprietary program for "
            "x86-64 Linux only, from Google Coral's Debian repository (package "
            "edgetpu-compiler); on other systems it runs in Colab or in an x86-64 "
            "Docker container. Put it on PATH or pass compiler=."
        )
    return os.path.abspath(found)


def _run(command, folder, timeout_sec):
    """Returns how the compiler finished, and its parsed output."""
    try:
        done = run_program(command, folder, timeout_sec)
    except OSError as err:
        raise EdgeTPUCompilerError(
            f"{command[0]!r} does not start ({err.strerror}): {_COMPILER} is an "
            "x86-64 Linux program. Use Colab or an x86-64 Docker container.",
            parse_compiler_output(""),
        ) from err
    return done, parse_compiler_output(done.output)


def _why_stopped(done, log, timeout_sec):
    if done.code is None:
        return (
            f"it did not finish in {timeout_sec} seconds and was killed. Pass a larger "
            "timeout_sec, or make the input or the largest layer smaller."
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


def _failed(path, log, why):
    return EdgeTPUCompilerError(f"{_COMPILER} failed on {path.name!r}: {why}", log)


def _checked_output(folder, path, check, log):
    """The compiled model in `folder`, as a `TFLiteFile`."""
    written = sorted(folder.glob("*_edgetpu.tflite"))
    if len(written) != 1:
        names = [file.name for file in written]
        why = f"{log.failure}. {log.remedy}" if log.failure else "See .log.text."
        raise _failed(path, log, f"one output file expected, found {names}. {why}")
    try:
        output = read_tflite(written[0])
    except ValueError as err:
        raise _failed(
            path,
            log,
            f"its output is no readable TFLite model ({written[0].stat().st_size} "
            "bytes). Is the disk full? Run it again.",
        ) from err
    if not any(op.operator == COMPILED_OPERATOR for op in output.operations):
        raise _failed(path, log, _why_nothing_mapped(check, log))
    return output


def _why_nothing_mapped(check, log):
    rows = "; ".join(f"{r.count} {r.operator}: {r.status}" for r in log.statuses)
    first = next((op for op in check.operations if not op.mapped), None)
    parts = [f"nothing was mapped to the Edge TPU. Compiler: {rows or 'no table'}."]
    if first is not None:
        parts.append(
            f"Operation {first.index} {first.operator}: {first.reason}. {first.remedy}"
        )
    else:
        parts.append("Pass min_runtime_version=13 or higher, or leave it out.")
    return " ".join(parts)


def _publish(output, model, log, out_dir, stem):
    target = out_dir / f"{stem}_edgetpu.tflite"
    target_log = target.with_suffix(".log")
    written = pathlib.Path(output.path)
    written_log = written.with_suffix(".log")
    if not written_log.exists():
        written_log.write_text(log.text)
    statuses = log.statuses or parse_compiler_output(written_log.read_text()).statuses
    os.replace(written_log, target_log)
    os.replace(written, target)
    cpu = sum(op.operator != COMPILED_OPERATOR for op in output.operations)
    told = log.models[-1] if log.models else None
    off_chip = told.off_chip_bytes if told else None
    return EdgeTPUCompilation(
        path=str(target),
        log_path=str(target_log),
        compiler_version=log.compiler_version,
        mapped_count=len(model.operations) - cpu,
        cpu_count=cpu,
        statuses=statuses,
        bytes=output.bytes,
        on_chip_bytes=told.on_chip_used_bytes if told else None,
        off_chip_bytes=off_chip,
        warnings=tuple(_warnings(model, cpu, off_chip)),
    )


def _warnings(model, cpu, off_chip):
    if cpu:
        yield (
            f"{cpu} of {len(model.operations)} operations run on the CPU: see "
            "check_edgetpu(path) for the reasons."
        )
    if off_chip:
        yield (
            f"{off_chip} bytes of parameters do not fit on the chip and are fetched "
            "at every inference: a smaller model will be much faster."
        )
