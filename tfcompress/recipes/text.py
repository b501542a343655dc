"""YAML as recipes read and write it: plain data only, and nothing is guessed.

Numbers and words are told apart as in YAML 1.2 and JSON: `1e-3` is a number, `yes` and
`on` are words. A key that is given twice, an anchor and a tag raise.

Example:
    ```python
    loads(dumps({"stages": ["fold"]}))   # {"stages": ["fold"]}
    ```
"""

import re

import yaml

_PATTERNS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?",
        "-+.0123456789",
    ),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.constructor.ConstructorError(
                None, None, "anchors and aliases are not read: write it out", mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if isinstance(name, (list, dict)) or name in seen:
                why = "a key is a word" if isinstance(name, (list, dict)) else "twice"
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {name!r}: {why}", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = {}

    def ignore_aliases(self, data):
        return True

    def increase_indent(self, flow=False, indentless=False):
        return super().increase_indent(flow, False)


for _tag, _pattern, _first in _PATTERNS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first)
        )
_Loader.add_constructor(
    "tag:yaml.org,2002:int", lambda loader, node: int(loader.construct_scalar(node))
)
_Loader.add_constructor(
    "tag:yaml.org,2002:float",
    lambda loader, node: float(loader.construct_scalar(node)),
)


def loads(text, *, source="the text"):
    """Plain data from YAML (of which JSON is a part).

    Args:
        text: String.
        source: Where it is from, for messages.

    Returns:
        Dicts, lists, strings, numbers, booleans and `None`.

    Raises:
        ValueError: If it is no such YAML; says the line.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as err:
        raise ValueError(f"Cannot read {source} as YAML: {_one_line(err)}") from err
    except RecursionError as err:
        raise ValueError(
            f"Cannot read {source} as YAML: lists or mappings are nested too deeply"
        ) from err


def dumps(data):
    """YAML that `loads` reads as the same data, keys in their order."""
    return yaml.dump(
        data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=88
    )


def _one_line(err):
    return " ".join(str(err).split())
