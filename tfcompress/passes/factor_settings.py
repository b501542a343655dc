"""What a user may ask `tfc.factorize` for, checked where it enters.

Example:
    ```python
    defaults(None, None, "vbmf", "auto")   # {"rank": "vbmf", "method": "auto"}
    ```
"""

from tfcompress.passes.factor_methods import METHODS

_SETTINGS = ("energy", "rank", "method")


def defaults(energy, parameters, rank, method):
    """The settings of layers that no rule has any for.

    Args:
        energy: As given to `factorize`.
        parameters: As given.
        rank: As given.
        method: As given.

    Returns:
        Dict with `method`, and `energy` or `rank` unless there is a budget.

    Raises:
        ValueError: If a value is out of range, or several are given.
    """
    given = {"energy": energy, "parameters": parameters, "rank": rank}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) > 1:
        raise ValueError(
            "Give one of `energy`, `parameters` and `rank`. Received: "
            f"{', '.join(f'{k}={v!r}' for k, v in given.items())}"
        )
    if not given:
        given = {"energy": 0.95}
    _check_settings({**given, "method": method})
    given.pop("parameters", None)
    return {**given, "method": method}


def check_rule(layer, own):
    """Raises unless a rule sets what there is to set, within its range.

    Args:
        layer: The layer that it matches.
        own: Its settings.

    Raises:
        ValueError: If it does not.
    """
    unknown = sorted(set(own) - set(_SETTINGS))
    if unknown:
        raise ValueError(
            f"A rule of `tfc.factorize` sets {', '.join(_SETTINGS)}. Received: "
            f"{', '.join(unknown)} for layer {layer.name!r}"
        )
    if "rank" in own and "energy" in own:
        raise ValueError(
            f"A rule gives a rank or an energy, not both. Received: {own} for layer "
            f"{layer.name!r}"
        )
    _check_settings(own)


def _check_settings(settings):
    for name in ("energy", "parameters"):
        value = settings.get(name, 0.5)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        top = name == "energy" and value == 1
        if not number or not (0 < value < 1 or top):
            limit = "(0, 1]" if name == "energy" else "(0, 1)"
            raise ValueError(
                f"`{name}` must be a number in {limit}. Received: {name}={value!r}"
            )
    method = settings.get("method", "auto")
    if method != "auto" and method not in METHODS:
        raise ValueError(
            f"`method` must be 'auto' or one of {', '.join(map(repr, METHODS))}. "
            f"Received: method={method!r}"
        )
    if "rank" in settings:
        _check_rank(settings["rank"])


def _check_rank(rank):
    pair = rank if isinstance(rank, (tuple, list)) else [rank]
    fits = rank == "vbmf" or len(pair) in (1, 2) and all(map(_is_rank, pair))
    if not fits:
        raise ValueError(
            "`rank` must be a whole number from 1, a share in (0, 1), a pair of such "
            f"for Tucker, or 'vbmf'. Received: rank={rank!r}"
        )


def _is_rank(value):
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return 0 < value < 1 if isinstance(value, float) else value >= 1
