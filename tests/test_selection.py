"""Choosing paths by patterns and rules."""

import pytest

from tfcompress.selection import Rule, select

PATHS = ["stem/kernel", "block_1/conv/kernel", "block_2/conv/kernel", "head/kernel"]


def test_without_patterns_every_path_is_chosen_in_order():
    assert list(select(PATHS)) == PATHS
    assert set(map(tuple, select(PATHS).values())) == {()}


@pytest.mark.parametrize(
    "include, exclude, chosen",
    [
        ("conv", None, [1, 2]),
        (["stem", "head"], None, [0, 3]),
        (("block_[12]",), None, [1, 2]),
        (None, "^block", [0, 3]),
        (None, ["stem", "head"], [1, 2]),
        ("block", "_2/", [1]),
        (lambda path: path.count("/") == 1, None, [0, 3]),
        (None, lambda path: path.endswith("kernel"), []),
        (["stem", lambda path: "_2" in path], None, [0, 2]),
        (".*", None, [0, 1, 2, 3]),
    ],
)
def test_include_keeps_and_exclude_drops(include, exclude, chosen):
    found = select(PATHS, include=include, exclude=exclude)
    assert list(found) == [PATHS[i] for i in chosen]


def test_of_several_rules_the_first_match_wins():
    rules = [
        Rule("block_1", sparsity=0.1),
        Rule("block", sparsity=0.2),
        Rule(lambda path: path.startswith("head"), sparsity=0.3),
    ]
    assert select(PATHS, rules=rules) == {
        "stem/kernel": {},
        "block_1/conv/kernel": {"sparsity": 0.1},
        "block_2/conv/kernel": {"sparsity": 0.2},
        "head/kernel": {"sparsity": 0.3},
    }


def test_rules_do_not_bring_back_what_was_excluded():
    found = select(PATHS, exclude="head", rules=[Rule(".*", sparsity=0.5)])
    assert "head/kernel" not in found


@pytest.mark.parametrize("argument", ["include", "exclude", "rules"])
def test_a_pattern_that_matches_nothing_lists_the_paths_and_a_near_miss(argument):
    pattern = "block1/conv/kernel"
    value = [Rule(pattern, sparsity=0.5)] if argument == "rules" else pattern
    with pytest.raises(ValueError, match="matches nothing") as caught:
        select(PATHS, **{argument: value})
    message = str(caught.value)
    assert message.startswith(f"`{argument}`")
    assert "Did you mean 'block_1/conv/kernel'?" in message
    assert all(f"\n  {path}" in message for path in PATHS)


def test_one_pattern_of_several_that_matches_nothing_raises():
    with pytest.raises(ValueError, match="'dense' matches nothing"):
        select(PATHS, include=["conv", "dense"])


def test_a_predicate_that_matches_nothing_raises():
    with pytest.raises(ValueError, match="matches nothing"):
        select(PATHS, exclude=lambda path: False)


def test_a_pattern_unlike_every_path_gets_no_suggestion():
    with pytest.raises(ValueError) as caught:
        select(PATHS, include="zzzzzz")
    assert "Did you mean" not in str(caught.value)


def test_no_paths_at_all_are_shown_as_none():
    with pytest.raises(ValueError, match=r"\(none\)"):
        select([], include="conv")


def test_a_bad_regular_expression_is_quoted():
    with pytest.raises(ValueError, match=r"Not a regular expression: 'conv\("):
        select(PATHS, include="conv(")
    with pytest.raises(ValueError, match="Not a regular expression"):
        Rule("[", sparsity=0.5)


@pytest.mark.parametrize("pattern", [3, 0.5, None, b"conv"])
def test_a_pattern_of_another_type_is_refused(pattern):
    with pytest.raises(TypeError, match="regular expression or a predicate") as caught:
        Rule(pattern, sparsity=0.5)
    assert f"Received: {pattern!r}" in str(caught.value)


def test_a_pattern_of_another_type_among_several_is_refused():
    with pytest.raises(TypeError, match="of type int"):
        select(PATHS, include=["conv", 3])


def test_a_rule_must_set_something():
    with pytest.raises(ValueError, match="sets nothing"):
        Rule("conv")


def test_rule_config_round_trip():
    rule = Rule("conv", sparsity=0.5, bits=4)
    back = Rule.from_config(rule.get_config())
    assert (back.match, back.settings) == (rule.match, rule.settings)
    assert repr(rule) == "Rule('conv', sparsity=0.5, bits=4)"


def test_a_rule_with_a_predicate_has_no_config():
    with pytest.raises(ValueError, match="cannot be saved"):
        Rule(lambda path: True, sparsity=0.5).get_config()
