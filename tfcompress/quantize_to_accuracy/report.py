"""What `quantize_to_accuracy` tried, and what came of it.

Example:
    ```python
    quantized, report = tfc.quantize_to_accuracy(..., return_report=True)
    [attempt.accuracy for attempt in report.attempts]
    ```
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Attempt:
    """One quantized model that was evaluated.

    Attributes:
        activation_bits: Width of its activations.
        layers: Names of the operations that were left float, worst first.
        accuracy: What `evaluate` returned for it.
    """

    activation_bits: int
    layers: tuple
    accuracy: float


@dataclass(frozen=True)
class AccuracyReport:
    """How quantization came within the limit; prints as a table.

    Attributes:
        baseline: What `evaluate` returned for the float model.
        allowed_drop: The limit on `baseline` minus accuracy.
        attempts: Tuple of `Attempt`, in the order they were made.
        chosen: The `Attempt` that was returned; `None` if none came within the limit.
    """

    baseline: float
    allowed_drop: float
    attempts: tuple
    chosen: Attempt | None

    def __str__(self):
        lines = [f"float: {self.baseline:.4f}; allowed drop {self.allowed_drop:g}"]
        for attempt in self.attempts:
            drop = self.baseline - attempt.accuracy
            names = ", ".join(attempt.layers) or "none"
            mark = "*" if attempt is self.chosen else " "
            lines.append(
                f"{mark} {attempt.accuracy:.4f} (drop {drop:+.4f}), activations of "
                f"{attempt.activation_bits} bits, float: {names}"
            )
        return "\n".join(lines)
