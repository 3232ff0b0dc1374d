"""What the tests ask of source files: what they import, which statements they run, how long they are."""

import ast
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef


def modules(package: Path) -> dict[str, Path]:
    """Return the files of a package by the name of their module; that of ``__init__.py`` is its folder's."""
    files = {path.relative_to(package.parent).with_suffix(""): path for path in sorted(package.rglob("*.py"))}
    return {".".join(name.parts).removesuffix(".__init__"): path for name, path in files.items()}


def import_graph(package: Path) -> dict[str, set[str]]:
    """Return the modules of a package that each of its modules imports.

    Imports in functions count: they are dependencies that run later. Those under ``if TYPE_CHECKING`` never run.
    """
    known = modules(package)
    return {name: set(_imports(name, path, known)) & known.keys() - {name} for name, path in known.items()}


def _imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    folder = name if path.stem == "__init__" else name.rpartition(".")[0]
    for node in _running(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), folder)
            for alias in node.names:
                module = f"{source}.{alias.name}"
                yield module if module in known else source


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")):
            yield node
            yield from _running(node)


def hidden_modules(package: Path) -> list[str]:
    """Return the names that an ``__init__.py`` binds although a module beside it has the same name."""
    known = modules(package)
    found = []
    for folder, path in known.items():
        if path.name == "__init__.py":
            names = {name for statement in ast.parse(path.read_text()).body for name in _bound(statement, folder)}
            found += [f"{folder}.{name}" for name in sorted(names) if f"{folder}.{name}" in known]
    return found


def _bound(statement: ast.stmt, folder: str) -> Iterator[str]:
    """Yield the names that a statement binds to something else than the module of that name."""
    if isinstance(statement, ast.ImportFrom):
        source = resolve_name("." * statement.level + (statement.module or ""), folder)
        yield from (alias.asname or alias.name for alias in statement.names if source != folder)
    elif isinstance(statement, Function | ast.ClassDef):
        yield statement.name
    else:
        names = (node for node in ast.walk(statement) if isinstance(node, ast.Name))
        yield from (node.id for node in names if isinstance(node.ctx, ast.Store))


def acting_statements(source: str) -> list[str]:
    """Return the statements of a module's top level that do anything but define, import or register names."""
    return [ast.unparse(statement) for statement in ast.parse(source).body if not _defines(statement)]


def _defines(statement: ast.stmt) -> bool:
    match statement:
        case ast.Import() | ast.ImportFrom() | ast.FunctionDef() | ast.ClassDef():
            return True
        case ast.Assign() | ast.AnnAssign() | ast.AugAssign():
            return True
        case ast.Expr(value=ast.Constant()):
            return True  # a docstring
        case ast.Expr(value=ast.Call(func=function)):
            return ast.unparse(function).rpartition(".")[2].lstrip("_").startswith("register")
        case ast.For(body=body, orelse=[]):
            return all(map(_defines, body))
        case ast.If(test=test, orelse=[]):
            return ast.unparse(test) in ("TYPE_CHECKING", "__name__ == '__main__'")
    return False


def lengths(path: Path) -> tuple[int, dict[str, int]]:
    """Return the number of lines of a file, and of each function without its docstring."""
    source = path.read_text()
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, Function)]
    return len(source.splitlines()), {f"{path}:{f.lineno} {f.name}": _lines(f) for f in functions}


def _lines(function: Function) -> int:
    first = function.body[0]
    documented = ast.get_docstring(function) is not None
    docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring
