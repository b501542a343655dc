"""What came of the run of a recipe, and how it is shown.

Example:
    ```python
    print(recipe.run(model, (x, y), "out"))   # each stage, then each file
    ```
"""

from dataclasses import dataclass, field

import keras

from tfcompress.report import table


@dataclass(frozen=True)
class RecipeResult:
    """What came of a run.

    Attributes:
        directory: Folder of the run.
        model: The `keras.Model` after the last stage.
        files: Tuple of the paths of the files for devices, in the order of the stages.
        measurements: Tuple of `Measurement`: the original as a float32 `.tflite` file,
            then each `.tflite` file.
        stages: Tuple of dicts, as in each stage's `report.json`.
        report: Path of the HTML report.
    """

    directory: str
    model: keras.Model = field(repr=False)
    files: tuple
    measurements: tuple
    stages: tuple = field(repr=False)
    report: str

    def __str__(self):
        parts = [stage_rows(self.stages), table(self.measurements)]
        return "\n\n".join("\n".join(_aligned(rows)) for rows in parts)


def summary(found):
    """One line about the model that a stage left.

    Args:
        found: Dict of the stage's report.
    """
    parts = [f"{found['parameters']:,} parameters", f"{found['sparsity']:.1%} zeros"]
    if found["accuracy"] is not None:
        parts.append(f"accuracy {found['accuracy']:.2%}")
    return ", ".join(parts)


def stage_rows(reports):
    """The stages as rows of text cells, header first.

    Args:
        reports: Dicts of the stages' reports.
    """
    rows = [["stage", "accuracy", "parameters", "zeros", "MACs", "gzip", "seconds"]]
    for r in reports:
        accuracy, macs = r.get("accuracy"), r.get("macs")
        rows.append(
            [
                f"{r['stage']} {r['name']}",
                "-" if accuracy is None else f"{accuracy:.2%}",
                f"{r['parameters']:,}" if "parameters" in r else "-",
                f"{r['sparsity']:.1%}" if "sparsity" in r else "-",
                "-" if macs is None else f"{macs:,}",
                f"{r['gzip_bytes']:,}" if "gzip_bytes" in r else "-",
                f"{r['seconds']:.1f}",
            ]
        )
    return rows


def _aligned(rows):
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        first, *rest = (cell for cell in row)
        cells = [first.ljust(widths[0])]
        cells += [c.rjust(w) for c, w in zip(rest, widths[1:], strict=True)]
        yield "  ".join(cells)
