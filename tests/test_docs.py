"""The README and the pages of docs/, without building them: links, pictures, a reference that is whole."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import repaint_jax as rp

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]

FENCE = re.compile(r"^( *)```.*?^\1```$", re.M | re.S)
LINK = re.compile(r"(?<!\\)\[[^\]]*\]\(([^)\s]+)\)")
INCLUDED = re.compile(r"<!-- (?:notebook|code|include): (\S+) -->")
DIRECTIVE = re.compile(r"^::: (\S+)\n((?:(?: {4}.*)?\n)*)", re.M)


def reference() -> dict[str, set[str]]:
    """What docs/reference/ shows: for each name below `repaint_jax`, the members that it lists."""
    found = {}
    for page in sorted((DOCS / "reference").glob("*.md")):
        for name, options in DIRECTIVE.findall(page.read_text() + "\n"):
            listed = re.search(r"members:(?: \[(.*)\]|((?:\n +- \S+)+))", options)
            members = re.findall(r"\w+", listed[1] or listed[2] or "") if listed else []
            found[name.removeprefix("repaint_jax.")] = set(members)
    return found


def public_members(cls: type) -> set[str]:
    """Methods and properties that the class itself defines."""
    kinds = (property, classmethod, staticmethod)
    return {
        name
        for name, value in vars(cls).items()
        if (name == "__call__" or not name.startswith("_"))
        and (inspect.isfunction(value) or isinstance(value, kinds))
    }


def all_public_members(cls: type) -> set[str]:
    """Those of the class, and of the classes of this package that it extends."""
    classes = [base for base in cls.__mro__ if base.__module__.startswith("repaint_jax")]
    return set().union(*map(public_members, classes))


def public_functions(module: Any) -> set[str]:
    return {
        name
        for name, value in vars(module).items()
        if inspect.isfunction(inspect.unwrap(value))
        and value.__module__ == module.__name__
        and name[0] != "_"
    }


@pytest.mark.parametrize("name", rp.__all__)
def test_a_public_name_is_in_the_reference(name: str) -> None:
    assert name in reference()


@pytest.mark.parametrize(
    "name",
    [name for name in rp.__all__ if inspect.isclass(getattr(rp, name))],
)
def test_the_public_methods_of_a_class_are_in_the_reference(name: str) -> None:
    cls = getattr(rp, name)
    fields = set(getattr(cls, "_fields", ()))  # of a named tuple, whose other methods are tuples' own
    assert reference()[name] == (fields or all_public_members(cls))


@pytest.mark.parametrize("name", ["masks", "metrics"])
def test_the_public_functions_of_a_module_are_in_the_reference(name: str) -> None:
    assert reference()[name] == public_functions(getattr(rp, name))


def test_the_public_names_of_models_are_in_the_reference() -> None:
    shown = reference()
    at_the_top = {name for name in rp.models.__all__ if name in shown and getattr(rp, name, None)}
    assert {name.removeprefix("models.") for name in shown} >= set(rp.models.__all__) - at_the_top
    for name in ("UNet2D", "UNet2DConfig", "UNet2DClassifier"):
        assert shown[f"models.{name}"] == public_members(getattr(rp.models, name))
    for name in ("AutoencoderKL", "AutoencoderKLConfig", "VQModel", "VQModelConfig"):
        assert shown[f"models.{name}"] == all_public_members(getattr(rp.models, name))


def test_what_the_reference_shows_exists() -> None:
    for name, members in reference().items():
        target: Any = rp
        for part in name.split("."):
            target = getattr(target, part)
        assert all(hasattr(target, member) for member in members), name


def anchors(page: Path) -> set[str]:
    """Headings of a page as GitHub and mkdocs.yml name them, and the names of a reference page."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.M)
    slugs = {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}
    return slugs | {name for name, _ in DIRECTIVE.findall(page.read_text() + "\n")}


def links(page: Path) -> Iterator[str]:
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if not re.match(r"(https?|mailto):", target):
            yield target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_of_a_page_resolve(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_includes_exist(page: Path) -> None:
    for path in INCLUDED.findall(page.read_text()):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    for path in re.findall(r"(?<![\w/.])(?:tests|examples|repaint_jax|docs)/[\w/.]*\w", text):
        assert (ROOT / path).exists(), path


def test_every_page_is_in_the_navigation_and_every_example_has_a_page_with_its_picture() -> None:
    navigation = re.findall(r"(?:: |- )(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted(navigation) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))
    for example in (ROOT / "examples").glob("[0-9][0-9]_*.py"):
        page = (DOCS / "tutorials" / f"{example.stem}.md").read_text()
        assert INCLUDED.findall(page) == [f"examples/{example.name}"]
        assert f"../pictures/{example.stem}.png" in page


def test_the_readme_is_short_and_its_first_two_commands_install_and_test() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 150
    demo, tests = re.findall(r"^```sh\n(.*?)\n```$", readme, re.M | re.S)[:2]
    assert demo.endswith("repaint-jax demo -o demo.png")
    assert tests.endswith("pytest -n 2")
    assert len(re.findall(r"^```(?:sh|bash|shell|console|text)$", readme, re.M)) == 2
