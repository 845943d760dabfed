"""Find files in a local folder or on the Hugging Face hub; read and write JSON files; write files whole."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

Config = TypeVar("Config")


def local_folder(path_or_repo: str | Path, patterns: Sequence[str], revision: str | None = None) -> Path:
    """Return a folder; that of a hub's repository is in its cache, where missing files are downloaded to.

    Args:
        path_or_repo: a folder here, or the name of a repository on the Hugging Face hub.
        patterns: the files that are wanted from the hub, as `fnmatch` patterns of their paths.
        revision: branch, tag or commit on the hub.

    Raises:
        FileNotFoundError: it is no folder, and no repository that can be reached.
        ImportError: it is no folder, and huggingface_hub is not installed.
    """
    folder = Path(path_or_repo)
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise FileNotFoundError(f"{path_or_repo} is a file, expected a model's folder or a .pt checkpoint")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ImportError(
            f"{path_or_repo} is not a folder here; to look for it on the Hugging Face hub "
            "install repaint_jax[hub]"
        ) from None
    try:
        return Path(snapshot_download(folder.as_posix(), revision=revision, allow_patterns=list(patterns)))
    except Exception as error:  # the client's own, or of whichever HTTP library it uses
        reason = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
        raise FileNotFoundError(
            f"{path_or_repo} is neither a folder here nor a repository that could be reached on the "
            f"Hugging Face hub ({reason})"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, expected a JSON object")
    return content


def read_config(path: Path, from_dict: Callable[[dict[str, Any]], Config]) -> Config:
    """Make a config of a JSON file; errors name the file."""
    content = read_json(path)
    try:
        return from_dict(content)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object into a file, whose folder is created where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a file beside `path` to write into, which takes its place at the end: whole or not at all.

    Several threads, processes and hosts may write the same content at once, and then remove the
    `unfinished_files` of killed ones.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{_digest(path)}.{uuid4().hex}.unfinished")
    try:
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and path.exists():
            return  # another one has written it, and removed this one with those of killed processes
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a folder beside `path` to write into, which takes its place at the end: whole or not at all."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        yield unfinished
        if path.exists():
            shutil.rmtree(path)
        unfinished.rename(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def unfinished_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Find what killed processes have left of `whole_file`s of these paths."""
    digests: dict[Path, set[str]] = {}
    for path in paths:
        digests.setdefault(path.parent, set()).add(_digest(path))
    for folder, wanted in digests.items():
        for unfinished in folder.glob(".*.*.unfinished"):
            if unfinished.name.split(".")[1] in wanted:
                yield unfinished


def _digest(path: Path) -> str:
    """Stand for a file's name, which may be as long as a name can be."""
    return hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
