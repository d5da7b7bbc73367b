"""The rules that no single module's test can see: who imports whom, and what stays light."""

import ast
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1] / "src" / "mvar"
FILES = {path.relative_to(ROOT.parent).with_suffix(""): path for path in sorted(ROOT.rglob("*.py"))}
MODULES = {".".join(name.parts).removesuffix(".__init__"): path for name, path in FILES.items()}

# From the top: a module imports from its own part and from the layers below, never from a sibling part.
# Triton, which the kernels need, comes with torch where there is CUDA; FastAPI and Gradio with the extra `serve`.
UNINSTALLED = ("mvar.ops.gpu.", "mvar.web.api.", "mvar.web.page.")
LAYERS = [
    {"__main__"},
    {"cli"},
    {"commands"},
    {"studies", "web"},
    {"bench"},
    {"training", "evaluation", "analysis"},
    {"model"},
    {"sampling"},
    {"checkpoint", "data"},
    {"generator", "tokenizer", "features"},
    {"nn"},
    {"ops", "charts", "options"},
    {"scales", "job"},
    {"settings", "output"},
    {"files", "tensor_files", "machine", "text", "progress"},
]
HEIGHT = {part: -depth for depth, layer in enumerate(LAYERS) for part in layer}
# What anyone may take from the package itself, whose __init__ names public parts of all layers.
FROM_THE_PACKAGE = {"mvar.__version__"}


def imports(source: str, module: str, is_package: bool) -> set[str]:
    """Full names of everything under `mvar` that a module imports: lazily, for type checkers or by name too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".") if is_package else module.split(".")[:-1]
            base = parents[: len(parents) - (node.level - 1)] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{origin}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            found |= {str(arg.value) for arg in node.args if isinstance(arg, ast.Constant)}
    return {name for name in found if name.split(".")[0] == "mvar"}


def wrong_imports(module: str, imported: set[str]) -> list[str]:
    """Which of these imports break the rule."""
    part = module.split(".")[1]
    wrong = []
    for name in sorted(imported - FROM_THE_PACKAGE):
        target = name.split(".")[1] if "." in name else ""
        if target != part and not HEIGHT.get(target, 0) < HEIGHT[part]:
            wrong.append(f"{module} imports {name}")
    return wrong


def test_every_part_has_its_layer():
    parts = {module.split(".")[1] for module in MODULES if "." in module}
    assert parts <= HEIGHT.keys()


def test_imports_go_downward_only():
    wrong = []
    for module, path in MODULES.items():
        if module != "mvar":
            wrong += wrong_imports(module, imports(path.read_text(encoding="utf-8"), module, path.stem == "__init__"))
    assert not wrong


def test_the_rule_finds_what_breaks_it_and_passes_what_keeps_it():
    module = "mvar.tokenizer.network"
    for source in (
        "from mvar.model import load",
        "import mvar.sampling.engine",
        "import mvar",
        "from mvar import load",
        "from mvar import checkpoint",
        "from ..generator import network",
        "def f():\n    from mvar.training.loop import fit",
        "importlib.import_module('mvar.model')",
        "from mvar.nowhere import x",
    ):
        assert wrong_imports(module, imports(source, module, False)), source
    for source in ("from mvar.nn.linear import Linear", "from . import config", "from mvar import __version__"):
        assert not wrong_imports(module, imports(source, module, False)), source


def run(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout


def test_what_is_quick_to_start_imports_nothing_heavy():
    """In this order: lists of commands, configs and packages, what worker processes import, help of each command."""
    light = [m for m, path in MODULES.items() if path.stem in ("config", "__init__")]
    assert {"mvar.generator.config", "mvar.tokenizer.config", "mvar.training.config"} < set(light)
    script = f"""
import contextlib, importlib, io, sys
from mvar import cli
from mvar.commands.table import COMMANDS

def help_of(command):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        cli.main([*command.split(), "--help"])

for call, names, heavy in (
    (help_of, ["", "train"], ["torch", "numpy", "pydantic", "yaml"]),
    (importlib.import_module, {light}, ["torch", "numpy", "PIL"]),
    (importlib.import_module, ["mvar.data.reading", "mvar.data.shards.local", "mvar.web.api.app"], ["torch"]),
    (help_of, COMMANDS, ["torch"]),
):
    for name in names:
        call(name)
        if found := [module for module in heavy if module in sys.modules]:
            sys.exit(print(name, found))
"""
    assert run(script) == ""


def test_loading_a_model_imports_nothing_that_only_some_methods_need():
    script = """
import sys
import mvar

mvar.load("fashion-mnist")
print(*{"torch._dynamo", "triton", "scipy", "matplotlib"} & set(sys.modules))
"""
    assert run(script) == "\n"


def required(distribution: str, seen: set[str]) -> set[str]:
    """Normalised names of the installed distributions that one requires, without extras, and so on."""
    name = re.sub(r"[-_.]+", "-", distribution).lower()
    if name not in seen:
        seen.add(name)
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            return seen
        for requirement in requirements:
            if "extra ==" not in requirement:
                required(re.match(r"[\w.-]+", requirement)[0], seen)
    return seen


def test_every_module_imports_with_the_required_packages_only():
    needed = required("mvar-torch", set())
    assert {"torch", "pillow", "pyyaml"} < needed
    optional = [
        name
        for name, owners in metadata.packages_distributions().items()
        if not needed & {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners}
    ]
    assert "pytest" in optional
    script = f"""
import importlib, sys
sys.modules.update(dict.fromkeys({optional}))  # None: importing it raises ModuleNotFoundError
for name in {[m for m in MODULES if m != "mvar.__main__" and not m.startswith(UNINSTALLED)]}:
    importlib.import_module(name)
"""
    run(script)


def test_packages_hold_nothing_but_a_docstring():
    for module, path in MODULES.items():
        if path.stem == "__init__" and module != "mvar":
            body = ast.parse(path.read_text(encoding="utf-8")).body
            assert all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body), module
