"""The house: imports fall, the wings of floor 1 do not know each other, and `import fusemix` loads nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import fusemix

SOURCE = Path(fusemix.__file__).parent
FLOORS = {
    "errors": 0, "config": 0, "durable": 0, "progress": 0, "ranks": 0, "sound": 0,
    "data": 1, "encoders": 1, "align": 1,
    "shards": 2, "engines": 2, "extraction": 2, "pipeline": 2, "survey": 2, "training": 2, "fit": 2,
    "parameters": 2, "contest": 2, "networks": 2, "fuse": 2,
    "seen": 3, "state": 3, "queries": 3, "evaluate": 3, "model": 3, "curves": 3, "report": 3, "demo": 3,
    "tracking": 3, "page": 3, "inspection": 3, "matches": 3, "probing": 3, "subsets": 3, "studies": 3,
    "search": 3, "zeroshot": 3, "judgement": 3,
    "generation": 3, "contact_sheet": 3, "unpaired": 3, "onto": 3, "migration": 3,
    "arguments": 4, "terminal": 4, "verbs": 4, "server": 4, "cli": 4, "__main__": 4,
}  # fmt: skip
WINGS = {"data", "encoders", "align"}


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in SOURCE.rglob("*.py")
        if path != SOURCE / "__init__.py"
    }


def imports(path: Path, known: set[str]) -> set[str]:
    """Modules of fusemix that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name.removeprefix("fusemix.") in known else str(node.module) for name in full}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.removeprefix("fusemix.") for name in found if name.startswith("fusemix.")}


def graph() -> dict[str, set[str]]:
    found = modules()
    return {name: imports(path, set(found)) for name, path in found.items()}


def floor(module: str) -> int:
    return FLOORS[module.split(".")[0]]


def test_every_module_has_a_floor():
    assert {name.split(".")[0] for name in modules()} == set(FLOORS)


def test_no_import_goes_up():
    wrong = [(name, other) for name, others in graph().items() for other in others if floor(other) > floor(name)]
    assert wrong == []


def test_the_wings_never_import_one_another():
    wing = lambda name: name.split(".")[0]  # noqa: E731
    wrong = [
        (name, other)
        for name, others in graph().items()
        for other in others
        if wing(name) in WINGS and wing(other) in WINGS and wing(name) != wing(other)
    ]
    assert wrong == []


def test_there_is_no_cycle():
    edges = graph()
    done, active = set(), []

    def visit(name: str) -> None:
        assert name not in active, f"cycle: {' -> '.join([*active, name])}"
        if name in done:
            return
        active.append(name)
        for other in edges[name]:
            visit(other)
        done.add(active.pop())

    for name in edges:
        visit(name)


def test_a_fit_cannot_reach_an_encoder():
    """The paper's claim as an import graph: training needs latents, never an encoder."""
    edges, reached, open_ = graph(), set(), ["fit"]
    while open_:
        name = open_.pop()
        reached.add(name)
        open_ += [other for other in edges[name] if other not in reached]
    assert not any(name.startswith(("encoders", "extraction", "engines", "pipeline", "shards")) for name in reached)


def test_import_fusemix_loads_nothing_heavy():
    code = "import sys, fusemix, fusemix.cli; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "faiss", "fastapi", "pyarrow", "PIL", "numpy"} & set(loaded)


def test_the_public_names_are_sorted_and_all_there():
    assert list(fusemix.__all__) == sorted(fusemix.__all__)
    assert all(getattr(fusemix, name) is not None for name in fusemix.__all__)
    assert set(fusemix.__all__) == set(fusemix._HOME)
    # A module of the same name would take the place of the function as soon as something imports it.
    assert not set(fusemix.__all__) & set(modules())


def test_modules_and_functions_stay_small():
    for name, path in modules().items():
        text = path.read_text()
        assert text.count("\n") <= 400, f"{name} has {text.count(chr(10))} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 80, f"{name}.{node.name} is too long"


def test_nothing_unpickles_or_evaluates():
    banned = {"eval", "exec", "pickle", "marshal", "shelve", "joblib", "dill"}
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in banned, f"{name} calls {node.func.id}"
            if isinstance(node, ast.Import):
                assert not banned & {alias.name for alias in node.names}, f"{name} imports a pickle"
            if isinstance(node, ast.Attribute):
                assert ast.unparse(node) not in ("torch.load", "pickle.load", "pickle.loads"), name
