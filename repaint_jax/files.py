"""Find files in a folder or on the Hugging Face hub, read and write JSON, and write files atomically."""

import hashlib
import json
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

Config = TypeVar("Config")
StrPath = str | os.PathLike[str]

_ON_WINDOWS = os.name == "nt"
_WAITS = (0.01, 0.05, 0.2, 0.5)  # seconds
MODEL_PATH = "a folder here, or a repository of the Hugging Face hub such as owner/name"
_REPOSITORY = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


class Hub(NamedTuple):
    """How to download a repository of the Hugging Face hub.

    Attributes:
        revision: branch, tag or commit.
        token: the access token for private and gated repositories. None means the one that
            `hf auth login` stored, if any. False means none.
        cache_dir: the folder for downloads. None means the client's own.
    """

    revision: str | None = None
    token: str | bool | None = None
    cache_dir: StrPath | None = None


def checked_path(name: str, value: Any, expected: str = "a path") -> Path:
    """Return a path, or raise if a parameter is none."""
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise TypeError(f"{name} is {value!r}, expected {expected}")
    if value == "":
        raise ValueError(f"{name} is '', expected {expected}")
    return Path(value)


def local_folder(path_or_repo: StrPath, patterns: Sequence[str], hub: Hub | None = None) -> Path:
    """Return a local folder, or download a repository of the hub and return its folder in the cache.

    Files that are already in the cache are not downloaded again.

    Args:
        path_or_repo: a local folder, or the name of a repository on the Hugging Face hub.
        patterns: the files to download from the hub, as `fnmatch` patterns of their paths.
        hub: how to download them.

    Raises:
        FileNotFoundError: path_or_repo is not a folder, and not a repository that can be reached.
        ImportError: path_or_repo is not a folder, and huggingface_hub is not installed.
        TypeError: path_or_repo is no path.
    """
    folder = checked_path("path_or_repo", path_or_repo, MODEL_PATH)
    name = os.fspath(path_or_repo)
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise FileNotFoundError(f"{name} is a file, expected a model's folder or a .pt checkpoint")
    if name.startswith(".") or not _REPOSITORY.fullmatch(folder.as_posix()):
        raise FileNotFoundError(f"{name} does not exist, expected {MODEL_PATH}")
    advice = f"{name} is not a folder here; to look for it on the Hugging Face hub install repaint_jax[hub]"
    with optional_package("huggingface_hub", advice):
        from huggingface_hub import snapshot_download
    try:
        options = (hub or Hub())._asdict()
        return Path(snapshot_download(folder.as_posix(), allow_patterns=list(patterns), **options))
    except Exception as error:  # an error of the client or of the HTTP library that it uses
        reason = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
        raise FileNotFoundError(
            f"{name} is neither a folder here nor a repository that could be reached on the "
            f"Hugging Face hub ({reason})"
        ) from None


def inner_path(subfolder: StrPath | None) -> str:
    """Return a subfolder with forward slashes, "" for None."""
    if subfolder is None or subfolder == "":
        return ""
    return checked_path("subfolder", subfolder, "a folder inside path_or_repo").as_posix()


@contextmanager
def optional_package(package: str, advice: str) -> Iterator[None]:
    """Import a package that may not be installed.

    Raises:
        ImportError: the package is not installed (with advice), or cannot be imported (with the reason).
    """
    try:
        yield
    except ImportError as error:
        if (error.name or "").split(".")[0] == package:
            raise ImportError(advice) from None
        raise ImportError(f"{package} is installed, but it cannot be imported: {error}") from None


def hub_files(repo: StrPath, hub: Hub) -> list[str]:
    """List the files of a repository on the hub; return no names if it cannot be reached."""
    try:
        from huggingface_hub import HfApi

        return list(HfApi(token=hub.token).list_repo_files(Path(repo).as_posix(), revision=hub.revision))
    except Exception:  # the list only serves a hint in an error message
        return []


def warn(message: str) -> None:
    """Warn, with the line outside this package that led here as the place."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("repaint_jax."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


def check_not_lfs_pointer(path: Path) -> None:
    """Raise if a file is the pointer that a clone without Git LFS has in place of a large file."""
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise ValueError(
                f"{path} is a pointer of Git LFS, expected the file itself; `git lfs pull` downloads it"
            )


def read_json(path: StrPath) -> dict[str, Any]:
    """Read a file that holds a JSON object."""
    path = checked_path("path", path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected a JSON file")
    if path.is_file():
        check_not_lfs_pointer(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, expected a JSON object")
    return content


def read_config(path: StrPath, from_dict: Callable[[dict[str, Any]], Config]) -> Config:
    """Make a config from a JSON file. Error messages name the file."""
    content = read_json(path)
    try:
        return from_dict(content)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def write_json(path: StrPath, content: Mapping[str, Any]) -> None:
    """Write a JSON object into a file, and create the file's folder if it is missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def whole_file(path: StrPath) -> Iterator[Path]:
    """Provide a temporary file beside `path` that replaces `path` at the end (context manager).

    `path` is written completely or not at all. Several threads, processes and hosts may write the same
    content at the same time. They may then remove the `unfinished_files` of killed processes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{_digest(path)}.{uuid4().hex}.unfinished")
    try:
        yield unfinished
        with unfinished.open("rb+") as file:  # Windows refuses fsync of a file opened for reading
            os.fsync(file.fileno())
        _replace(unfinished, path)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and path.exists():
            return  # another process wrote `path`, and removed this file as an unfinished one
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _replace(unfinished: Path, path: Path) -> None:
    """Rename a file. Windows refuses that for as long as another program has `path` open."""
    for seconds in _WAITS if _ON_WINDOWS else ():
        with suppress(PermissionError):
            unfinished.replace(path)
            return
        time.sleep(seconds)
    unfinished.replace(path)


@contextmanager
def whole_folder(path: StrPath) -> Iterator[Path]:
    """Provide a temporary folder beside `path` that replaces `path` at the end (context manager).

    `path` is written completely or not at all.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        yield unfinished
        if path.exists():
            shutil.rmtree(path)
        unfinished.rename(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def whole_parts(folder: StrPath) -> Iterator[Path]:
    """Provide a temporary folder whose files and folders are moved into `folder` at the end.

    They replace what has the same names there; everything else in `folder` stays. After an error `folder`
    is as it was.
    """
    folder = checked_path("folder", folder)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".unfinished-", dir=folder) as name:
        yield Path(name)
        for part in Path(name).iterdir():
            before = folder / part.name
            if before.is_dir():
                shutil.rmtree(before)
            part.replace(before)


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
