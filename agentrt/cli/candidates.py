"""What the user may have meant: agents in a module, modules and files in a folder, names that are nearly the same."""

from __future__ import annotations

import inspect
import os
from types import ModuleType
from typing import Any

from agentrt.hosting import CONTEXT_NAMES

__all__ = [
    "agent_names",
    "file_named",
    "files_and_modules",
    "files_in",
    "modules_in",
    "names_in",
    "names_in_file",
    "similar_to",
]

SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules", "venv", "env", "site-packages"})


def agent_names(module: ModuleType) -> list[str]:
    """The names in `module` that look like agents made there, in the order of their definition."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and _is_made_in(module, value) and _looks_like_agent(value)
    ]


def _is_made_in(module: ModuleType, value: Any) -> bool:
    if inspect.isclass(value) or inspect.isroutine(value):
        return getattr(value, "__module__", None) == module.__name__
    return True


def _looks_like_agent(value: Any) -> bool:
    if inspect.iscoroutinefunction(value) or inspect.isasyncgenfunction(value):
        # A middleware is an async function, too, of two arguments.
        return len(set(inspect.signature(value).parameters) - set(CONTEXT_NAMES)) == 1
    run = inspect.getattr_static(value, "run", None)
    return inspect.iscoroutinefunction(run) or inspect.isasyncgenfunction(run)


def names_in_file(path: str) -> list[str]:
    """The classes and functions in a file that look like agents, read without importing it."""
    import ast

    try:
        with open(path, "rb") as file:
            tree = ast.parse(file.read())
    except (OSError, SyntaxError, ValueError):
        return []
    classes, functions = [], []
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            has_run = any(isinstance(item, ast.AsyncFunctionDef) and item.name == "run" for item in node.body)
            if has_run or any("Agent" in ast.unparse(base) for base in node.bases):
                classes.append(node.name)
        elif isinstance(node, ast.AsyncFunctionDef) and not node.decorator_list and node.name[:1] != "_":
            parameters = [argument.arg for argument in [*node.args.posonlyargs, *node.args.args]]
            if len(set(parameters) - set(CONTEXT_NAMES)) == 1:
                functions.append(node.name)
    return classes + functions  # a function may just as well be meant for something else


def similar_to(name: str, names: list[str]) -> str | None:
    """The one of `names` that was probably meant, whatever its case."""
    import difflib

    by_lower = {known.lower(): known for known in reversed(names)}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.7)
    return by_lower[found[0]] if found else None


def modules_in(folder: str) -> list[str]:
    """The modules and packages that stand in a folder."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return []
    modules = []
    for entry in entries:
        name = entry.name.removesuffix(".py")
        if not name.isidentifier() or name.startswith("_") or name in SKIPPED_FOLDERS:
            continue
        if entry.name.endswith(".py") or (entry.is_dir() and _has_python(entry.path)):
            modules.append(name)
    return modules


def _has_python(folder: str) -> bool:
    return bool(files_in(folder))


def files_in(folder: str) -> list[str]:
    """The Python files in a folder."""
    try:
        return sorted(name for name in os.listdir(folder) if name.endswith(".py"))
    except OSError:
        return []


def file_named(name: str, app_dir: str) -> str | None:
    """A file of this name in a folder below, as a path that can be given."""
    wanted = name.rpartition(".")[2] + ".py"
    for folder in modules_in(app_dir):
        path = os.path.join(app_dir, folder, wanted)
        if os.path.isfile(path):
            return os.path.normpath(path)
    return None


# --- for the completion of targets ---------------------------------------------------------------------


def files_and_modules(app_dir: str, begun: str) -> list[str]:
    """What a target may begin with: Python files and folders as paths, each with what follows, and modules."""
    folder = os.path.dirname(begun)
    found = [os.path.join(folder, name) + ":" for name in files_in(folder or ".")]
    try:
        entries = sorted(os.listdir(folder or "."))
    except OSError:
        entries = []
    found += [
        os.path.join(folder, name) + os.sep
        for name in entries
        if not name.startswith(".")
        and name not in SKIPPED_FOLDERS
        and os.path.isdir(os.path.join(folder, name))
    ]
    if not folder:
        parent, dot, _ = begun.rpartition(".")
        inside = os.path.join(app_dir, *parent.split(".")) if dot else app_dir
        found += [f"{parent}{dot}{name}:" for name in modules_in(inside)]
    return found


def names_in(place: str, app_dir: str) -> list[str]:
    """The agents in a file or module, read without importing it."""
    if not place.endswith(".py"):
        place = os.path.join(app_dir, *place.split("."))
        place = os.path.join(place, "__init__.py") if os.path.isdir(place) else place + ".py"
    return names_in_file(place)
