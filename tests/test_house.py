"""House rules that a tool can check; docs/decisions/0009-house.md and CONTRIBUTING.md state them."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "saccade"
MODULES = sorted(SOURCE.rglob("*.py"))

FUNCTION_LINES, FILE_LINES = 60, 400  # without docstrings
LONGER_FUNCTIONS = {"train/loop.py": 150}
"""The training loop is read as one piece."""

VAGUE = {
    "found", "one", "own", "place", "seen", "known", "shown", "kept", "whole", "wanted", "named", "said", "told"
}  # fmt: skip
"""Local names that say what happened to a value instead of what it holds."""
VAGUE_FUNCTIONS = 20
"""Functions that may still use them."""

AWKWARD_MESSAGES = 0
"""Messages of the form "X is no Y" that are left; lower this with every room that is cleaned."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, Function):
            yield node


def nodes_of(function: Function) -> Iterator[ast.AST]:
    """The nodes of a function without those of functions inside it."""
    stack: list[ast.AST] = [*function.body]
    while stack:
        node = stack.pop()
        yield node
        if not isinstance(node, Function):
            stack.extend(ast.iter_child_nodes(node))


def height(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def docstring_lines(node: ast.AST) -> int:
    """Lines of the docstring; numpydoc sections are no reason to split a function."""
    if isinstance(node, ast.Module | ast.ClassDef | Function) and ast.get_docstring(node, clean=False) is not None:
        return height(node.body[0])
    return 0


def own_lines(function: Function) -> int:
    """Lines of a function without its docstring and the functions inside it, such as the routes of a web router."""
    inner = (node for node in nodes_of(function) if isinstance(node, Function))
    return height(function) - docstring_lines(function) - sum(map(height, inner))


def local_names(function: Function) -> set[str]:
    return {node.id for node in nodes_of(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def room_of(module: str) -> str:
    return module.split(".")[1] if module.count(".") else module


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_functions_and_files_are_short(path):
    name = path.relative_to(SOURCE).as_posix()
    text = path.read_text(encoding="utf-8")
    lines = text.count("\n") - sum(map(docstring_lines, ast.walk(ast.parse(text))))
    assert lines <= FILE_LINES, f"{name} has {lines} lines"
    limit = LONGER_FUNCTIONS.get(name, FUNCTION_LINES)
    long = {f.name: own_lines(f) for f in functions(path) if own_lines(f) > limit}
    assert not long, f"{name}: {long}"


def test_local_names_say_what_they_hold():
    vague = defaultdict(list)
    for path in MODULES:
        for function in functions(path):
            if local_names(function) & VAGUE:
                vague[room_of(".".join(path.relative_to(SOURCE.parent).with_suffix("").parts))].append(
                    f"{path.relative_to(SOURCE)}:{function.lineno} {function.name}"
                )
    count = sum(map(len, vague.values()))
    rooms = ", ".join(f"{room} {len(names)}" for room, names in sorted(vague.items(), key=lambda x: -len(x[1])))
    assert count <= VAGUE_FUNCTIONS, f"{count} functions: {rooms}"


def test_no_module_is_a_drawer():
    assert not [path for path in MODULES if re.search(r"(^|_)(utils?|misc|helpers?|common)$", path.stem)]


def imports_of(path: Path) -> set[str]:
    """Modules of saccade that a module imports, also inside functions; those for type checking only are left out."""
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("saccade"):
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names if alias.name.startswith("saccade."))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return names


def test_rooms_import_each_other_in_one_direction():
    edges: dict[str, set[str]] = defaultdict(set)
    for path in MODULES:
        room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        for name in imports_of(path):
            target = room_of(name)
            if (target != room and (SOURCE / target).exists()) or (SOURCE / f"{target}.py").exists():
                edges[room].add(target)
        edges[room].discard(room)
    edges.pop("__init__", None)
    edges.pop("__main__", None)
    done: set[str] = set()

    def follow(room: str, trail: tuple[str, ...]) -> None:
        assert room not in trail, " -> ".join([*trail[trail.index(room) :], room])
        if room not in done:
            for target in edges.get(room, ()):
                follow(target, (*trail, room))
            done.add(room)

    for room in list(edges):
        follow(room, ())
    assert len(edges) > 15


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """String literals that are no docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | Function) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


def test_messages_are_plain_english():
    """``X is no Y`` is not English for ``X is not a Y``."""
    awkward = [
        f"{path.relative_to(SOURCE)}:{line} {text!r}"
        for path in MODULES
        for line, text in texts(path)
        if re.search(r"(?<!there )\b(is|are|was|were) no (?!longer|more|less|larger|smaller|higher|lower)", text)
    ]
    assert len(awkward) <= AWKWARD_MESSAGES, "\n".join(awkward)
