"""Rules of the code that the linters do not know, each shown able to fail."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Rule = Callable[[ast.Module], Iterator[str]]
Function = (ast.FunctionDef, ast.AsyncFunctionDef)
BROAD = {"Exception", "BaseException"}
MACHINE_PATH = re.compile(r"(?<![\w.~<>$}])/(?:home|root|Users|work|mnt|scratch)/\w")


def undocumented(tree: ast.Module) -> Iterator[str]:
    """Modules, public classes, public functions and public methods without a docstring; a property may be its name."""
    if ast.get_docstring(tree) is None:
        yield "1: the module has no docstring"
    owners: list[ast.Module | ast.ClassDef] = [tree]
    while owners:
        for node in owners.pop().body:
            if not isinstance(node, (*Function, ast.ClassDef)) or node.name.startswith("_"):
                continue
            decorators = {ast.unparse(decorator).split("(")[0].split(".")[-1] for decorator in node.decorator_list}
            if ast.get_docstring(node) is None and not decorators & {
                "property",
                "cached_property",
                "overload",
                "override",
                "setter",
            }:
                yield f"{node.lineno}: {node.name} has no docstring"
            if isinstance(node, ast.ClassDef):
                owners.append(node)


def prints(tree: ast.Module) -> Iterator[str]:
    """Calls of print: results go through the command line's console."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield f"{node.lineno}: print"


def asserts(tree: ast.Module) -> Iterator[str]:
    """Assert statements: they vanish under -O and say nothing to a user."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            yield f"{node.lineno}: assert"


def swallowed(tree: ast.Module) -> Iterator[str]:
    """Broad handlers that do not end in a bare raise, and handlers that only pass."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            last = node.body[-1]
            broad = node.type is None or BROAD & names(node.type)
            if broad and not (isinstance(last, ast.Raise) and last.exc is None):
                yield f"{node.lineno}: broad except"
            if isinstance(last, ast.Pass) or (isinstance(last, ast.Expr) and isinstance(last.value, ast.Constant)):
                yield f"{node.lineno}: except that only passes"
        elif isinstance(node, ast.Call) and "suppress" in names(node.func) and any(BROAD & names(arg) for arg in node.args):
            yield f"{node.lineno}: broad suppress"


def unsafe_loads(tree: ast.Module) -> Iterator[str]:
    """Calls that could run code hidden in a checkpoint."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        safe = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}.get("weights_only")
        if safe not in (None, "True"):
            yield f"{node.lineno}: weights_only={safe}"
        if ast.unparse(node.func) == "torch.load" and safe is None:
            yield f"{node.lineno}: torch.load without weights_only=True"
        if ast.unparse(node.func) in ("pickle.load", "pickle.loads", "eval", "exec"):
            yield f"{node.lineno}: {ast.unparse(node.func)}"


def unsorted_all(tree: ast.Module) -> Iterator[str]:
    """A public list that is out of order: constants, then classes, then the rest, as ruff sorts it."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and "__all__" in {name for target in node.targets for name in names(target)}:
            public = ast.literal_eval(node.value)
            if list(public) != sorted(public, key=lambda name: (not name.isupper(), not name[:1].isupper(), name)):
                yield f"{node.lineno}: __all__ is not sorted"


def shapeless(tree: ast.Module) -> Iterator[str]:
    """Public functions that take or return a tensor and name no shape, such as (B, N, C); dictionaries of weights aside."""
    for node in ast.walk(tree):
        if not isinstance(node, Function) or node.name.startswith("_"):
            continue
        annotations = [argument.annotation for argument in (*node.args.args, *node.args.kwonlyargs)] + [node.returns]
        texts = [ast.unparse(annotation) for annotation in annotations if annotation is not None]
        tensors = [text for text in texts if re.search(r"\bTensor\b", text) and not re.search(r"dict|Mapping", text)]
        if tensors and not re.search(r"\([^()]*,[^()]*\)", ast.get_docstring(node) or ""):
            yield f"{node.lineno}: {node.name} names no shape"


def names(node: ast.AST) -> set[str]:
    """Last part of every name in an expression."""
    return {
        inner.id if isinstance(inner, ast.Name) else inner.attr
        for inner in ast.walk(node)
        if isinstance(inner, ast.Name | ast.Attribute)
    }


RULES: dict[Rule, tuple[str, ...]] = {
    undocumented: (
        "x = 1",
        '"""M."""\ndef f(): ...',
        '"""M."""\nclass C: ...',
        '"""M."""\nclass C:\n    """C."""\n    def f(self): ...',
    ),
    prints: ("print(1)",),
    asserts: ("assert x",),
    swallowed: (
        "try: f()\nexcept: g()",
        "try: f()\nexcept Exception: g()",
        "try: f()\nexcept (ValueError, BaseException) as e: raise E from e",
        "try: f()\nexcept KeyError: pass",
        "with contextlib.suppress(Exception): f()",
    ),
    unsafe_loads: ("torch.load(f, weights_only=False)", "torch.load(f)", "pickle.load(f)", "eval(x)"),
    unsorted_all: ('__all__ = ["b", "a"]', '__all__ = ["a", "B"]'),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_packages_keep_the_rule(rule: Rule, package_files: list[Path], root: Path) -> None:
    """No file of the packages breaks it."""
    broken = [
        f"{path.relative_to(root)}:{found}" for path in package_files for found in rule(ast.parse(path.read_text("utf-8")))
    ]

    assert [] == broken


def test_reference_model_names_every_shape(package_files: list[Path], root: Path) -> None:
    """Who reads the model alone never has to guess what a tensor holds."""
    files = [path for path in package_files if path.is_relative_to(root / "reference_model")]
    broken = [f"{path.name}:{found}" for path in files for found in shapeless(ast.parse(path.read_text("utf-8")))]

    assert broken == []


@pytest.mark.parametrize("code", ["def f(x: Tensor) -> None:\n    'Do.'", "def f() -> tuple[Tensor, int]:\n    'Do (it).'"])
def test_missing_shapes_are_found(code: str) -> None:
    """The test above can fail."""
    assert len(list(shapeless(ast.parse(code)))) == 1


@pytest.mark.parametrize(("rule", "code"), [(rule, code) for rule, codes in RULES.items() for code in codes])
def test_rule_can_fail(rule: Rule, code: str) -> None:
    """Each rule finds the smallest piece of code that breaks it."""
    assert len(list(rule(ast.parse(code)))) == 1


def test_cleaning_up_before_raising_again_is_allowed() -> None:
    """A broad handler that ends in a bare raise swallows nothing."""
    assert [] == list(swallowed(ast.parse("try: f()\nexcept BaseException:\n    g()\n    raise")))


def test_files_stay_small(package_files: list[Path], root: Path) -> None:
    """Nobody has to scroll through more than 400 lines."""
    long = {
        str(path.relative_to(root)): lines
        for path in package_files
        if (lines := len(path.read_text("utf-8").splitlines())) > 400
    }

    assert {} == long


def test_no_file_is_named_for_nothing(package_files: list[Path], root: Path) -> None:
    """A function that has no room shows a missing room."""
    nameless = {"common", "helper", "helpers", "misc", "util", "utils"}

    assert [] == [str(path.relative_to(root)) for path in package_files if nameless & {path.stem, path.parent.name}]


def test_no_file_names_a_machine(text_files: list[Path], root: Path) -> None:
    """Nothing depends on, or tells of, the folders of one computer."""
    found = [
        f"{path.relative_to(root)}:{number}: {line.strip()}"
        for path in text_files
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]

    assert [] == found


@pytest.mark.parametrize("folder", ["home", "root", "Users", "work"])
def test_machine_paths_are_recognized(folder: str) -> None:
    """The pattern above can fail."""
    assert MACHINE_PATH.search(f"open('/{folder}/me/file')")
