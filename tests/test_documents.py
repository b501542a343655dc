"""Code and links in the README and in docs name what there is."""

import ast
import inspect
import pathlib
import re

import pytest

import tfcompress as tfc

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/guide.md", "docs/results.md")
# Names that the pages give to parts of the package.
ALIASES = {"tfc": tfc, "d": tfc.distillation}


def blocks():
    for page in PAGES:
        text = (ROOT / page).read_text()
        for match in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.M):
            line = text.count("\n", 0, match.start()) + 1
            yield pytest.param(match.group(1), id=f"{page}:{line}")


def resolve(node):
    """What an expression like `tfc.schedules.Cosine` is; `None` if not of ours."""
    if isinstance(node, ast.Name):
        return ALIASES.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = resolve(node.value)
        return None if owner is None else getattr(owner, node.attr)
    return None


def bind(call, function):
    """Raises unless `function` takes the arguments of a call."""
    unknown = [a for a in call.args if isinstance(a, ast.Starred)]
    assert not unknown, "a page shows plain arguments"
    keywords = {k.arg: None for k in call.keywords}
    inspect.signature(function).bind(*([None] * len(call.args)), **keywords)


@pytest.mark.parametrize("code", list(blocks()))
def test_code_on_the_pages_names_and_calls_what_there_is(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute):
            resolve(node)
        if isinstance(node, ast.Call):
            function = resolve(node.func)
            if function is not None:
                bind(node, function)


@pytest.mark.parametrize(
    "code",
    ["tfc.prune(model)", "tfc.Pruning(sparsty=0.5)", "tfc.Rule()", "d.Hints('a', 'b')"],
)
def test_what_there_is_not_is_found(code):
    with pytest.raises((AttributeError, TypeError)):
        test_code_on_the_pages_names_and_calls_what_there_is(code)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    path = ROOT / page
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        other = path if not name else path.parent / name
        assert other.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", other.read_text(), re.M)
            anchors = [
                re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings
            ]
            assert anchor in anchors, target


def test_benchmarks_and_notebooks_that_are_named_exist():
    for page in PAGES:
        text = (ROOT / page).read_text()
        for name in re.findall(r"(?:benchmarks|colab|examples|tests)/\w+\.\w+", text):
            assert (ROOT / name).exists(), f"{page} names {name}"
