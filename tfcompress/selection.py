"""Choosing layers and weights by path, everywhere in the same way.

A pattern is a regular expression, searched for in the path, or a predicate that gets
the path. A pattern that matches nothing is a mistake and raises.

Example:
    ```python
    tfc.Pruning(0.9, rules=[tfc.Rule("classifier", sparsity=0.5)])
    ```
"""

import difflib
import re


class Rule:
    """Settings for the paths that match; in a list of rules the first match wins.

    Args:
        match: Regular expression (searched for, so `"conv"` matches `"conv2d/kernel"`)
            or a predicate of the path.
        **settings: What the technique lets you set, for example `sparsity=0.5`.

    Raises:
        ValueError: If the regular expression cannot be read, or no settings are given.
    """

    def __init__(self, match, **settings):
        _matcher(match)
        if not settings:
            raise ValueError(
                f"Rule({match!r}) sets nothing. Give it settings, for example "
                f"Rule({match!r}, sparsity=0.5)."
            )
        self.match = match
        self.settings = settings

    def __repr__(self):
        settings = "".join(f", {k}={v!r}" for k, v in self.settings.items())
        return f"Rule({self.match!r}{settings})"

    def get_config(self):
        """Returns match and settings; a predicate has no config and raises."""
        if not isinstance(self.match, str):
            raise ValueError(f"A rule with a predicate cannot be saved: {self!r}")
        return {"match": self.match, **self.settings}

    @classmethod
    def from_config(cls, config):
        """Rebuilds the rule from `get_config()`."""
        return cls(**config)


def select(paths, *, include=None, exclude=None, rules=(), argument="include"):
    """Picks paths and finds the settings of each.

    Args:
        paths: The paths there are, in order.
        include: A pattern or several; only paths that match one stay. `None` keeps all.
        exclude: A pattern or several; paths that match one go.
        rules: Sequence of `Rule`; first match wins.
        argument: What the user calls `include`, for messages.

    Returns:
        Dict from each chosen path to its rule's settings (`{}` where none matches).

    Raises:
        ValueError: If a pattern or rule matches none of `paths`; names the paths.
        TypeError: If `rules` is no sequence of rules.
    """
    check_rules(rules)
    paths = list(paths)
    matches = {}
    for name, patterns in (("include", include), ("exclude", exclude)):
        matches[name] = set()
        for pattern in _as_list(patterns):
            found = set(filter(_matcher(pattern), paths))
            said = argument if name == "include" else name
            _check_found(found, said, pattern, paths)
            matches[name] |= found
    for rule in rules:
        _check_found(any(map(_matcher(rule.match), paths)), "rules", rule, paths)
    chosen = {}
    for path in paths:
        if include is not None and path not in matches["include"]:
            continue
        if path not in matches["exclude"]:
            chosen[path] = settings_of(path, rules)
    return chosen


def check_rules(rules):
    """Raises `TypeError` unless it is a sequence of `Rule`."""
    listed = isinstance(rules, (list, tuple))
    if not listed or not all(isinstance(rule, Rule) for rule in rules):
        raise TypeError(
            "`rules` must be a list of tfc.Rule, for example "
            f"rules=[tfc.Rule('stem', ...)]. Received: rules={rules!r}"
        )


def select_one(paths, pattern, *, argument):
    """The one path that a pattern names.

    Args:
        paths: The paths there are.
        pattern: One of `paths`, which then is meant even where it is found in others;
            or a regular expression or predicate.
        argument: Name of the pattern in messages.

    Raises:
        ValueError: If it does not match exactly one; names the near misses.
    """
    paths = list(paths)
    if isinstance(pattern, str) and pattern in paths:
        return pattern
    found = list(filter(_matcher(pattern), paths))
    _check_found(found, argument, pattern, paths)
    if len(found) > 1:
        shown = ", ".join(found[:10]) + (", ..." if len(found) > 10 else "")
        raise ValueError(
            f"`{argument}`: {pattern!r} must match exactly one path. It matches "
            f"{len(found)}: {shown}. Give the whole path of one."
        )
    return found[0]


def settings_of(path, rules):
    """The settings of the first rule that matches a path; `{}` if none does."""
    first = next((r for r in rules if matches(r.match, path)), None)
    return first.settings if first else {}


def matches(pattern, path):
    """Whether a regular expression or predicate matches a path."""
    return bool(_matcher(pattern)(path))


def _as_list(patterns):
    if patterns is None:
        return []
    if isinstance(patterns, str) or callable(patterns):
        return [patterns]
    return list(patterns)


def _matcher(pattern):
    if callable(pattern):
        return pattern
    if not isinstance(pattern, str):
        raise TypeError(
            "A pattern must be a regular expression or a predicate of the path. "
            f"Received: {pattern!r} (of type {type(pattern).__name__})"
        )
    try:
        return re.compile(pattern).search
    except re.error as err:
        raise ValueError(f"Not a regular expression: {pattern!r} ({err})") from err


def _check_found(found, argument, pattern, paths):
    if found:
        return
    text = pattern.match if isinstance(pattern, Rule) else pattern
    near = (
        difflib.get_close_matches(text, paths, n=1, cutoff=0.5)
        if (isinstance(text, str))
        else []
    )
    hint = f" Did you mean {near[0]!r}?" if near else ""
    shown = "\n  ".join(paths) or "(none)"
    raise ValueError(
        f"`{argument}`: {pattern!r} matches nothing.{hint} The paths there are:\n"
        f"  {shown}"
    )
