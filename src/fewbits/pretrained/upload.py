"""Upload a folder to the Hugging Face Hub, by huggingface_hub."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import MissingExtraError

__all__ = ["hub_client", "upload"]


def hub_client(purpose: str) -> ModuleType:
    """Import huggingface_hub.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module("huggingface_hub")
    except ModuleNotFoundError as error:
        if error.name != "huggingface_hub":
            raise
        raise MissingExtraError("huggingface_hub", "hf", purpose) from error


def upload(
    folder: Path,
    repo_id: str,
    *,
    token: str | bool | None = None,
    revision: str | None = None,
    private: bool | None = None,
    commit_message: str | None = None,
) -> str:
    """Make the repository if it does not exist, commit the folder, and return the commit's URL."""
    api: Any = hub_client("push_to_hub").HfApi(token=token)
    repository = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(repository, branch=revision, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repository,
        folder_path=folder,
        revision=revision,
        commit_message=commit_message or "Upload a network compressed by fewbits",
    )
    return str(commit.commit_url)
