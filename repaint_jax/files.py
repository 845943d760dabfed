"""Find files in a folder or on the Hugging Face hub, read and write JSON, and write files atomically."""

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
    """Return a local folder, or download a repository of the hub and return its folder in the cache.

    Files that are already in the cache are not downloaded again.

    Args:
        path_or_repo: a local folder, or the name of a repository on the Hugging Face hub.
        patterns: the files to download from the hub, as `fnmatch` patterns of their paths.
        revision: branch, tag or commit on the hub.

    Raises:
        FileNotFoundError: path_or_repo is not a folder, and not a repository that can be reached.
        ImportError: path_or_repo is not a folder, and huggingface_hub is not installed.
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
    except Exception as error:  # an error of the client or of the HTTP library that it uses
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
    """Make a config from a JSON file. Error messages name the file."""
    content = read_json(path)
    try:
        return from_dict(content)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object into a file, and create the file's folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Provide a temporary file beside `path` that replaces `path` at the end (context manager).

    `path` is written completely or not at all. Several threads, processes and hosts may write the same
    content at the same time. They may then remove the `unfinished_files` of killed processes.
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
            return  # another process wrote `path`, and removed this file as an unfinished one
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Provide a temporary folder beside `path` that replaces `path` at the end (context manager).

    `path` is written completely or not at all.
    """
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
    """Find the temporary files that killed processes have left in `whole_file` for these paths."""
    digests: dict[Path, set[str]] = {}
    for path in paths:
        digests.setdefault(path.parent, set()).add(_digest(path))
    for folder, wanted in digests.items():
        for unfinished in folder.glob(".*.*.unfinished"):
            if unfinished.name.split(".")[1] in wanted:
                yield unfinished


def _digest(path: Path) -> str:
    """Return a short hash of a file's name, because the name may already have the maximum length."""
    return hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
