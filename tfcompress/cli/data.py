"""What commands read and print."""

import os

import numpy as np
from rich.table import Table

from tfcompress.deploy.files import check_writable


def printed_table(header, rows):
    """A table for `rich`: rows of text under a header, without lines."""
    table = Table(*header, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*row)
    return table


def load_labelled(path):
    """The arrays `x` and `y` of an .npz file.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it cannot be read, or lacks one.
    """
    arrays = load_arrays(path)
    if "y" not in arrays:
        raise ValueError(f"{path!r} needs an array `y` too. Received: {sorted(arrays)}")
    return arrays["x"], arrays["y"]


def load_arrays(path):
    """Dict of the arrays of an .npz file, `x` among them; raises as `load_labelled`."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"No such data file: {path!r}")
    try:
        with np.load(path) as file:
            arrays = dict(file)
    except Exception as err:
        raise ValueError(f"Cannot read {path!r} as .npz: {err}") from err
    if "x" not in arrays:
        raise ValueError(f"{path!r} needs an array `x`. Received: {sorted(arrays)}")
    return arrays


def check_output(path):
    """Raises unless a .keras file can be written there."""
    if not path.endswith(".keras"):
        raise ValueError(f"The output must be a .keras file: {path!r}")
    check_writable(path)
