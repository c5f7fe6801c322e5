"""Functions of the user: found once, where the configuration is read, and carried to the workers as their source.

A function is named as ``file.py:function`` or ``package.module:function``. Of a file, its source travels with that of
all modules that it imports from its own folder, so that a worker runs what the driver saw, whatever lies on its disk.
Nothing is run before a function is called. An installed module stays where it is; its digest travels, and is compared.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import awkward as ak
from pydantic import BeforeValidator, InstanceOf, PlainSerializer

from hepdask.errors import ConfigError
from hepdask.files.paths import local_path

#: Letters of a digest that are shown.
_SHOWN = 12

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)

_loading = threading.RLock()


@dataclass(frozen=True)
class Code:
    """Where functions come from: a file with the local modules it imports, or an installed module.

    Attributes
    ----------
    name : str
        ``"analysis.py"``, or ``"package.module"``.
    digest : str
        Of the names and contents of all its files. Where they lie does not matter.
    files : tuple of (str, str)
        Paths below the folder of the file, and their text; none of an installed module.
    path : str
        The file on the driver, for messages.
    """

    name: str
    digest: str
    files: tuple[tuple[str, str], ...] = field(repr=False)
    path: str = field(compare=False)

    @property
    def is_file(self) -> bool:
        """Whether the source travels."""
        return bool(self.files)

    @property
    def short(self) -> str:
        """The beginning of the digest."""
        return self.digest[:_SHOWN]

    def module(self) -> ModuleType:
        """Run the code, once in a process; a ConfigError says where that fails."""
        if not self.is_file:
            return _installed(self)
        package = f"{_PREFIX}{self.digest}"
        name = f"{package}.{_module_name(self.name)}"
        with _loading:
            if package not in _carried:
                _carried[package] = {_module_name(path): (path, text) for path, text in self.files}
                if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
                    sys.meta_path.insert(0, _Finder())
            try:
                return importlib.import_module(name)
            except (Exception, SystemExit) as error:
                raise ConfigError(f"{self.path}: cannot be run: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class UserFunction:
    """A function of the user, by its name in some code.

    Attributes
    ----------
    reference : str
        As in the configuration: ``file.py:function`` or ``package.module:function``.
    code : Code or None
        None where nobody has said yet that it may be run: the reference is that of somebody else's model.
    """

    reference: str
    code: Code | None

    def __str__(self) -> str:
        return self.reference

    @property
    def where(self) -> str:
        """The file or module, as in the configuration."""
        return self.reference.rpartition(":")[0]

    @property
    def name(self) -> str:
        """Its name in the file or module."""
        return self.reference.rpartition(":")[2]

    @property
    def identity(self) -> str:
        """What it is, wherever it lies: name and digest of the source."""
        code = self.source
        return f"{code.name}:{self.name} with source {code.short}"

    @property
    def source(self) -> Code:
        """The code; a ConfigError where nobody has said that it may be run."""
        if self.code is None:
            raise ConfigError(f"{self.reference}: its source was not named, so it is not run")
        return self.code

    def load(self) -> Callable[[ak.Array], Any]:
        """Give the function itself; a ConfigError says why that cannot be done."""
        code = self.source
        try:
            return getattr(code.module(), self.name)
        except AttributeError:
            raise ConfigError(f"{self.reference}: {code.path} holds no {self.name}") from None


def resolve(reference: str) -> UserFunction:
    """Find a function from where this process stands.

    Parameters
    ----------
    reference : str
        ``"path/to/file.py:function"``, the path relative to the working directory, or ``"package.module:function"``.

    Raises
    ------
    ConfigError
        There is no such file, module or function, or a file is not valid Python.
    """
    where, colon, name = reference.rpartition(":")
    if not colon or not name.isidentifier():
        raise ConfigError(
            f"{reference!r} is not a function that can be loaded; give package.module:function or "
            "path/to/file.py:function"
        )
    code = read_code(where)
    if code.is_file and not _defines(dict(code.files)[code.name], name):
        raise ConfigError(
            f"{reference!r} is not a function that can be loaded: {code.path} defines no {name}"
        )
    if not code.is_file and not hasattr(_installed(code), name):
        raise ConfigError(f"{reference!r} is not a function that can be loaded: {where} has no {name}")
    return UserFunction(reference, code)


def read_code(where: str) -> Code:
    """Read a file and what it imports from its own folder, without running it; or find an installed module.

    Parameters
    ----------
    where : str
        ``"path/to/file.py"`` or ``"package.module"``.

    Raises
    ------
    ConfigError
        There is no such file or module, or a file is not valid Python.
    """
    if not where.endswith(".py"):
        path = _origin(where)
        return Code(where, _digest({where: path.read_bytes()}), (), str(path))
    main = local_path(where)
    files = tuple(sorted(_with_local_imports(main)))
    return Code(main.name, _digest({path: text.encode() for path, text in files}), files, str(main))


def codes(functions: Iterable[UserFunction]) -> dict[str, Code]:
    """List the code of functions, each once, in order, by what the configuration calls it."""
    return {function.where: function.source for function in functions}


def _as_function(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return resolve(value)
    except ConfigError as error:
        raise ValueError(str(error)) from None


#: A key of the configuration: a reference in the document, resolved as soon as it is read.
FunctionKey = Annotated[InstanceOf[UserFunction], BeforeValidator(_as_function), PlainSerializer(str)]


# ---- reading


def _digest(files: Mapping[str, bytes]) -> str:
    content = [[path, hashlib.blake2b(data).hexdigest()] for path, data in sorted(files.items())]
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


def _origin(module: str) -> Path:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError) as error:
        raise ConfigError(f"{module!r} is not a function that can be loaded ({error})") from None
    if spec is None or not spec.has_location or not spec.origin:
        raise ConfigError(
            f"{module!r} is not a function that can be loaded: no installed module has this name. Give "
            "package.module:function, or path/to/file.py:function"
        )
    return Path(spec.origin)


def _with_local_imports(main: Path) -> Iterator[tuple[str, str]]:
    """Give the file and all that it imports from its folder, as paths below the folder and text."""
    folder = main.parent
    waiting, seen = [main], {main}
    while waiting:
        file = waiting.pop()
        text = _text(file)
        yield file.relative_to(folder).as_posix(), text
        for found in _local(file, text, folder):
            if found not in seen:
                seen.add(found)
                waiting.append(found)


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8")
    except OSError as error:
        raise ConfigError(
            f"{str(file)!r} is not a function that can be loaded: it cannot be read ({error.strerror})"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: is not text in UTF-8, as Python files are") from None


def _parsed(text: str, file: str | Path) -> ast.Module:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        raise ConfigError(f"{file}: {f'line {line}: ' if line else ''}not valid Python: {error}") from None


def _local(file: Path, text: str, folder: Path) -> Iterator[Path]:
    """Find the files of a folder that a file imports; of a package in it, all."""
    for top in _imported(_parsed(text, file), at_top=file.parent == folder):
        package = folder / top
        if (package / "__init__.py").is_file():
            yield from (path for path in sorted(package.rglob("*.py")) if path.is_file())
        elif package.with_name(f"{top}.py").is_file():
            yield package.with_name(f"{top}.py")


def _imported(tree: ast.Module, at_top: bool) -> Iterator[str]:
    """Name the modules a file imports, by their first word, which the standard library does not have."""
    for node in ast.walk(tree):
        found: list[str] = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found = [node.module or ""]
        elif isinstance(node, ast.ImportFrom) and node.level == 1 and at_top:
            found = [node.module] if node.module else [alias.name for alias in node.names]
        for name in found:
            if (top := name.partition(".")[0]) and top not in sys.stdlib_module_names:
                yield top


def _defines(text: str, name: str) -> bool:
    """Say whether a module gives something this name, as far as that can be read from it."""
    for node in _outside(_parsed(text, name).body):
        if isinstance(node, _SCOPES) and node.name == name:
            return True
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == name:
            return True
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                if alias.name == "*" or (alias.asname or alias.name.partition(".")[0]) == name:
                    return True
    return False


def _outside(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Walk through nodes, but not into functions and classes."""
    for node in nodes:
        yield node
        if not isinstance(node, _SCOPES):
            yield from _outside(ast.iter_child_nodes(node))


# ---- running

_PREFIX = "hepdask_code_"

#: For each code that was asked for in this process, its modules by name: path below its folder, and text.
_carried: dict[str, dict[str, tuple[str, str]]] = {}


#: Digests of installed modules, as they were when this process first imported them for a function.
_seen: dict[str, str] = {}


def _module_name(path: str) -> str:
    name = path.removesuffix(".py").replace("/", ".")
    return name.removesuffix(".__init__")


def _installed(code: Code) -> ModuleType:
    """Import an installed module, and make sure that it is the one that the driver has."""
    try:
        module = importlib.import_module(code.name)
    except Exception as error:
        raise ConfigError(
            f"{code.name}: cannot be imported here ({type(error).__name__}: {error}); install it where the workers "
            "run, or name its file as path/to/file.py:function, which is sent to them"
        ) from error
    file = module.__file__ or ""
    try:
        # what was there when it was first asked for: a later version of the file is not what this process has
        here = _seen.setdefault(code.name, _digest({code.name: Path(file).read_bytes()}))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    if here != code.digest:
        raise ConfigError(
            f"{file}: is not what the driver has in {code.path} (source {here[:_SHOWN]}, there {code.short}); install "
            f"one version of {code.name} everywhere, and restart the workers"
        )
    return module


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of carried code, each code in a package of its own name."""

    def find_spec(
        self, fullname: str, path: Any = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        package, _, name = fullname.partition(".")
        modules = _carried.get(package)
        if modules is None:
            return None
        if not name:
            return importlib.machinery.ModuleSpec(fullname, _Package(), is_package=True)
        if name not in modules:
            return None
        file, text = modules[name]
        return importlib.util.spec_from_loader(
            fullname, _Loader(package, file, text), is_package=file.endswith("__init__.py")
        )


class _Package(importlib.abc.Loader):
    """The folder of a file, which holds its modules and nothing else."""

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: it is empty."""


class _Loader(importlib.abc.InspectLoader):
    """Runs a module of carried code, whose imports find the modules that travel with it before all others."""

    def __init__(self, package: str, file: str, text: str) -> None:
        self._package, self._file, self._text = package, file, text

    def get_source(self, fullname: str) -> str:
        """Give the text, which tracebacks show."""
        return self._text

    def is_package(self, fullname: str) -> bool:
        """Say whether it is a folder's ``__init__.py``."""
        return self._file.endswith("__init__.py")

    def exec_module(self, module: ModuleType) -> None:
        """Run it."""
        module.__file__ = f"<{self._package}>/{self._file}"
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": self._import}
        exec(compile(self._text, module.__file__, "exec"), module.__dict__)

    def _import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> ModuleType:
        top = name.partition(".")[0]
        if level or top in sys.stdlib_module_names or top not in _carried[self._package]:
            return builtins.__import__(name, globals, locals, fromlist, level)
        found = importlib.import_module(f"{self._package}.{name}")
        if not fromlist:
            return sys.modules[f"{self._package}.{top}"]
        for wanted in fromlist:
            if f"{name}.{wanted}" in _carried[self._package] and not hasattr(found, wanted):
                importlib.import_module(f"{self._package}.{name}.{wanted}")
        return found
