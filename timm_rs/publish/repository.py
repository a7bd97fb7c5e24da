"""What is in a repository of the Hub, and in a folder for it."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from timm_rs.errors import UserError
from timm_rs.publish.network import CHUNK, READ_TIMEOUT

CARD, CONFIG = 'README.md', 'config.json'


class File(NamedTuple):
    """A file of a repository: path with slashes, size in bytes, and the digest by which the Hub knows it.

    The digest is the SHA-256 of the content (64 hexadecimal digits) for large files, and git's SHA-1 of the blob
    (40 digits) for small ones.
    """
    path: str
    size: int
    digest: str


def digest(path: Path, like: str) -> str:
    """SHA-256 of a file where `like` has 64 digits, git's SHA-1 of it as a blob where it has 40; hexadecimal."""
    if len(like) == 64:
        value = hashlib.sha256()
    else:
        value = hashlib.sha1(f'blob {path.stat().st_size}\0'.encode(), usedforsecurity=False)
    with open(path, 'rb') as file:
        while chunk := file.read(CHUNK):
            value.update(chunk)
    return value.hexdigest()


def local_files(folder: Path) -> list[File]:
    """The files below `folder` in the order of their paths, each with its SHA-256."""
    return [File(path, (folder / path).stat().st_size, digest(folder / path, '0' * 64)) for path in local_paths(folder)]


def local_paths(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file())


def is_repo_id(repo_id: str) -> bool:
    """Whether `repo_id` is org/name, in characters and a length that the Hub accepts."""
    word = r'[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?'
    return (re.fullmatch(f'{word}/{word}', repo_id) is not None and '--' not in repo_id and '..' not in repo_id
            and len(repo_id) <= 96)


def check_repo_id(repo_id: str) -> None:
    """Raise UserError unless `repo_id` is a name on the Hub."""
    if not is_repo_id(repo_id):
        raise UserError(f"'{repo_id}' is no name on the Hub: write org/name, with letters, digits, and single . _ -")


def files_of(api: Any, repo_id: str, revision: str | None) -> tuple[str, list[File]]:
    """The commit that `revision` names, and its files."""
    head = api.model_info(repo_id, revision=revision).sha
    tree = api.list_repo_tree(repo_id, recursive=True, revision=head)
    return head, [File(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else entry.blob_id)
                  for entry in tree if hasattr(entry, 'blob_id')]  # folders have none


def read_json(api: Any, repo_id: str, head: str, path: str) -> dict[str, Any]:
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status
    response = get_session().get(
        hf_hub_url(repo_id, path, revision=head, endpoint=api.endpoint),
        headers=build_hf_headers(token=api.token or False), timeout=READ_TIMEOUT)
    hf_raise_for_status(response)
    try:
        content = json.loads(response.content)
    except ValueError:
        content = None
    return content if isinstance(content, dict) else {}
