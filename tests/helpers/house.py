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
METHOD_NAMES = tuple(re.compile(name, re.IGNORECASE) for name in ("gtsa", "loca(?![lt])", "equicoherent"))
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
        return {name: self._imported(module) | self._named_in_texts(module) for name, module in self.modules.items()}

    def _named_in_texts(self, module: Module) -> set[str]:
        """Modules that a module imports by name: `import_module("hf_geossl.x")`, or a reference "hf_geossl.x:Class". The
        table of methods imports nothing: who asks a row for a class does, see `loaded_from_rows`.
        """
        if module.room == "methods":
            return set()
        texts = set()
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
                texts |= {inner.value for inner in ast.walk(node) if isinstance(inner, ast.Constant)}
            elif isinstance(node, ast.Constant) and ":" in str(node.value):
                texts.add(node.value)
        found = {match for text in texts for match in re.findall(r"^(hf_geossl(?:\.\w+)+\.?)(?::\w+)?$", str(text))}
        # f"hf_geossl.evaluation.protocols.{name}" is some module of that package, which to its own modules is no import
        named = {name.rstrip(".") for name in found if not (name.endswith(".") and module.name.startswith(name))}
        return {name for name in named if name in self.modules and name != module.name}

    @cached_property
    def loaded_from_rows(self) -> dict[str, set[str]]:
        """Modules that each module asks the table of methods for: `METHODS[name].load("field")`. These must not lie above
        it either; but that a module and what a method adds to it know each other is what such a table is for.
        """
        found: dict[str, set[str]] = {}
        for module in self.modules.values():
            for node in ast.walk(module.tree):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load":
                    field = node.args[0] if node.args else None
                    if isinstance(field, ast.Constant):
                        found.setdefault(module.name, set()).update(self.rows.get(field.value, ()))
        return found

    @cached_property
    def rows(self) -> dict[str, set[str]]:
        """Fields of the table of methods -> the modules that its rows name there."""
        found: dict[str, set[str]] = {}
        for node in ast.walk(self.modules["hf_geossl.methods"].tree):
            if isinstance(node, ast.keyword):
                for text in ast.walk(node.value):
                    match = re.fullmatch(r"(hf_geossl[.\w]+):\w+", str(getattr(text, "value", "")))
                    if match:
                        found.setdefault(str(node.arg), set()).add(match.group(1))
        return found

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
            for other in sorted(others | self.loaded_from_rows.get(name, set()))
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
        """Folders with more than 20 modules beside their `__init__`."""
        counts: dict[Path, int] = {}
        for module in self.modules.values():
            counts[module.path.parent] = counts.get(module.path.parent, 0) + (module.path.name != "__init__.py")
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
        """Names of methods in code (identifiers and texts, not docstrings) outside methods.py and a method's own files,
        which have its name in theirs; there the names of the others count.
        """
        found = []
        for module in self.modules.values():
            others = [name for name in METHOD_NAMES if not name.search(module.path.name)]
            if module.name == "hf_geossl.methods":
                continue
            docstrings = _docstrings(module.tree)
            for node in ast.walk(module.tree):
                if id(node) not in docstrings and (word := _method_word(node, others)):
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
            others = ours - _names_of_classes(module.tree)
            for node in ast.walk(module.tree):
                if isinstance(node, ast.ImportFrom):
                    inner = node.level or (node.module or "").startswith("hf_geossl")
                    names = [alias.name for alias in node.names if inner and _is_private(alias.name)]
                    found += [f"{module.name}:{node.lineno} import {name}" for name in names]
                elif isinstance(node, ast.Attribute) and not _is_self(node.value) and not _is_super(node):
                    if _is_private(node.attr) and node.attr in others:
                        found.append(f"{module.name}:{node.lineno} .{node.attr}")
                elif (name := _name_in_text(node)) and _is_private(name) and name in others:
                    found.append(f"{module.name}:{node.lineno} {name!r}")  # type: ignore[attr-defined]
        return found

    def foreign_writes(self) -> list[str]:
        """Attributes that code sets or deletes (by `=`, `del`, `setattr`, `vars(x)[...]`) on objects that are neither `self`
        nor made by the same function, or by one around it.

        transformers' `TrainerState` and `TrainerControl` (`state`, `control`) are records that trainers and callbacks are
        meant to write: they are how a callback asks for a checkpoint or the end of a run.
        """
        found = []
        for module in self.modules.values():
            for node, made in _with_what_is_made(module.tree, frozenset()):
                owner: ast.expr | None = None
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
                    owner = node.value
                elif isinstance(node, ast.Call) and node.args:  # vars(x).pop("name") has arguments too
                    called = ast.unparse(node.func)
                    if called in ("setattr", "delattr") or called.endswith(".__setattr__"):
                        owner = node.args[0]
                    elif isinstance(node.func, ast.Attribute) and node.func.attr in ("update", "pop", "setdefault"):
                        owner = _owner_of_dictionary(node.func.value)
                elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
                    owner = _owner_of_dictionary(node.value)
                if owner is not None and ast.unparse(owner) not in _RECORDS and not _is_own(owner, made):
                    found.append(f"{module.name}:{node.lineno} {ast.unparse(node)[:80]}")  # type: ignore[attr-defined]
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
        """Modules whose test is not at the mirrored path, or has no test in it."""
        found = []
        for module in self.modules.values():
            if module.path.stem in ("__init__", "__main__") or not module.tree.body:
                continue
            relative = module.path.relative_to(self.package)
            test = self.root / "tests" / relative.with_name(f"test_{relative.name}")
            if not test.is_file() or not re.search(r"^ *def test_", test.read_text(), re.MULTILINE):
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
    return {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    }


def _method_word(node: ast.AST, methods: list[re.Pattern[str]]) -> str | None:
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
    return next((word[:60] for word in words if any(name.search(word) for name in methods)), None)


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


def _names_of_classes(tree: ast.AST) -> set[str]:
    """Private names of a module's classes: methods, attributes of the class, attributes of `self`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, Function):
                    found.add(inner.name)
                targets = inner.targets if isinstance(inner, ast.Assign) else [getattr(inner, "target", None)]
                found |= {target.id for target in targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
            found.add(node.attr)
    return found


def _name_in_text(node: ast.AST) -> str | None:
    """The attribute that `getattr(x, "name")` and its like, `vars(x)["name"]` or `x.__dict__["name"]` read off another."""
    text: ast.expr | None = None
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("attr"):
        if len(node.args) > 1 and not _is_self(node.args[0]):
            text = node.args[1]
    elif isinstance(node, ast.Subscript):
        owner = _owner_of_dictionary(node.value)
        if owner is not None and not _is_self(owner):
            text = node.slice
    return text.value if isinstance(text, ast.Constant) and isinstance(text.value, str) else None


def _owner_of_dictionary(node: ast.expr) -> ast.expr | None:
    """`x` of `vars(x)` and of `x.__dict__`."""
    if isinstance(node, ast.Attribute) and node.attr == "__dict__":
        return node.value
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "vars" and node.args:
        return node.args[0]
    return None


def _with_what_is_made(node: ast.AST, made: frozenset[str]) -> Iterator[tuple[ast.AST, frozenset[str]]]:
    """All nodes below one, each with the objects that the functions around it have made."""
    for child in ast.iter_child_nodes(node):
        inside = made | _made_here(child) if isinstance(child, Function) else made
        yield child, inside
        yield from _with_what_is_made(child, inside)


_MAKERS = ("copy", "deepcopy", "replace", "cls", "from_config", "from_pretrained", "__new__")


def _made_here(node: Function) -> set[str]:
    """What a function has made itself, as it is written (`x`, `self.x`): by a call of a class or of `copy`, or opened by
    `with`. What a function is given, and what other functions give it, is another's.
    """
    made = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Assign | ast.AnnAssign) and isinstance(inner.value, ast.Call):
            called = ast.unparse(inner.value.func).rpartition(".")[2]
            if called.lstrip("_")[:1].isupper() or called in _MAKERS:
                for target in inner.targets if isinstance(inner, ast.Assign) else [inner.target]:
                    parts = target.elts if isinstance(target, ast.Tuple) else [target]
                    made |= {ast.unparse(part) for part in parts if isinstance(part, ast.Name | ast.Attribute)}
        elif isinstance(inner, ast.With):
            made |= {item.optional_vars.id for item in inner.items if isinstance(item.optional_vars, ast.Name)}
    return made


def _is_own(value: ast.expr, made: frozenset[str]) -> bool:
    """Whether something is `self`, or was made by the function, or is a part of what was."""
    if _is_self(value):
        return True
    while isinstance(value, ast.Attribute | ast.Subscript):
        if ast.unparse(value) in made:
            return True
        value = value.value
    return isinstance(value, ast.Name) and not _is_self(value) and value.id in made


ANY_SHARE = 0.03  # of all parameters may be `Any`
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
