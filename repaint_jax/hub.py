"""Find a file in a local folder or in a repository of the Hugging Face hub."""

from pathlib import Path


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
