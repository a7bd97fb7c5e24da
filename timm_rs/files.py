"""Files that are either the old one or the new one, never half of either, and their checksums."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

CHECKOUT = Path(__file__).parents[1]  # with train_recipes/ and results/; an installed package has none


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = 'w', **open_kwargs: Any) -> Iterator[IO[Any]]:
    """Open a temporary neighbour of `path`; on success flush it to disk and rename it over `path`.

    When the block raises (or the process is killed) `path` keeps its old content. The rename itself is made
    durable by syncing the folder. Raises OSError as `open` does.
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        with open(temporary, mode, **open_kwargs) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary neighbour of the folder `path` to fill; on success flush it to disk and rename it to `path`.

    When the block raises there is no `path`. Raises OSError if `path` is a file, or a folder with something in it.
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    temporary.mkdir()
    try:
        yield temporary
        for entry in (*temporary.rglob('*'), temporary):
            sync_folder(entry)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary)
        raise
    sync_folder(path.parent)


def atomic_link(source: Path, target: Path) -> None:
    """Make `target` a second name of `source` (a copy where the file system has no hard links), atomically."""
    temporary = target.with_name(f'.{target.name}.{os.getpid()}.tmp')
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        with open(source, 'rb') as reader, atomic_write(target, 'wb') as writer:
            while chunk := reader.read(1 << 24):
                writer.write(chunk)
        return
    os.replace(temporary, target)
    temporary.unlink(missing_ok=True)  # rename does nothing when both names already are the same file
    sync_folder(target.parent)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits. Raises OSError as `open` does."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` (or what a file has) durable; file systems that cannot are left as they are."""
    descriptor = os.open(folder, os.O_RDONLY)
    with contextlib.suppress(OSError):
        os.fsync(descriptor)
    os.close(descriptor)
