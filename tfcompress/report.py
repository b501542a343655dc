"""A report of measurements: one HTML file that holds all it shows, and its plots.

Example:
    ```python
    tfc.report([tfc.measure("float.tflite", data), tfc.measure("int8.tflite", data)],
               "report.html")
    ```
"""

import base64
import html
import os
import pathlib
import platform
from dataclasses import dataclass

from tfcompress import plots
from tfcompress.deploy.files import check_writable, written_atomically
from tfcompress.measure import Measurement


@dataclass(frozen=True)
class Report:
    """What `report` wrote.

    Attributes:
        path: Path of the HTML file.
        plots: Paths of the PNG files beside it.
    """

    path: str
    plots: tuple


def report(measurements, path, *, title="Before and after compression", tables=()):
    """Writes a table and plots of measurements, the first of which is the baseline.

    Args:
        measurements: Sequence of `Measurement`, the one to compare with first.
        path: Path of the HTML file; the plots go beside it as
            `<name>_accuracy_size.png`, `<name>_accuracy_latency.png` and
            `<name>_sparsity.png`, where the measurements have the figures.
        title: Heading.
        tables: Further tables for the end, pairs of a heading and rows of text cells,
            the header first.

    Returns:
        A `Report`.

    Raises:
        TypeError: If something is no `Measurement`.
        ValueError: If there are none.
        OSError: If a file cannot be written.
    """
    measurements = list(measurements)
    if not measurements:
        raise ValueError("`measurements` is empty: there is nothing to report.")
    for item in measurements:
        if not isinstance(item, Measurement):
            raise TypeError(
                "`measurements` must be what tfc.measure returns. "
                f"Received: {item!r} (of type {type(item).__name__})"
            )
    path = pathlib.Path(path)
    check_writable(path)
    figures = _figures(measurements)
    _write(path, _page(measurements, figures, title, tables).encode())
    files = []
    for name, (png, _) in figures.items():
        file = path.with_name(f"{path.stem}_{name}.png")
        _write(file, png)
        files.append(os.fspath(file))
    return Report(path=os.fspath(path), plots=tuple(files))


def table(measurements):
    """The rows of the report as text cells, header first.

    Args:
        measurements: Sequence of `Measurement`, baseline first.

    Returns:
        List of lists of strings.
    """
    base = measurements[0]
    rows = [
        [
            "model",
            "accuracy",
            "file, bytes",
            "gzip, bytes",
            "smaller",
            "nonzero weights",
            "zeros",
            "MACs",
            "latency, ms",
            "faster",
        ]
    ]
    for m in measurements:
        rows.append(
            [
                m.name,
                _show(m.accuracy, "{:.1%}"),
                f"{m.bytes:,}",
                f"{m.gzip_bytes:,}",
                f"{base.gzip_bytes / m.gzip_bytes:.2f}x",
                f"{m.nonzero_parameters:,}",
                f"{m.sparsity:.1%}",
                _show(m.macs, "{:,}"),
                _show(m.latency_ms, "{:.3f}"),
                _ratio(base.latency_ms, m.latency_ms),
            ]
        )
    return rows


def _show(value, text):
    return "-" if value is None else text.format(value)


def _ratio(before, after):
    return "-" if before is None or after is None else f"{before / after:.2f}x"


def _figures(measurements):
    """Dict from name to (PNG bytes, caption)."""
    sparsest = max(measurements, key=lambda m: m.sparsity)
    found = {
        "accuracy_size": (
            plots.accuracy_against(
                measurements, "gzip_bytes", "size after gzip, kB", 1 / 1000
            ),
            "Accuracy against size: up and to the left is better.",
        ),
        "accuracy_latency": (
            plots.accuracy_against(
                measurements, "latency_ms", "latency on one thread, ms"
            ),
            "Accuracy against the time of one inference.",
        ),
        "sparsity": (
            plots.sparsity_per_kernel(sparsest),
            f"Zeros in each kernel of {sparsest.name}.",
        ),
    }
    return {name: pair for name, pair in found.items() if pair[0] is not None}


_STYLE = """
:root { color-scheme: light dark; --ink: #1d2733; --paper: #ffffff; --line: #dfe4ea;
  --soft: #f4f6f9; --mark: #2a78d6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf2; --paper: #14181d;
  --line: #323a44; --soft: #1d232a; --mark: #6aa9f4; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; line-height: 1.2; margin: 1.5rem 0 .5rem; }
.lead { font-size: 1.1rem; margin: 0 0 1.5rem; }
.lead b { color: var(--mark); }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: .5rem; }
table { border-collapse: collapse; width: 100%; font-size: .85rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .6rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; font-weight: 600;
  position: sticky; left: 0; background: var(--paper); }
thead th { background: var(--soft); font-weight: 600; white-space: normal;
  vertical-align: bottom; }
thead th:first-child { background: var(--soft); }
tbody tr:last-child td { border-bottom: 0; }
.plots { display: grid; gap: 1rem; margin-top: 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
figure { margin: 0; border: 1px solid var(--line); border-radius: .5rem;
  overflow: hidden; }
figure img { display: block; width: 100%; height: auto; background: #fff; }
figcaption { padding: .5rem .75rem; font-size: .9rem; }
footer { margin-top: 1.5rem; font-size: .85rem; opacity: .75; }
"""


def _page(measurements, figures, title, tables):
    escape = html.escape
    further = "\n".join(
        f"<h2>{escape(heading)}</h2>\n{_html_table(rows)}" for heading, rows in tables
    )
    images = "\n".join(
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,'
        f'{base64.b64encode(png).decode()}"><figcaption>{escape(caption)}</figcaption>'
        "</figure>"
        for png, caption in figures.values()
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body><main>
<h1>{escape(title)}</h1>
<p class="lead">{_lead(measurements)}</p>
{_html_table(table(measurements))}
<div class="plots">
{images}
</div>
{further}
<footer>"smaller" compares gzip bytes and "faster" latency with the first row. Latency
is the median on one thread of this machine ({escape(platform.machine())},
{escape(platform.system())}, Python {escape(platform.python_version())}).</footer>
</main></body>
</html>
"""


def _html_table(rows):
    header, *rows = ([html.escape(cell) for cell in row] for row in rows)
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"""<div class="scroll"><table>
<thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody></table></div>"""


def _lead(measurements):
    base, best = measurements[0], min(measurements, key=lambda m: m.gzip_bytes)
    text = (
        f"<b>{html.escape(best.name)}</b> is "
        f"<b>{base.gzip_bytes / best.gzip_bytes:.1f}x smaller</b> than "
        f"{html.escape(base.name)} after gzip"
    )
    if base.accuracy is not None and best.accuracy is not None:
        points = 100 * (best.accuracy - base.accuracy)
        text += f", accuracy {points:+.1f} points"
    return text + "."


def _write(path, content):
    with written_atomically(path) as temporary:
        temporary.write_bytes(content)
