"""Predicts what the Edge TPU compiler will map of a `.tflite` file, and why not.

Needs no compiler. The rules are Coral's documented ones, corrected by what real
compiler runs were seen to map; where neither decides, `certain` is False.

Example:
    ```python
    check = check_edgetpu("model.tflite")
    print(check)                                    # a table, one row an operation
    [op.reason for op in check.operations if not op.mapped]
    ```
"""

from dataclasses import dataclass

from tfcompress.deploy.edgetpu_memory import EdgeTPUMemory, estimate_memory
from tfcompress.deploy.edgetpu_rules import cpu, file_refusal, judge, unsure
from tfcompress.deploy.tflite_file import damage_named, read_tflite

COMPILED_OPERATOR = "edgetpu-custom-op"


@dataclass(frozen=True)
class MappedOperation:
    """What is expected of one operation.

    Attributes:
        index: Position in the file.
        operator: TFLite's name, `"CONV_2D"`; of a custom operation, its own name.
        mapped: Whether it is expected to run on the Edge TPU.
        certain: False where neither the documentation nor compiled files decide.
        reason: Why it stays on the CPU or is uncertain; empty when surely mapped.
        remedy: What to do about `reason`; empty where there is nothing to do.
    """

    index: int
    operator: str
    mapped: bool
    certain: bool
    reason: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class EdgeTPUCheck:
    """The expected mapping of a file; printed, it is a table.

    Attributes:
        path: Path of the file.
        operations: One `MappedOperation` per TFLite operation, in file order.
        memory: `EdgeTPUMemory`: whether the parameters of the mapped operations will
            stay on the chip.
    """

    path: str
    operations: tuple
    memory: EdgeTPUMemory

    @property
    def mapped_count(self):
        """Number of operations expected on the Edge TPU."""
        return sum(op.mapped for op in self.operations)

    @property
    def cpu_count(self):
        """Number of operations expected on the CPU."""
        return len(self.operations) - self.mapped_count

    @property
    def fully_mapped(self):
        """Whether there are operations and all are expected on the Edge TPU."""
        return bool(self.operations) and self.cpu_count == 0

    def __str__(self):
        total = len(self.operations)
        unsure = sum(not op.certain for op in self.operations)
        title = f"{self.path}: {self.mapped_count} of {total} operations map"
        title += f" ({unsure} uncertain, marked ?)" if unsure else ""
        rows = [("#", "operator", "where", "reason", "remedy")]
        for op in self.operations:
            where = ("Edge TPU" if op.mapped else "CPU") + ("" if op.certain else " ?")
            rows.append((str(op.index), op.operator, where, op.reason, op.remedy))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = (
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))
            for row in rows
        )
        memory = [str(self.memory)] if self.mapped_count else []
        return "\n".join([title, *(line.rstrip() for line in lines), *memory])


def check_edgetpu(path):
    """Predicts which operations of a file the Edge TPU compiler maps.

    Args:
        path: Path of a `.tflite` file, not yet compiled for the Edge TPU.

    Returns:
        An `EdgeTPUCheck`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, no TFLite model, or compiled already.

    Reference:
        https://www.coral.ai/docs/edgetpu/models-intro/ (operations, requirements);
        the division into CPU and Edge TPU parts is TFLite's for delegates,
        `PartitionGraphIntoIndependentNodeSubsets` in its `graph_info.cc`.
    """
    file = read_tflite(path)
    with damage_named(path):
        return check_file(file)


def check_file(file):
    """`check_edgetpu` for a file that is read already.

    Args:
        file: A `TFLiteFile`.

    Returns:
        An `EdgeTPUCheck`.

    Raises:
        ValueError: If the file is compiled already.
    """
    if any(op.operator == COMPILED_OPERATOR for op in file.operations):
        raise ValueError(
            f"{file.path!r} is compiled for the Edge TPU already: it contains "
            f"{COMPILED_OPERATOR!r}. Pass the .tflite file it was compiled from."
        )
    refusal = file_refusal(file)
    if refusal:
        verdicts = [refusal] * len(file.operations)
    else:
        verdicts = [judge(op, file.inputs) for op in file.operations]
        verdicts = _follow_dependencies(file, verdicts)
    mapped = [
        op for op, verdict in zip(file.operations, verdicts, strict=True) if verdict[0]
    ]
    return EdgeTPUCheck(
        path=file.path,
        memory=estimate_memory(mapped),
        operations=tuple(
            MappedOperation(op.index, op.operator, *verdict)
            for op, verdict in zip(file.operations, verdicts, strict=True)
        ),
    )


def _follow_dependencies(file, verdicts):
    """Leaves on the CPU what cannot be part of the one Edge TPU subgraph.

    TFLite cuts the operations into parts, in turn all CPU and all Edge TPU; a part
    takes in whatever is ready. The compiler keeps the first Edge TPU part: a CPU part
    may precede it, and all that comes later stays on the CPU.
    """
    producer = {t.index: op.index for op in file.operations for t in op.outputs}
    needs = [
        {producer[t.index] for t in op.inputs if t is not None and t.index in producer}
        for op in file.operations
    ]
    before = set()
    part = _next_part(needs, verdicts, before)
    if part and not verdicts[min(part)].mapped:
        before = part
        part = _next_part(needs, verdicts, before)
    result, root = list(verdicts), {}
    for index, verdict in enumerate(verdicts):
        if not verdict.mapped:
            continue
        wanted = needs[index] - before
        if index not in part:
            causes = wanted - part
        elif verdict.certain:
            causes = {i for i in wanted if not result[i].certain}
        else:
            causes = set()
        if causes:
            # A certain cause settles it, whatever the uncertain ones turn out to be.
            cause = min(causes, key=lambda i: (not result[i].certain, i))
            cause = root[index] = root.get(cause, cause)
            result[index] = _caused_by(file.operations[cause], result[cause])
    return result


def _next_part(needs, verdicts, done):
    part = set()
    for index, verdict in enumerate(verdicts):
        if index in done or not needs[index] <= done | part:
            continue
        if not part or verdict.mapped == verdicts[min(part)].mapped:
            part.add(index)
    return part


def _caused_by(op, verdict):
    name = f"operation {op.index} {op.operator}"
    if verdict.mapped:
        return unsure(f"depends on {name}, which may stay on the CPU")
    return cpu(
        f"depends on {name}, which is on the CPU",
        f"Solve operation {op.index} first.",
        verdict.certain,
    )
