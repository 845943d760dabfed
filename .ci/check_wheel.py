"""Check the installed package: it has the checkout's files, and its modules import without extras.

Run it with the Python of the environment that the wheel was installed into.
"""

import importlib
from importlib.metadata import files
from pathlib import Path, PurePosixPath

# Modules that need an extra. They must name it in their error where it is missing.
NEEDS_EXTRA = {"repaint_jax.cli.app": "app"}
RUNS_WHEN_IMPORTED = {"repaint_jax.__main__"}

CHECKOUT = Path(__file__).resolve().parent.parent


def module_name(path: str) -> str:
    """Return the module that a file, named from the checkout, is."""
    parts = PurePosixPath(path).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def check_files(installed: set[str]) -> None:
    """Refuse a wheel that has other files than the checkout."""
    package = CHECKOUT / "repaint_jax"
    expected = {
        path.relative_to(CHECKOUT).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    if installed != expected:
        missing, unknown = sorted(expected - installed), sorted(installed - expected)
        raise SystemExit(f"files that the wheel lacks: {missing}; files that only the wheel has: {unknown}")


def check_import(module: str) -> None:
    """Import a module; one that needs an extra must say which."""
    extra = NEEDS_EXTRA.get(module)
    try:
        importlib.import_module(module)
    except ImportError as error:
        if extra is None or f"repaint_jax[{extra}]" not in str(error):
            raise
    else:
        if extra is not None:
            raise SystemExit(f"{module} imports without the extra {extra}: take it off NEEDS_EXTRA")


def main() -> None:
    """Check files, imports and public names."""
    installed = {
        path.as_posix()
        for path in files("repaint_jax") or ()
        if path.parts[0] == "repaint_jax" and "__pycache__" not in path.parts
    }
    check_files(installed)
    modules = {module_name(path) for path in installed if path.endswith(".py")} - RUNS_WHEN_IMPORTED
    for name in sorted(modules | NEEDS_EXTRA.keys()):
        check_import(name)
    package = importlib.import_module("repaint_jax")
    if Path(str(package.__file__)).is_relative_to(CHECKOUT):
        raise SystemExit(f"{package.__file__} was imported, expected the installed wheel")
    for name in package.__all__:
        getattr(package, name)
    print(
        f"the wheel has all {len(installed)} files; its {len(modules)} modules import, or name their extra"
    )


if __name__ == "__main__":
    main()
