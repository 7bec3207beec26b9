"""A network or strategy of one's own, named on a command line: imported from where that says."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import cloudpickle

from rehearsal_kit.base.errors import SettingsError, said


def made_by(text: str) -> object:
    """What the function or class at FILE.py:NAME or MODULE:NAME makes, called without arguments.

    FILE.py is run, and so finds the modules beside it; MODULE must be installed. Nothing is looked for in the
    current folder. What is made can be sent to worker processes, which need not find the file.
    """
    place, colon, name = text.rpartition(":")
    if not colon or not place or not name:
        raise SettingsError(
            f"{text!r} names no code; it must be FILE.py:NAME, or MODULE:NAME if it is installed."
        )
    module = _of_file(Path(place)) if place.endswith(".py") else _installed(place)
    made = getattr(module, name, None)
    if not callable(made):
        names = [known for known, value in vars(module).items() if callable(value) and known[0] != "_"]
        raise SettingsError(
            f"{place} has no class or function {name}; it has {', '.join(sorted(names)) or 'none'}."
        )
    try:
        thing: object = made()
    except Exception as error:
        raise SettingsError(
            f"{text} cannot be called without arguments ({said(error)}); write a function "
            "that makes what the run was made with, and name that."
        ) from error
    return thing


def _of_file(path: Path) -> ModuleType:
    path = path.expanduser().absolute()
    if not path.is_file():
        raise SettingsError(f"{path} is not there; give the path of the file that has the class or function.")
    if path.stem in sys.modules:
        raise SettingsError(f"a module named {path.stem} is imported already; give {path} another name.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None  # noqa: S101 - for the type checker; the name ends in .py
    assert spec.loader is not None  # noqa: S101 - the same
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # behind all else: a module beside it hides none that is installed
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise SettingsError(f"{path} cannot be run: {said(error)}.") from error
    cloudpickle.register_pickle_by_value(module)
    return module


def _installed(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SettingsError(
            f"{name} is not an installed module ({error}); for a file of yours write its path: FILE.py:NAME."
        ) from error
