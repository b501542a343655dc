"""Reads what `edgetpu_compiler` prints, and the `.log` files it writes.

The wording differs between versions 1 to 16 of the compiler; all are understood.

Example:
    ```python
    log = parse_compiler_output(pathlib.Path("model_edgetpu.log").read_text())
    log.mapped_count, log.cpu_count     # (31, 2)
    log.failure, log.remedy             # ("Model not quantized", "Export it with ...")
    ```
"""

import re
from dataclasses import dataclass, field
from typing import NamedTuple


class OperatorStatus(NamedTuple):
    """A row of the compiler's table.

    Attributes:
        operator: TFLite's name; `"CUSTOM"` for any custom operation.
        count: Number of operations this row is about.
        status: The compiler's words.
        mapped: Whether they run on the Edge TPU.
    """

    operator: str
    count: int
    status: str
    mapped: bool


@dataclass(frozen=True)
class CompiledModel:
    """What the compiler says of one model; `None` for what it does not say.

    Attributes:
        input: Path of the model compiled, as printed.
        output: Path of the compiled model, as printed.
        on_chip_used_bytes: Parameters kept in the Edge TPU's memory.
        on_chip_remaining_bytes: What is left of that memory.
        off_chip_bytes: Parameters fetched from the host at every inference.
        subgraphs: Number of Edge TPU subgraphs.
        total_operations: Number of operations of the model compiled.
    """

    input: str | None = None
    output: str | None = None
    on_chip_used_bytes: int | None = None
    on_chip_remaining_bytes: int | None = None
    off_chip_bytes: int | None = None
    subgraphs: int | None = None
    total_operations: int | None = None


@dataclass(frozen=True)
class CompilerLog:
    """The compiler's output, understood.

    Attributes:
        compiler_version: `"16.0.384591198"`; empty where not printed.
        succeeded: Whether the compiler says it wrote a model, which does not mean that
            anything is mapped; `None` where it does not say, as in `.log` files.
        failure: The line that tells most of a failure; empty if none is reported.
        remedy: What to do about it; empty if there is no failure.
        models: One `CompiledModel` per model.
        statuses: The rows of the table, as `OperatorStatus`.
        mapped_count: Number of operations on the Edge TPU; `None` where not said.
        cpu_count: Number of operations on the CPU; `None` where not said.
        text: The output itself.
    """

    compiler_version: str
    succeeded: bool | None
    failure: str
    remedy: str
    models: tuple
    statuses: tuple
    mapped_count: int | None
    cpu_count: int | None
    text: str = field(default="", repr=False)


def parse_compiler_output(text):
    """Parses the output of `edgetpu_compiler`, or a `.log` file it wrote.

    Args:
        text: Standard output and error together, or the content of the file.

    Returns:
        A `CompilerLog`. Text that is no compiler output gives one that says nothing.
    """
    version = re.search(r"Edge TPU Compiler version (\S+)", text)
    succeeded, relevant = _outcome(text)
    failure, remedy = _failure(relevant) if succeeded is False else ("", "")
    models = tuple(_models(text))
    statuses = tuple(_statuses(text))
    mapped, cpu = _counts(text, models, statuses)
    return CompilerLog(
        compiler_version=version.group(1) if version else "",
        succeeded=succeeded,
        failure=failure,
        remedy=remedy,
        models=models,
        statuses=statuses,
        mapped_count=mapped,
        cpu_count=cpu,
        text=text,
    )


_SUCCESS = re.compile(r"Models? compiled successfully|Compilation succeeded!")
_FAILURE = re.compile(
    r"Compilation failed|Compilation timeout|^ERROR: |error: |Invalid model: "
    r"|Internal compiler error|Segmentation fault|Aborted|terminating with uncaught",
    re.MULTILINE,
)


def _outcome(text):
    """Whether it succeeded, by the last word on it, and the text after any success.

    A search for a delegate fails several times before it succeeds, and one segment may
    fail after another succeeded.
    """
    end_of_success = max((m.end() for m in _SUCCESS.finditer(text)), default=None)
    rest = text[end_of_success or 0 :]
    if _FAILURE.search(rest):
        return False, rest
    return (None if end_of_success is None else True), rest


_EXPORT = 'Export it with tfc.export_tflite(model, path, kind="int8").'
_FIXED_SHAPE = (
    "Give every keras.Input a fixed shape and batch size 1, and export again."
)
_SMALLER = (
    "Make the input or the largest layer smaller, or pass search_delegate=True to "
    "leave the end of the model on the CPU."
)
_UNKNOWN = (
    "The compiler gives no reason: see check_edgetpu(path), or pass "
    "search_delegate=True to leave the end of the model on the CPU."
)

# First match wins, so the most telling line comes first.
_FAILURES = (
    (r"Model not quantized", _EXPORT),
    (
        r"Didn't find op for builtin opcode '\w+' version '\d+'",
        "The compiler knows only older versions of this operation: convert with an "
        "older TensorFlow, or replace the layer.",
    ),
    (
        r"Attempting to use a delegate that only supports static-sized tensors with a "
        r"graph that has dynamic-sized tensors",
        _FIXED_SHAPE,
    ),
    (
        r"Encountered unresolved custom op: [^\n]*?(?=\.?$)",
        "Replace the layer by builtin operations, or run it outside the file.",
    ),
    (r"Compilation failed due to large activation tensors in model", _SMALLER),
    (
        r"Compilation timeout[^\n]*?(?=\.?$)",
        f"Pass a larger timeout_sec. {_SMALLER}",
    ),
    (
        r"'tfl\.strided_slice' op is not supported on DarwiNN",
        "Slice with strides of 1 only; use a strided convolution or pooling instead.",
    ),
    (
        r"'[\w.]+' op is not supported on DarwiNN",
        "Replace the layer; check_edgetpu(path) lists what is supported.",
    ),
    (r"terminating with uncaught[^\n]*|Segmentation fault|Aborted", _UNKNOWN),
    (
        r"Internal compiler error",
        "Try compiler version 16, or check_edgetpu(path) for what is unusual.",
    ),
    (
        r"Model could not be parsed",
        "Check that it is a whole .tflite file, and export it again.",
    ),
    (
        r"Model failed in Tflite interpreter",
        "Run the file in the TFLite interpreter to see why.",
    ),
    (r"(?<=ERROR: )[^\n]*?(?=\.?$)", _UNKNOWN),
    (r"(?<=error: )[^\n]*?(?=\.?$)", _UNKNOWN),
    (r"(?<=Compilation failed: )[^\n]*?(?=\.?$)", _UNKNOWN),
    (r"Invalid model", _EXPORT),
)


def _failure(text):
    for pattern, remedy in _FAILURES:
        match = re.search(pattern, text, re.MULTILINE)
        if match:
            return match.group(0), remedy
    return "Compilation failed", _UNKNOWN


_MODEL_LINES = (
    ("output", r"Output(?: model)?: (.*)"),
    ("on_chip_used_bytes", r"On-chip memory used for .*: (\S+)"),
    ("on_chip_remaining_bytes", r"On-chip memory remaining for .*: (\S+)"),
    ("off_chip_bytes", r"Off-chip memory used for .*: (\S+)"),
    ("subgraphs", r"Number of Edge TPU subgraphs: (\d+)"),
    ("total_operations", r"Total number of operations: (\d+)"),
)


def _models(text):
    starts = list(re.finditer(r"^Input(?: model)?: (.*)$", text, re.MULTILINE))
    bounds = [*(match.start() for match in starts), len(text)]
    for start, end in zip(starts, bounds[1:], strict=True):
        section = text[start.end() : end]
        found = {"input": start.group(1).strip()}
        for name, pattern in _MODEL_LINES:
            match = re.search(rf"^{pattern}$", section, re.MULTILINE)
            if match:
                found[name] = _number(name, match.group(1).strip())
        # Version 2.0 prints the whole memory instead of what remains of it.
        whole = re.search(r"^On-chip memory available for .*: (\S+)$", section, re.M)
        if whole and "on_chip_used_bytes" in found:
            remaining = _bytes(whole.group(1)) - found["on_chip_used_bytes"]
            found["on_chip_remaining_bytes"] = remaining
        yield CompiledModel(**found)


def _number(name, value):
    if name.endswith("bytes"):
        return _bytes(value)
    return value if name == "output" else int(value)


def _bytes(size):
    number, unit = re.fullmatch(r"([\d.]+)([KMG]i)?B", size).groups()
    return round(float(number) * 1024 ** ("KMG".index(unit[0]) + 1 if unit else 0))


def _statuses(text):
    for match in re.finditer(
        r"^([A-Z][A-Z0-9_]*)[ \t]+(\d+)[ \t]+(\S.*?)[ \t]*$", text, re.MULTILINE
    ):
        operator, count, status = match.groups()
        mapped = status.startswith("Mapped to")
        yield OperatorStatus(operator, int(count), status, mapped)


def _counts(text, models, statuses):
    """Operations on the Edge TPU and the CPU: as printed, by the table, or implied."""
    totals = [m.total_operations for m in models]
    total = sum(totals) if totals and None not in totals else None
    mapped = _printed(text, "Edge TPU")
    cpu = _printed(text, "CPU")
    if mapped is None and statuses:
        mapped = sum(row.count for row in statuses if row.mapped)
        cpu = sum(row.count for row in statuses if not row.mapped)
    elif mapped is None and total is not None and cpu is None:
        # The compiler prints the two counts only where something is left on the CPU.
        mapped, cpu = total, 0
    elif cpu is None and mapped is not None and total is not None:
        cpu = total - mapped
    return mapped, cpu


def _printed(text, where):
    counts = re.findall(rf"operations that will run on {where}: (\d+)", text)
    return sum(map(int, counts)) if counts else None
