"""Find a file in a local folder or on the Hugging Face hub; read and write JSON files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def find_file(path_or_repo: str | Path, filename: str, subfolder: str | None = None) -> Path:
    """Return the local path of `filename`, downloading it into the hub's cache where needed.

    Raises:
        FileNotFoundError: a folder of that name exists and lacks the file, or the hub has none.
        ImportError: the name is no local folder and huggingface_hub is not installed.
    """
    folder = Path(path_or_repo)
    if folder.is_dir():
        path = folder / (subfolder or "") / filename
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist")
        return path
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError:
        raise ImportError(
            f"{path_or_repo} is not a folder here; to look for it on the Hugging Face hub "
            "install repaint_jax[hub]"
        ) from None
    try:
        return Path(hf_hub_download(str(path_or_repo), filename, subfolder=subfolder))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileNotFoundError(
            f"{path_or_repo} is neither a folder here nor a repository with {filename} that could be "
            f"reached on the Hugging Face hub ({reason})"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, expected a JSON object")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object into a file, whose folder is created where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
