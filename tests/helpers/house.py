"""The structure of the package in numbers: `python -m tests.helpers.house [CHECKOUT] [--list]` prints them, test_house.py bounds them."""

import argparse
import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.helpers.golden import ROOT

# from the bottom to the top; a module may import its own room and those before it
ROOMS = (
    "version",
    "methods",
    "modeling",
    "data",
    "views",
    "hub",
    "conversion",
    "training",
    "evaluation",
    "tasks",
    "demo",
    "cli",
    "hf_geossl",
)
METHOD_NAME = re.compile(r"gtsa|loca(?![lt])|equicoherent", re.IGNORECASE)
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """A module of the package: its dotted name, its file and its syntax tree."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def room(self) -> str:
        """The first part of its name after the package's; the package itself is the top."""
        return self.name.split(".")[1] if "." in self.name else "hf_geossl"


class House:
    """
    The package of a checkout, read as text.

    Args:
        root (`Path`): The checkout.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self.root, self.package = root, root / "hf_geossl"

    @cached_property
    def modules(self) -> dict[str, Module]:
        """All modules by name."""
        found = {}
        for path in sorted(self.package.rglob("*.py")):
            name = ".".join(path.relative_to(self.root).with_suffix("").parts).removesuffix(".__init__")
            found[name] = Module(name, path, ast.parse(path.read_text()))
        return found

    @cached_property
    def imports(self) -> dict[str, set[str]]:
        """The modules of ours that each module imports, wherever the import stands; a package is not its own import."""
        return {name: self._imported(module) for name, module in self.modules.items()}

    def _imported(self, module: Module) -> set[str]:
        package = module.name if module.path.name == "__init__.py" else module.name.rpartition(".")[0]
        found: set[str] = set()
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    parts = package.split(".")[: len(package.split(".")) - node.level + 1]
                    base = ".".join([*parts, *([node.module] if node.module else [])])
                inner = {f"{base}.{alias.name}" for alias in node.names}
                found |= inner & self.modules.keys() or {base}
        return {name for name in found if name in self.modules and name != module.name}

    # ---- What is bounded; each gives the places ----

    def arrows_up(self) -> list[str]:
        """Imports of a room from one above it."""
        return [
            f"{name} imports {other}"
            for name, others in self.imports.items()
            for other in sorted(others)
            if ROOMS.index(self.modules[name].room) < ROOMS.index(self.modules[other].room)
        ]

    def circles(self) -> list[str]:
        """Groups of modules that import each other, directly or by a detour (strongly connected components)."""
        order: list[str] = []
        seen: set[str] = set()

        def visit(name: str, graph: dict[str, set[str]], into: list[str]) -> None:
            stack = [(name, iter(sorted(graph[name])))]
            seen.add(name)
            while stack:
                current, others = stack[-1]
                nxt = next((other for other in others if other not in seen), None)
                if nxt is None:
                    into.append(current)
                    stack.pop()
                else:
                    seen.add(nxt)
                    stack.append((nxt, iter(sorted(graph[nxt]))))

        for name in self.modules:
            if name not in seen:
                visit(name, self.imports, order)
        reverse: dict[str, set[str]] = {name: set() for name in self.modules}
        for name, others in self.imports.items():
            for other in others:
                reverse[other].add(name)
        seen.clear()
        found = []
        for name in reversed(order):
            if name not in seen:
                group: list[str] = []
                visit(name, reverse, group)
                if len(group) > 1:
                    found.append(", ".join(sorted(group)))
        return found

    def crowded_folders(self) -> list[str]:
        """Folders with more than 20 modules."""
        counts: dict[Path, int] = {}
        for module in self.modules.values():
            counts[module.path.parent] = counts.get(module.path.parent, 0) + 1
        return [f"{folder.relative_to(self.root)}: {count}" for folder, count in counts.items() if count > 20]

    def long_files(self) -> list[str]:
        """Files of more than 400 lines."""
        counts = {module.name: len(module.path.read_text().splitlines()) for module in self.modules.values()}
        return [f"{name}: {count}" for name, count in counts.items() if count > 400]

    def functions(self) -> Iterator[tuple[str, Module, Function]]:
        """All functions and methods, with a name for messages."""
        for module in self.modules.values():
            for node in ast.walk(module.tree):
                if isinstance(node, Function):
                    yield f"{module.name}:{node.lineno} {node.name}", module, node

    def long_functions(self) -> list[str]:
        """Functions of more than 50 lines of code; docstrings, comments and empty lines are none."""
        found = []
        for name, module, node in self.functions():
            lines = len(_code_lines(module) & set(range(node.lineno, (node.end_lineno or 0) + 1)))
            if lines > 50:
                found.append(f"{name}: {lines}")
        return found

    def long_signatures(self) -> list[str]:
        """Functions of more than 12 parameters; dataclasses have fields, not parameters."""
        return [f"{name}: {len(p)}" for name, _, node in self.functions() if len(p := _parameters(node)) > 12]

    def any_parameters(self) -> list[str]:
        """Parameters annotated as `Any`."""
        return [
            f"{name}({parameter.arg})"
            for name, _, node in self.functions()
            for parameter in _parameters(node)
            if parameter.annotation is not None and ast.unparse(parameter.annotation).strip("\"'") in _ANY
        ]

    def number_of_parameters(self) -> int:
        """How many parameters there are."""
        return sum(len(_parameters(node)) for _, _, node in self.functions())

    def method_names(self) -> list[str]:
        """Names of methods in code (identifiers and texts, not docstrings) outside methods.py and a method's own files."""
        found = []
        for module in self.modules.values():
            if module.name == "hf_geossl.methods" or METHOD_NAME.search(module.path.name):
                continue
            docstrings = _docstrings(module.tree)
            for node in ast.walk(module.tree):
                if id(node) not in docstrings and (word := _method_word(node)):
                    found.append(f"{module.name}:{getattr(node, 'lineno', 0)} {word}")
        return found

    def private_names(self) -> list[str]:
        """Private names of our modules that another module takes: imported, or read off an object.

        Private names of libraries, such as `torch._foreach_mul_` or a namedtuple's `_replace`, are none of ours; test_house.py
        compares those of transformers with the installed version.
        """
        found = []
        ours = set().union(*(_own_names(module.tree) for module in self.modules.values()))
        for module in self.modules.values():
            own = _own_names(module.tree)
            for node in ast.walk(module.tree):
                if isinstance(node, ast.ImportFrom):
                    inner = node.level or (node.module or "").startswith("hf_geossl")
                    found += [
                        f"{module.name}:{node.lineno} import {alias.name}"
                        for alias in node.names
                        if inner and _is_private(alias.name)
                    ]
                elif (
                    isinstance(node, ast.Attribute)
                    and _is_private(node.attr)
                    and node.attr in ours - own
                    and not _is_self(node.value)
                    and not _is_super(node)
                ):
                    found.append(f"{module.name}:{node.lineno} .{node.attr}")
        return found

    def foreign_writes(self) -> list[str]:
        """Attributes that code sets on objects that are neither `self` nor made by the same function.

        transformers' `TrainerState` and `TrainerControl` (`state`, `control`) are records that trainers and callbacks are
        meant to write: they are how a callback asks for a checkpoint or the end of a run.
        """
        found = []
        for name, _, node in self.functions():
            made = _made_here(node)
            for inner in ast.walk(node):
                targets: list[ast.expr] = []
                if isinstance(inner, ast.Assign):
                    targets = inner.targets
                elif isinstance(inner, ast.AugAssign | ast.AnnAssign):
                    targets = [inner.target]
                for target in targets:
                    for written in target.elts if isinstance(target, ast.Tuple) else [target]:
                        if not isinstance(written, ast.Attribute) or ast.unparse(written.value) in _RECORDS:
                            continue
                        if not _is_own(written.value, made):
                            found.append(f"{name}: {ast.unparse(written)}")
        return found

    def private_overrides(self) -> list[str]:
        """Private methods of transformers' classes that classes of ours override."""
        import hf_geossl.training.trainer as home  # what is overridden is known to Python, not to the text

        ours = [cls for cls in home.TeacherStudentTrainer.__mro__ if cls.__module__.startswith("hf_geossl")]
        theirs = [cls for cls in home.TeacherStudentTrainer.__mro__ if cls.__module__.startswith("transformers")]
        return sorted(
            f"{cls.__name__}.{name}"
            for cls in ours
            for name, value in vars(cls).items()
            if _is_private(name) and callable(value) and any(hasattr(base, name) for base in theirs)
        )

    def untested_modules(self) -> list[str]:
        """Modules whose test is not at the mirrored path."""
        found = []
        for module in self.modules.values():
            if module.path.stem in ("__init__", "__main__") or not module.tree.body:
                continue
            relative = module.path.relative_to(self.package)
            test = self.root / "tests" / relative.with_name(f"test_{relative.name}")
            if not test.is_file():
                found.append(f"{module.name}: {test.relative_to(self.root)}")
        return found


_RECORDS = {"state", "control", "self.state", "self.control"}
_ANY = {"Any", "Any | None", "Optional[Any]", "typing.Any"}


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def _is_super(node: ast.Attribute) -> bool:
    call = node.value
    return isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "super"


def _parameters(node: Function) -> list[ast.arg]:
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    every += [extra for extra in (arguments.vararg, arguments.kwarg) if extra is not None]
    return [parameter for parameter in every if parameter.arg not in ("self", "cls")]


def _docstrings(tree: ast.AST) -> set[int]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            found.add(id(node.value))
    return found


def _method_word(node: ast.AST) -> str | None:
    words: list[str] = []
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        words = [node.value]
    elif isinstance(node, ast.Name):
        words = [node.id]
    elif isinstance(node, ast.Attribute):
        words = [node.attr]
    elif isinstance(node, Function | ast.ClassDef):
        words = [node.name]
    elif isinstance(node, ast.arg | ast.keyword):
        words = [node.arg or ""]
    elif isinstance(node, ast.alias):
        words = [node.name, node.asname or ""]
    elif isinstance(node, ast.ImportFrom):
        words = [node.module or ""]
    return next((word[:60] for word in words if METHOD_NAME.search(word)), None)


def _code_lines(module: Module) -> set[int]:
    cached = _LINES.get(module.path)
    if cached is None:
        docstring_lines = {
            line
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
            for line in range(node.lineno, (node.end_lineno or 0) + 1)
        }
        skipped = {
            tokenize.COMMENT,
            tokenize.NL,
            tokenize.NEWLINE,
            tokenize.INDENT,
            tokenize.DEDENT,
            tokenize.ENDMARKER,
        }
        cached = set()
        for token in tokenize.generate_tokens(io.StringIO(module.path.read_text()).readline):
            if token.type not in skipped:
                cached |= set(range(token.start[0], token.end[0] + 1))
        cached -= docstring_lines
        _LINES[module.path] = cached
    return cached


_LINES: dict[Path, set[int]] = {}


def _own_names(tree: ast.AST) -> set[str]:
    """Private names that a module gives itself: of its functions, classes, variables, and attributes of its classes."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, Function | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
            found.add(node.attr)
    return found


def _made_here(node: Function) -> set[str]:
    """Names of what a function has made itself: by a call of a class or of `copy`; what it is given is another's."""
    made = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Assign) and isinstance(inner.value, ast.Call):
            called = ast.unparse(inner.value.func).rpartition(".")[2]
            if called[:1].isupper() or called in ("copy", "deepcopy", "replace", "cls", "from_config", "__new__"):
                for target in inner.targets:
                    made |= {name.id for name in ast.walk(target) if isinstance(name, ast.Name)}
        elif isinstance(inner, ast.With):
            for item in inner.items:
                if isinstance(item.optional_vars, ast.Name):
                    made.add(item.optional_vars.id)
    return made


def _is_own(value: ast.expr, made: set[str]) -> bool:
    root = value
    while isinstance(root, ast.Attribute | ast.Subscript):
        if isinstance(root, ast.Attribute) and isinstance(root.value, ast.Name) and root.value.id in ("self", "cls"):
            return False  # self.part.attribute is the part's
        root = root.value
    return isinstance(root, ast.Name) and (root.id in ("self", "cls") or root.id in made)


MEASURES: dict[str, tuple[Callable[[House], list[str]], int]] = {
    "import circles": (House.circles, 0),
    "arrows up": (House.arrows_up, 0),
    "folders over 20 files": (House.crowded_folders, 0),
    "files over 400 lines": (House.long_files, 0),
    "functions over 50 code lines": (House.long_functions, 10),
    "parameter lists over 12": (House.long_signatures, 0),
    "method names elsewhere": (House.method_names, 0),
    "private names across modules": (House.private_names, 0),
    "foreign attribute writes": (House.foreign_writes, 0),
    "private overrides": (House.private_overrides, 8),
    "modules without a test at the mirrored path": (House.untested_modules, 0),
}


def main() -> None:
    """Prints a row a measure, and with --list or --only every place."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", nargs="?", default=str(ROOT))
    parser.add_argument("--list", action="store_true", help="Print every place.")
    parser.add_argument("--only", default="", help="Places whose text holds this, such as 'hf_geossl.views'.")
    options = parser.parse_args()
    house = House(Path(options.checkout))
    for name, (measure, bound) in MEASURES.items():
        places = [place for place in measure(house) if options.only in place]
        print(f"{len(places):5} (at most {bound:2}) {name}")
        if options.list or options.only:
            print("".join(f"        {place}\n" for place in places), end="")
    share = [place for place in house.any_parameters() if options.only in place]
    print(f"{len(share):5} of {house.number_of_parameters()} parameters are Any")
    if options.list or options.only:
        print("".join(f"        {place}\n" for place in share), end="")


if __name__ == "__main__":
    main()
