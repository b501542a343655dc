"""What `compile_edgetpu` reads and where it writes, checked before it starts.

Example:
    ```python
    paths = input_paths(["model.tflite"])
    check_places(paths[0].parent, ["model_edgetpu.tflite"], paths)
    ```
"""

import os
import pathlib


def input_paths(paths):
    """Absolute paths of the models.

    Of a symbolic link, name and folder are those of the link.

    Args:
        paths: Iterable of paths.

    Returns:
        List of `pathlib.Path`.

    Raises:
        TypeError: If it is no iterable of paths.
        ValueError: If there is none, or results would have the same name.
    """
    try:
        # Not `resolve`, which follows links.
        paths = [pathlib.Path(os.path.abspath(path)) for path in paths]
    except TypeError as err:
        raise TypeError(
            "`path` must be the path of a .tflite file, or a list of such paths. "
            f"Received: path={paths!r}"
        ) from err
    if not paths:
        raise ValueError("`path` is an empty list. Pass at least one .tflite file.")
    stems = [path.stem for path in paths]
    double = sorted({stem for stem in stems if stems.count(stem) > 1})
    if double:
        raise ValueError(
            "Files that are compiled together must have different names, for so have "
            "the results, whatever the suffix. Received more than once: "
            f"{', '.join(double)}"
        )
    return paths


def check_places(out_dir, names, inputs):
    """Raises unless results can be written without the loss of anything else.

    Args:
        out_dir: Folder of the results; need not exist.
        names: Names of the compiled models.
        inputs: Absolute paths of the models.

    Raises:
        ValueError: If a result would take the place of an input.
        OSError: If a result's place, or `out_dir`, is of another kind.
    """
    if out_dir.exists() and not out_dir.is_dir():
        raise NotADirectoryError(
            f"`out_dir` must be a folder. Received: out_dir={os.fspath(out_dir)!r}, "
            "which is a file."
        )
    taken = {_replaced(path) for path in inputs}
    for place in places(out_dir, names):
        if _replaced(place) in taken:
            raise ValueError(
                f"The result {os.fspath(place)!r} would take the place of an input. "
                "Pass another out_dir, or rename the input."
            )
        if place.is_dir():
            raise IsADirectoryError(
                f"Cannot write {os.fspath(place)!r}: it is a folder. Remove it, or "
                "pass another out_dir."
            )


def places(folder, names):
    """Paths of the models in a folder, each with that of its log behind it."""
    for name in names:
        yield folder / name
        yield (folder / name).with_suffix(".log")


def _replaced(path):
    """What a new file at `path` would replace: a link itself, not what it leads to."""
    return os.path.join(os.path.realpath(path.parent), path.name)
