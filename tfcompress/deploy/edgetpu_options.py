"""The options of `edgetpu_compiler` 16, checked before it starts.

Example:
    ```python
    compiler_options([read_tflite("model.tflite")], num_segments=2)
    ```
"""

import difflib
import math
import numbers

from tfcompress.deploy.programs import check_timeout

DEFAULT_TIMEOUT_SEC = 180
# A search took 17 tries in the longest log at hand, most of them of a second.
_TRIES_OF_SEARCH = 10
# For the compiler to start, and to say itself that its time is over.
_GRACE_SEC = 5


def total_limit(
    timeout_sec, total_timeout_sec=None, *, num_segments=None, search_delegate=False
):
    """Seconds after which the compiler is killed whatever it is at.

    Args:
        timeout_sec: As for `compile_edgetpu`, like all that follow.
        total_timeout_sec: The number itself; `None` follows from the others.
        num_segments: Each has the time of `timeout_sec`.
        search_delegate: A search has ten times that.

    Returns:
        Number of seconds.

    Raises:
        TypeError: If one is no number.
        ValueError: If one is not positive.
    """
    check_timeout(timeout_sec)
    if total_timeout_sec is not None:
        check_timeout(total_timeout_sec, "total_timeout_sec")
        return total_timeout_sec
    tries = (num_segments or 1) * (_TRIES_OF_SEARCH if search_delegate else 1)
    return timeout_sec * tries + _GRACE_SEC


def compiler_options(
    models,
    *,
    min_runtime_version=None,
    num_segments=None,
    intermediate_tensors=None,
    search_delegate=False,
    delegate_search_step=None,
    multiple_subgraphs=False,
    timeout_sec=DEFAULT_TIMEOUT_SEC,
):
    """The command-line options for what `compile_edgetpu` was asked.

    Args:
        models: `TFLiteFile`s of the models.
        min_runtime_version: As for `compile_edgetpu`, like all that follow.
        num_segments: At least 2.
        intermediate_tensors: A name or a list of names.
        search_delegate: Whether to search.
        delegate_search_step: At least 1.
        multiple_subgraphs: Whether to allow them.
        timeout_sec: Seconds, for each try.

    Returns:
        List of strings. The table of operations (`-s`) is always asked for.

    Raises:
        TypeError: If `timeout_sec` is no number.
        ValueError: If an option is out of place.
    """
    check_timeout(timeout_sec)
    options = ["-s"]
    if min_runtime_version is not None:
        _check_whole("min_runtime_version", min_runtime_version, 1)
        options += ["-m", str(min_runtime_version)]
    if num_segments is not None:
        _check_whole("num_segments", num_segments, 2)
        if len(models) > 1:
            raise ValueError(
                "`num_segments` cuts one model. Received: "
                f"num_segments={num_segments} and {len(models)} models. Compile them "
                "one by one."
            )
        options += ["-n", str(num_segments)]
    if intermediate_tensors is not None:
        if search_delegate:
            raise ValueError(
                "`search_delegate` chooses the intermediate tensors by itself. Pass "
                "`intermediate_tensors` or `search_delegate`, not both."
            )
        options += ["-i", _tensor_names(intermediate_tensors, models)]
    if search_delegate:
        options += ["-d"]
    if delegate_search_step is not None:
        _check_whole("delegate_search_step", delegate_search_step, 1)
        if not search_delegate:
            raise ValueError(
                "`delegate_search_step` is the step of a search. Pass "
                "search_delegate=True too."
            )
        options += ["--delegate_search_step", str(delegate_search_step)]
    if multiple_subgraphs:
        options += ["-a"]
    if timeout_sec != DEFAULT_TIMEOUT_SEC:
        # Only from version 16 on: older compilers refuse options they do not know.
        options += ["--timeout_sec", str(math.ceil(timeout_sec))]
    return options


def _check_whole(name, value, least):
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or value < least:
        raise ValueError(
            f"`{name}` must be a whole number, {least} or more. Received: "
            f"{name}={value!r}"
        )


def _tensor_names(names, models):
    names = [names] if isinstance(names, str) else list(names)
    computed = {
        tensor.name
        for file in models
        for op in file.operations
        for tensor in op.outputs
    }
    for name in names:
        if name not in computed:
            close = difflib.get_close_matches(name, sorted(computed), n=3, cutoff=0.3)
            known = "The nearest names are" if close else "Some names are"
            raise ValueError(
                f"`intermediate_tensors`: no operation computes {name!r}. {known}: "
                f"{', '.join(close or sorted(computed)[:3])}."
            )
        if "," in name:
            raise ValueError(
                f"The compiler separates names by commas, and {name!r} has one in it. "
                "Give the layer another name and export again."
            )
    if not names:
        raise ValueError("`intermediate_tensors` is empty. Leave it out, or name some.")
    return ",".join(names)
