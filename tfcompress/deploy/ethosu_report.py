"""Reads what Vela, Arm's compiler for Ethos-U, says of a compilation.

Two sources: the summary file, a CSV of one row, has the figures; the output has the
operations that stay on the CPU, and why.

Example:
    ```python
    figures = read_summary("model_summary_Ethos_U55_High_End_Embedded.csv")
    figures.npu_cycles, figures.encoded_weight_bytes
    [stay.reason for stay in cpu_operations(output)]
    ```
"""

import csv
import re
from dataclasses import dataclass

_WARNING = re.compile(
    r"^Warning \(supported operators\) operator: (?P<operator>\S+), "
    r"ofm: '(?P<tensor>.*)'$"
)
_KIB = 1024
# A traceback ends in `package.module.ClassError: 'text'`.
_ERROR = re.compile(r"^(?:[\w.]+\.)?(?P<kind>\w*(?:Error|Exception)): (?P<text>.*)$")


@dataclass(frozen=True)
class VelaFigures:
    """What Vela's model of the NPU computed for one inference.

    Attributes:
        system_config: Section of the configuration that describes clock and memories.
        memory_mode: Section that says what lies in which memory.
        clock_hz: Clock of the NPU.
        inference_ms: Estimated time of the part on the NPU.
        npu_cycles: Cycles that the NPU computes.
        total_cycles: Cycles including what it waits for memory.
        macs: Multiply-accumulate operations on the NPU.
        sram_bytes: SRAM that tensors take at the peak.
        dram_bytes: The same of DRAM.
        flash_bytes: The same of flash, on the chip and off it.
        weight_bytes: Weights before Vela encoded them.
        encoded_weight_bytes: Weights as Vela encoded them for the NPU.
    """

    system_config: str
    memory_mode: str
    clock_hz: float
    inference_ms: float
    npu_cycles: int
    total_cycles: int
    macs: int
    sram_bytes: int
    dram_bytes: int
    flash_bytes: int
    weight_bytes: int
    encoded_weight_bytes: int


@dataclass(frozen=True)
class CPUOperation:
    """An operation that Vela leaves to the CPU.

    Attributes:
        operator: TFLite's name, `"CUMSUM"`.
        tensor: Name of its first output.
        reason: Vela's reason; an operation may have several.
    """

    operator: str
    tensor: str
    reason: str


def read_summary(path):
    """Reads the summary file of Vela 3 to 5.

    Args:
        path: Path of `NAME_summary_CONFIG.csv`.

    Returns:
        A `VelaFigures`.

    Raises:
        ValueError: If a column that we read is missing or no number.
    """
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    if len(rows) != 1:
        raise ValueError(f"Vela's summary must have one row. Received: {len(rows)}")
    row = rows[0]
    try:
        return _figures(row)
    except (KeyError, ValueError, TypeError) as err:
        raise ValueError(
            f"Vela's summary is not as that of versions 3 to 5: {err!r} in the columns "
            f"{sorted(map(str, row))}"
        ) from err


def _figures(row):
    def number(name):
        return round(float(row[name]))

    flash = ("on_chip_flash_memory_used", "off_chip_flash_memory_used")
    return VelaFigures(
        system_config=row["system_config"],
        memory_mode=row["memory_mode"],
        clock_hz=float(row["core_clock"]),
        inference_ms=1000 * float(row["inference_time"]),
        npu_cycles=number("cycles_npu"),
        total_cycles=number("cycles_total"),
        macs=number("nn_macs"),
        # Memory is in KiB there, weights are in bytes.
        sram_bytes=round(_KIB * float(row["sram_memory_used"])),
        dram_bytes=round(_KIB * float(row["dram_memory_used"])),
        flash_bytes=round(_KIB * sum(float(row[name]) for name in flash)),
        weight_bytes=number("total_original_weights"),
        encoded_weight_bytes=number("total_npu_encoded_weights"),
    )


def cpu_operations(output):
    """The operations that Vela names in its output, with reasons.

    Args:
        output: What Vela wrote.

    Returns:
        Tuple of `CPUOperation`, in the order of the output.
    """
    lines = [line.strip() for line in output.splitlines()]
    found = []
    for number, line in enumerate(lines):
        if match := _WARNING.match(line):
            # The reason is all up to the next empty line.
            rest = lines[number + 1 :]
            end = rest.index("") if "" in rest else len(rest)
            reason = " ".join(rest[:end]).removeprefix("Reason: ")
            found.append(CPUOperation(match["operator"], match["tensor"], reason))
    return tuple(found)


def failure(output):
    """The sentence of Vela's output that says why it failed.

    Args:
        output: What Vela wrote.

    Returns:
        One line without the traceback; empty if it wrote nothing.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for line in reversed(lines):
        if match := _ERROR.match(line):
            text = match["text"].strip("'\"")
            # Its own errors begin with "Error:"; those of Python need their kind.
            return text if text.startswith("Error:") else f"{match['kind']}: {text}"
    return lines[-1] if lines else ""
