"""What the documentation site takes from outside docs/: commands, the notebook, pictures, files.

- `<!-- commands -->` becomes the reference of the command line, from its own argparse parser.
- `<!-- notebook: PATH -->` becomes the notebook's text, code and recorded results. Nothing is run.
- `<!-- code: PATH -->` becomes the Python file, `<!-- include: PATH -->` the Markdown file.
- A link from a page to a file outside docs/ stays right on GitHub and on the site: the site gets a copy of
  a picture, and other files are linked to in the public repository, or merely named where there is none.
"""

import argparse
import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ROOT = Path(__file__).parent.parent
_PICTURES = (".png", ".gif", ".svg")
_COMMANDS = "<!-- commands -->"
_MARKER = re.compile(r"<!-- (notebook|code|include): (\S+) -->")
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pictures of examples/ to the site."""
    for path in sorted((_ROOT / "examples").iterdir()):
        if path.suffix in _PICTURES:
            files.append(File.generated(config, f"examples/{path.name}", abs_src_path=str(path)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Expand the markers, and lead links that leave docs/ to where their files are."""
    if page.parent is None:  # alone in its tab: there is nothing to navigate to
        page.meta["hide"] = ["navigation"]
    elif "<!-- code:" in markdown:  # room for lines of code, and no headings
        page.meta["hide"] = ["toc"]
    if _COMMANDS in markdown:
        from repaint_jax.cli.parser import make_parser

        markdown = markdown.replace(_COMMANDS, commands_as_markdown(make_parser()))
    markdown = _MARKER.sub(lambda found: file_as_markdown(found[1], found[2], page), markdown)

    def lead(found: re.Match[str]) -> str:
        picture, text, target, anchor = found.groups(default="")
        folder = posixpath.dirname(page.file.src_uri)
        path = posixpath.normpath(posixpath.join("docs", folder, target))
        if path.startswith("docs/"):
            return f"{picture}[{text}]({posixpath.relpath(path, posixpath.join('docs', folder))}{anchor})"
        if not (_ROOT / path).exists():
            raise FileNotFoundError(f"{page.file.src_uri} links to {path}, which does not exist")
        if picture:
            return f"![{text}]({posixpath.relpath(path, folder or '.')})"
        if config.repo_url:
            return f"[{text}]({config.repo_url.rstrip('/')}/blob/HEAD/{path}{anchor})"
        return text

    return _LINK.sub(lead, markdown)


def file_as_markdown(kind: str, name: str, page: Page) -> str:
    """Return a file of the repository as Markdown for a page."""
    if kind == "notebook":
        return notebook_as_markdown(_ROOT / name)
    text = (_ROOT / name).read_text()
    if kind == "code":
        return f"```python\n{text.rstrip()}\n```"
    to_root = posixpath.relpath(".", posixpath.join("docs", posixpath.dirname(page.file.src_uri)))
    return re.sub(r"\]\((?!\w+:|#)", f"]({to_root}/", text)


def notebook_as_markdown(path: Path) -> str:
    """Return a notebook's cells and their recorded results as Markdown."""
    parts = []
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            text = "".join(output.get("text", data.get("text/plain", "")))
            if "image/png" in data:
                encoded = "".join(data["image/png"]).replace("\n", "")
                parts.append(f'<img alt="Result of the cell above" src="data:image/png;base64,{encoded}">')
            elif text.strip():
                parts.append(f"```text\n{text.rstrip()}\n```")
    title = parts[0].splitlines()[0]
    return "\n\n".join([parts[0].removeprefix(title).lstrip(), *parts[1:]])


def commands_as_markdown(parser: argparse.ArgumentParser) -> str:
    """Return what each command does and takes, a heading for each."""
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return "\n\n".join(command_as_markdown(command) for command in commands.choices.values())


def command_as_markdown(command: argparse.ArgumentParser) -> str:
    """Return one command's description, a table for each group of its options, and its examples."""
    groups = {
        group: [action for action in group._group_actions if action.dest != "help"]
        for group in command._action_groups
    }
    actions = [action for members in groups.values() for action in members]
    usage = [command.prog, *(named(action) for action in actions if not action.option_strings)]
    usage += [named(action) for action in actions if action.option_strings and action.required]
    parts = [f"## {command.prog}", command.description or "", f"```text\n{' '.join(usage)} [options]\n```"]
    for group, members in groups.items():
        if not members:
            continue
        if group.description:
            parts.append(
                f"**{with_code(_capitalised(str(group.title)))}**: {with_code(group.description)}."
            )
        rows = ["| | | default |", "|---|---|---|", *map(option_row, members)]
        if not any(map(default_of, members)):
            rows = ["| | |", "|---|---|", *(row.removesuffix("  |") for row in rows[2:])]
        parts.append('<div class="options" markdown>\n\n' + "\n".join(rows) + "\n\n</div>")
    if command.epilog:
        title, _, examples = command.epilog.partition(": ")
        parts.append(f"{title}:\n\n```sh\n" + "\n".join(examples.split("; ")) + "\n```")
    return "\n\n".join(parts)


def named(action: argparse.Action) -> str:
    """Return an option or argument with its value, as one types it."""
    value = str(action.metavar or action.dest.upper()) + (" ..." if action.nargs == "+" else "")
    if not action.option_strings:
        return value
    return action.option_strings[0] + ("" if action.nargs == 0 else f" {value}")


def option_row(action: argparse.Action) -> str:
    """Return an option, what it means and its default as a row of a table."""
    name = ", ".join([*action.option_strings[:-1], named(action).replace(*_long_name(action))])
    meaning = with_code(action.help or "")
    if action.choices:
        meaning += f" ({', '.join(map(str, action.choices))})"
    return f"| `{name}` | {meaning} | {default_of(action)} |".replace("\n", " ")


def _long_name(action: argparse.Action) -> tuple[str, str]:
    return (action.option_strings[0], action.option_strings[-1]) if action.option_strings else ("", "")


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def with_code(text: str) -> str:
    """Set the options that a text names as code."""
    return re.sub(r"(?<![\w-])--[a-z][a-z-]*(?: \d+)?(?: --[a-z][a-z-]*(?: \d+)?)*", r"`\g<0>`", text)


def default_of(action: argparse.Action) -> str:
    """Return an option's default for a table; empty where there is none, or where its help says it."""
    default: Any = action.default
    if action.required or default is None or default is False or default is argparse.SUPPRESS:
        return ""
    if isinstance(default, list):
        default = " ".join(map(str, default))
    return f"`{default}`"
