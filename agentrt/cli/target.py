"""Finds what the user means by TARGET: `package.module:attribute` or `path/file.py:attribute`."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from traceback import walk_tb
from types import ModuleType
from typing import Any

from msgspec import Struct

from agentrt.cli.candidates import agent_names, file_named, files_in, modules_in, names_in, similar_to
from agentrt.cli.report import TargetError, UserCodeError, is_hidden
from agentrt.errors import AgentrtError, ConfigError

__all__ = ["Target", "load_target"]

LISTED = 10
"""More names than this in a message help nobody."""

EXAMPLES = "my_module:MyAgent or path/to/file.py:MyAgent"


class Target(Struct, frozen=True, eq=False):
    """A target that was found: the text that the user gave, the module, and what the attribute is."""

    text: str
    module: ModuleType
    value: Any


def load_target(text: str, *, app_dir: str = ".") -> Target:
    """Import the module of `text` and take the attribute from it.

    `app_dir` is put first on `sys.path`; for a file, the folder of its outermost package comes before it, as when
    Python runs a file. Raises ConfigError if `text` is no target, TargetError if there is no such module or attribute,
    UserCodeError if the module itself fails.
    """
    place, colon, attribute = text.rpartition(":")
    if not colon or not place or not attribute:
        raise ConfigError(_not_a_target(text, app_dir))
    if not os.path.isdir(app_dir):
        raise ConfigError(f"--app-dir {app_dir}: there is no such folder")
    _put_first(os.path.abspath(app_dir))
    is_file = place.endswith(".py") or os.sep in place or (os.path.isfile(place) and "." in place)
    module = _import_file(place) if is_file else _import_module(place, app_dir)
    return Target(text, module, _attribute(module, place, attribute))


# --- modules -------------------------------------------------------------------------------------------


def _import_module(name: str, app_dir: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"{name!r} is not a module's name; a target is {EXAMPLES}")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
            raise _failed(name, error) from error
        raise TargetError(_no_module(name, error.name, app_dir)) from None
    except (Exception, SystemExit) as error:
        raise _failed(name, error) from error


def _import_file(path: str) -> ModuleType:
    if not os.path.isfile(path):
        raise TargetError(_no_file(path))
    if not path.endswith(".py"):
        raise TargetError(f"{path} is not a Python file: its name must end in .py")
    folder, file = os.path.split(os.path.abspath(path))
    names = [file.removesuffix(".py")]
    while os.path.isfile(os.path.join(folder, "__init__.py")):
        folder, package = os.path.split(folder)
        names.insert(0, package)
    if names[-1] == "__init__":
        names.pop()
    _put_first(folder)
    name = ".".join(names)
    try:
        if len(names) > 1:
            return importlib.import_module(name)  # with its packages, so that its relative imports work
        return _load_file(path, name)
    except (Exception, SystemExit) as error:
        raise _failed(path, error) from error


def _load_file(path: str, name: str) -> ModuleType:
    path = os.path.abspath(path)
    known = sys.modules.get(name)
    if known is not None and os.path.abspath(getattr(known, "__file__", None) or "") == path:
        return known
    if known is not None or name in sys.stdlib_module_names or not name.isidentifier():
        # Somebody else's module has the name (json.py), or it can be none (my-agent.py).
        name = f"agentrt_target_{name}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _put_first(folder: str) -> None:
    if sys.path[:1] != [folder]:
        sys.path.insert(0, folder)


def _failed(what: str, error: BaseException) -> AgentrtError:
    if isinstance(error, ConfigError):
        # It says itself what is wrong, a tool whose signature has no schema for example; only not where.
        return ConfigError(f"{_place(error)}{error}")
    return UserCodeError(f"cannot import {what}")


def _place(error: BaseException) -> str:
    """ "agents.py:12: ", the line of the user's that the error came from."""
    frames = [
        (code.co_filename, line)
        for frame, line in walk_tb(error.__traceback__)
        if not is_hidden((code := frame.f_code).co_filename)
    ]
    if not frames:
        return ""
    file, line = frames[-1]
    relative = os.path.relpath(file)
    return f"{file if relative.startswith(os.pardir) else relative}:{line}: "


# --- attributes ----------------------------------------------------------------------------------------


def _attribute(module: ModuleType, place: str, attribute: str) -> Any:
    value: Any = module
    for name in attribute.split("."):
        try:
            value = getattr(value, name)
        except AttributeError:
            raise TargetError(_no_attribute(module, place, attribute)) from None
        except Exception as error:
            raise UserCodeError(f"cannot read {attribute} of {place}") from error
    return value


# --- messages ------------------------------------------------------------------------------------------


def _not_a_target(text: str, app_dir: str) -> str:
    if text.endswith(".py") and os.path.isfile(text):
        return f"{text} is a file; name the agent in it as well: {_with_agent(text, app_dir)}"
    if text.isidentifier() and text in modules_in(app_dir):
        return f"{text} is a module; name the agent in it as well: {_with_agent(text, app_dir)}"
    return f"{text!r} is not a target; a target is {EXAMPLES}"


def _with_agent(place: str, app_dir: str) -> str:
    names = names_in(place, app_dir)
    return f"{place}:{names[0] if names else 'MyAgent'}"


def _no_module(name: str, missing: str, app_dir: str) -> str:
    where = "this folder" if os.path.abspath(app_dir) == os.getcwd() else app_dir
    parent, _, last = missing.rpartition(".")
    if parent:
        message = f"there is no module {missing!r}: the package {parent!r} has none of that name"
        folders = list(getattr(sys.modules.get(parent), "__path__", []))
        similar = similar_to(last, [found for folder in folders for found in modules_in(folder)])
        return f"{message}; did you mean {parent}.{similar}?" if similar else message
    message = f"there is no module {missing!r} in {where} or among the installed packages"
    similar = similar_to(missing, modules_in(app_dir))
    if similar:
        return f"{message}; did you mean {similar}?"
    file = file_named(name, app_dir)
    if file is not None:
        return f"{message}; did you mean the file {file}?"
    known = modules_in(app_dir)
    if 0 < len(known) <= LISTED:
        return f"{message}; the modules here are: {', '.join(known)}"
    return f"{message}; --app-dir names another folder to look in"


def _no_file(path: str) -> str:
    if os.path.isdir(path):
        return f"{path} is a folder; a target is a file or a module with an attribute: {EXAMPLES}"
    if os.path.isfile(path + ".py"):
        return f"there is no file {path}; did you mean {path}.py?"
    folder, name = os.path.split(path)
    if folder and not os.path.isdir(folder):
        return f"there is no file {path}: there is no folder {folder} in {os.getcwd()}"
    similar = similar_to(name, files_in(folder or "."))
    message = f"there is no file {path} in {os.getcwd()}"
    return f"{message}; did you mean {os.path.join(folder, similar)}?" if similar else message


def _no_attribute(module: ModuleType, place: str, attribute: str) -> str:
    message = f"{place} has nothing named {attribute!r}"
    if not place.endswith(".py") and os.path.isfile(place + ".py"):
        file = os.path.abspath(getattr(module, "__file__", None) or "")
        if file != os.path.abspath(place + ".py"):
            return (
                f"{message}: it is the module of that name in {file or 'Python itself'}; for the file in this "
                f"folder say {place}.py:{attribute}"
            )
    names = agent_names(module)
    similar = similar_to(attribute, names) or similar_to(attribute, [n for n in vars(module) if n[:1] != "_"])
    if similar:
        return f"{message}; did you mean {place}:{similar}?"
    if names:
        more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
        return f"{message}; the agents in it are: {', '.join(names[:LISTED])}{more}"
    return f"{message}, and no agent either: that is a class with `async def run(self, message)`"
