"""Runs Vela, Arm's compiler for Ethos-U, and accepts what is really on the NPU.

Example:
    ```python
    compilation = compile_ethosu(
        "model.tflite", accelerator="ethos-u55-128", memory_mode="Shared_Sram"
    )
    compilation.path                                    # model_vela.tflite
    compilation.npu_share, compilation.figures.inference_ms
    ```
"""

import importlib.metadata
import os
import pathlib
import shutil
import tempfile
from dataclasses import dataclass

from tfcompress.deploy.ethosu_report import (
    VelaFigures,
    cpu_operations,
    failure,
    read_summary,
)
from tfcompress.deploy.files import replace_together
from tfcompress.deploy.programs import (
    check_timeout,
    installed,
    run_program,
    run_python,
)
from tfcompress.deploy.tflite_file import read_tflite

NPU_OPERATOR = "ethos-u"
ACCELERATORS = (
    *(f"ethos-u55-{macs}" for macs in (32, 64, 128, 256)),
    *(f"ethos-u65-{macs}" for macs in (256, 512)),
    *(f"ethos-u85-{macs}" for macs in (128, 256, 512, 1024, 2048)),
)
# Of the configuration that Vela comes with.
_DEDICATED = tuple(
    f"Dedicated_Sram{size}" for size in ("", "_256KB", "_384KB", "_512KB")
)
MEMORY_MODES = ("Sram_Only", "Shared_Sram", *_DEDICATED)
_SYSTEM_CONFIGS = {
    "ethos-u55": "Ethos_U55_High_End_Embedded",
    "ethos-u65": "Ethos_U65_Client_Server",
    "ethos-u85": "Ethos_U85_SYS_DRAM_Mid",
}
_CONFIG = "Arm/vela.ini"


class EthosUCompilerError(RuntimeError):
    """Vela failed, or left everything to the CPU.

    Attributes:
        log: What it wrote.
    """

    def __init__(self, message, log=""):
        super().__init__(message)
        self.log = log


class EthosUCompilerNotFound(FileNotFoundError):
    """Vela is not installed."""


@dataclass(frozen=True)
class EthosUCompilation:
    """A model compiled for an Ethos-U.

    Attributes:
        path: Path of the compiled model.
        log_path: Path of what Vela wrote, beside it.
        compiler_version: Version of Vela, `"5.2.0"`; empty if it is not this Python's.
        accelerator: `"ethos-u55-128"`.
        npu_count: Number of the model's operations on the NPU.
        cpu_count: Number of its operations on the CPU.
        cpu_operations: Tuple of `CPUOperation`: which, and why.
        bytes: Size of the compiled model.
        figures: `VelaFigures`: cycles, time, memory and weights, as Vela estimates
            them; time and cycles are of the NPU's part alone.
    """

    path: str
    log_path: str
    compiler_version: str
    accelerator: str
    npu_count: int
    cpu_count: int
    cpu_operations: tuple
    bytes: int
    figures: VelaFigures

    @property
    def npu_share(self):
        """Fraction of the model's operations that are on the NPU, in (0, 1]."""
        return self.npu_count / (self.npu_count + self.cpu_count)

    def __str__(self):
        found = self.figures
        lines = [
            f"{self.path}: {self.bytes:,} bytes for {self.accelerator}, "
            f"{found.system_config}, {found.memory_mode}",
            f"  on the NPU: {self.npu_count} of {self.npu_count + self.cpu_count} "
            f"operations ({self.npu_share:.0%})",
            f"  estimated:  {found.inference_ms:.3f} ms, {found.npu_cycles:,} NPU "
            f"cycles, {found.total_cycles:,} in all",
            f"  memory:     {found.sram_bytes:,} bytes SRAM, {found.dram_bytes:,} "
            f"DRAM, {found.flash_bytes:,} flash",
            f"  weights:    {found.weight_bytes:,} bytes, encoded "
            f"{found.encoded_weight_bytes:,}",
        ]
        lines += [
            f"  on the CPU: {op.operator} {op.tensor!r}: {op.reason}"
            for op in self.cpu_operations
        ]
        return "\n".join(lines)


def compile_ethosu(
    path,
    out_dir=None,
    *,
    accelerator,
    memory_mode,
    system_config=None,
    optimise="Performance",
    arena_cache_bytes=None,
    config=None,
    compiler=None,
    timeout_sec=300,
):
    """Compiles an integer `.tflite` file for an Arm Ethos-U NPU with Vela.

    The result, `NAME_vela.tflite` and `NAME_vela.log`, is moved to its place when it is
    complete: after a failure an older result is still there, untouched. Vela ends well
    when it left everything to the CPU, as it does with a float file; this raises then.

    Args:
        path: Path of a `.tflite` file with tensors of 8 or 16 bit integers.
        out_dir: Folder for the result, created if absent; by default that of `path`.
        accelerator: The NPU with its multipliers: `"ethos-u55-32"`, `-64`, `-128`,
            `-256`; `"ethos-u65-256"`, `-512`; `"ethos-u85-128"` to `-2048`. It has no
            default, for a file of one does not run on another.
        memory_mode: What lies where: `"Sram_Only"`; `"Shared_Sram"` (weights in flash
            or DRAM, tensors in SRAM); `"Dedicated_Sram"`, `_256KB`, `_384KB`, `_512KB`
            (tensors in DRAM, SRAM as the NPU's cache; not for the Ethos-U55); or a
            section `Memory_Mode.NAME` of your `config`.
        system_config: Section `System_Config.NAME` that describes clock and memories,
            on which the estimates depend; by default `"Ethos_U55_High_End_Embedded"`,
            `"Ethos_U65_Client_Server"` or `"Ethos_U85_SYS_DRAM_Mid"`.
        optimise: `"Performance"` or `"Size"` (least memory).
        arena_cache_bytes: SRAM to plan for, in place of the memory mode's.
        config: Path of a Vela `.ini` file of your board; by default Arm's.
        compiler: Path or name of a `vela` program; by default this Python's.
        timeout_sec: Seconds after which Vela is killed.

    Returns:
        An `EthosUCompilation`.

    Raises:
        NotADirectoryError: If `out_dir` is a file.
        FileNotFoundError: If there is no such file or `config`;
            `EthosUCompilerNotFound` if there is no Vela.
        ValueError: If the file is damaged, no TFLite model, or compiled already, or an
            argument is none of its choices.
        EthosUCompilerError: If Vela fails, takes too long, writes nothing usable or
            puts nothing on the NPU; `.log` holds what it wrote.
    """
    check_timeout(timeout_sec)
    _check_choices(accelerator, memory_mode, optimise, config)
    if out_dir is not None and os.path.isfile(out_dir):
        raise NotADirectoryError(
            f"`out_dir` must be a folder. Received a file: {os.fspath(out_dir)!r}"
        )
    model = read_tflite(path)
    if any(op.operator == NPU_OPERATOR for op in model.operations):
        raise ValueError(
            f"{os.fspath(path)!r} is compiled for the Ethos-U already. Pass the file "
            "that it was made from."
        )
    run, version = _compiler(compiler)
    # Not resolved: the result belongs beside a link, under its name.
    path = pathlib.Path(os.path.abspath(path))
    out_dir = path.parent if out_dir is None else pathlib.Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    arguments = [
        *("--config", os.path.abspath(config) if config else _CONFIG),
        *("--accelerator-config", accelerator),
        *("--memory-mode", memory_mode),
        *("--system-config", system_config or _SYSTEM_CONFIGS[accelerator[:9]]),
        *("--optimise", optimise),
    ]
    if arena_cache_bytes is not None:
        arguments += ["--arena-cache-size", str(arena_cache_bytes)]
    # Inside `out_dir`, since os.replace is atomic only within a file system.
    with tempfile.TemporaryDirectory(dir=out_dir, prefix=".vela_") as folder:
        folder = pathlib.Path(folder).resolve()
        arguments += ["--output-dir", str(folder), str(path)]
        done = run(arguments, folder, timeout_sec)
        if done.code != 0:
            why = _why_stopped(done, timeout_sec)
            raise _failed(path, done.output, why)
        output, figures = _checked_output(folder, path, done.output)
        cpu = [op for op in output.operations if op.operator != NPU_OPERATOR]
        _publish(output, done.output, out_dir, path.stem)
    return EthosUCompilation(
        path=str(out_dir / f"{path.stem}_vela.tflite"),
        log_path=str(out_dir / f"{path.stem}_vela.log"),
        compiler_version=version,
        accelerator=accelerator,
        npu_count=len(model.operations) - len(cpu),
        cpu_count=len(cpu),
        cpu_operations=cpu_operations(done.output),
        bytes=output.bytes,
        figures=figures,
    )


def _check_choices(accelerator, memory_mode, optimise, config):
    if accelerator not in ACCELERATORS:
        raise ValueError(
            f"`accelerator` must be one of {ACCELERATORS}. Received: "
            f"accelerator={accelerator!r}"
        )
    if optimise not in ("Performance", "Size"):
        raise ValueError(
            f"`optimise` must be 'Performance' or 'Size'. Received: {optimise!r}"
        )
    if config is not None:
        if not os.path.isfile(config):
            raise FileNotFoundError(
                f"No such Vela configuration: {os.fspath(config)!r}"
            )
        return
    if memory_mode not in MEMORY_MODES:
        raise ValueError(
            f"`memory_mode` must be one of {MEMORY_MODES}, or a section of your "
            f"`config`. Received: memory_mode={memory_mode!r}"
        )
    if accelerator.startswith("ethos-u55") and memory_mode in _DEDICATED:
        raise ValueError(
            "An Ethos-U55 has no DRAM for tensors: `memory_mode` must be 'Sram_Only' "
            f"or 'Shared_Sram'. Received: memory_mode={memory_mode!r}"
        )


def _compiler(compiler):
    """A function that runs Vela with arguments, and its version."""
    if compiler is None and installed("ethosu.vela"):

        def run(arguments, folder, timeout_sec):
            return run_python(["-m", "ethosu.vela", *arguments], folder, timeout_sec)

        return run, importlib.metadata.version("ethos-u-vela")
    program = shutil.which(os.fspath(compiler or "vela"))
    if program is None:
        where = f"at {os.fspath(compiler)!r}" if compiler else "for this Python"
        raise EthosUCompilerNotFound(
            f"Vela, Arm's compiler for Ethos-U, is not installed {where}: "
            "pip install 'tfcompress[ethosu]' (the package ethos-u-vela), or pass "
            "compiler= with the path of a `vela` program."
        )
    program = os.path.abspath(program)

    def run(arguments, folder, timeout_sec):
        try:
            return run_program([program, *arguments], folder, timeout_sec)
        except OSError as err:
            raise EthosUCompilerError(
                f"{program!r} does not start: {err.strerror}. Pass the path of a "
                "`vela` program, or leave compiler= out."
            ) from err

    return run, ""


def _why_stopped(done, timeout_sec):
    if done.code is None:
        return (
            f"it did not finish in {timeout_sec} seconds and was killed. Pass a larger "
            "timeout_sec."
        )
    if done.crash:
        return (
            f"it crashed ({done.crash}). Export the file again with tfc.export_tflite; "
            "if that does not help, report it to Vela's maintainers."
        )
    return failure(done.output) or f"exit code {done.code} without a reason."


def _failed(path, output, why):
    return EthosUCompilerError(f"Vela failed on {path.name!r}: {why}", output)


def _checked_output(folder, path, output):
    """The compiled model in `folder`, as a `TFLiteFile`, and its figures."""
    models = sorted(folder.glob("*_vela.tflite"))
    summaries = sorted(folder.glob("*_summary_*.csv"))
    if len(models) != 1 or len(summaries) != 1:
        names = sorted(file.name for file in folder.iterdir())
        raise _failed(
            path,
            output,
            f"one model and one summary expected, found {names}. See .log.",
        )
    try:
        compiled, figures = read_tflite(models[0]), read_summary(summaries[0])
    except ValueError as err:
        raise _failed(path, output, f"its output is not readable: {err}") from err
    if not any(op.operator == NPU_OPERATOR for op in compiled.operations):
        raise _failed(path, output, _why_nothing_mapped(output))
    return compiled, figures


def _why_nothing_mapped(output):
    reasons = dict.fromkeys(
        f"{op.operator}: {op.reason}" for op in cpu_operations(output)
    )
    said = "; ".join(list(reasons)[:3]) or "it gives no reason"
    return (
        f"nothing is on the NPU, every operation stays on the CPU ({said}). The NPU "
        'computes integers: export with tfc.export_tflite(model, path, kind="int8").'
    )


def _publish(output, log, out_dir, stem):
    written = pathlib.Path(output.path)
    written_log = written.with_suffix(".log")
    written_log.write_text(log, encoding="utf-8")
    replace_together(
        [
            (written, out_dir / f"{stem}_vela.tflite"),
            (written_log, out_dir / f"{stem}_vela.log"),
        ]
    )
