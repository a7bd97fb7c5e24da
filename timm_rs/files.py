"""Files that are either the old one or the new one, never half of either; their checksums; rows in and out."""

import contextlib
import csv
import errno
import glob
import hashlib
import io
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from timm_rs.errors import UserError

CHECKOUT = Path(__file__).parents[1]  # with tools/ and tests/; an installed package has none
# Recipes, the paper's numbers: a checkout has them beside the package, and setup.py puts them into an installed one.
SHIPPED = inside if (inside := Path(__file__).with_name('shipped')).is_dir() else CHECKOUT
RECIPES = SHIPPED / 'train_recipes'

MAX_JSON = 1 << 26  # characters; the list of bad images of a large data set is the most that we write


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = 'w', **open_kwargs: Any) -> Iterator[IO[Any]]:
    """Open a temporary neighbour of `path`; on success flush it to disk and rename it over `path`.

    When the block raises (or the process is killed) `path` keeps its old content. The rename itself is made
    durable by syncing the folder. Raises OSError as `open` does.
    """
    path = Path(path)
    temporary = neighbour(path)
    try:
        with open(temporary, mode, **open_kwargs) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # which would hide the first
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)  # a full disk does not say which file
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary neighbour of the folder `path` to fill; on success flush it to disk and rename it to `path`.

    When the block raises there is no `path`. Raises OSError if `path` is a file, or a folder with something in it.
    """
    path = Path(path)
    temporary = neighbour(path)
    temporary.mkdir()
    try:
        yield temporary
        for entry in (*temporary.rglob('*'), temporary):
            sync_folder(entry)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # an error would hide the first
        raise
    sync_folder(path.parent)


def neighbour(path: Path) -> Path:
    """A name beside `path` for this process alone."""
    remove_stale(path.parent, glob.escape(path.name))
    return path.with_name(f'.{path.name}.{socket.gethostname()}.{os.getpid()}.tmp')


def remove_stale(folder: Path, name: str = '*') -> None:
    """Remove what processes of this machine left of `name` (a glob) in `folder` when they were killed."""
    for stale in folder.glob(f'.{name}.{glob.escape(socket.gethostname())}.*.tmp'):
        pid = stale.name.split('.')[-2]
        if pid.isdigit() and not _is_running(int(pid)):
            if stale.is_dir():
                shutil.rmtree(stale, ignore_errors=True)
            else:
                stale.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    """Whether there is such a process on this machine; True where the system cannot tell."""
    try:
        if os.name == 'posix':
            os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        pass
    return True


def atomic_link(source: Path, target: Path) -> None:
    """Make `target` a second name of `source` (a copy where the file system has no hard links), atomically."""
    temporary = neighbour(target)
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
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)  # which Windows does not do with folders
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make `folder`, or raise OSError unless it is there already and files can be written to it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def check_writable(path: Path) -> None:
    """Raise UserError where `append_rows` would, before hours of measuring."""
    try:
        make_folder(path.parent)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error.strerror}; choose another --csv') from error


def save_figure(path: Path, figure: Any, format: str = 'png', **options: Any) -> None:
    """Draw a figure of matplotlib's, whole or not at all; `options` of its `savefig`. Raises OSError as `open` does."""
    picture = io.BytesIO()
    figure.savefig(picture, format=format, **dict(dpi=120) | options)
    with atomic_write(path, 'wb') as file:
        file.write(picture.getvalue())


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError where it cannot be read, or is none."""
    try:
        with open(path, encoding='utf-8') as file:
            text = file.read(MAX_JSON + 1)
        if len(text) > MAX_JSON:
            raise ValueError(f'it has more than {MAX_JSON:,} characters')
        content = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f'{path} cannot be read: {error}') from None
    if not isinstance(content, dict):
        raise UserError(f'{path} is not a JSON object')
    return content


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV in UTF-8. Raises OSError, UnicodeDecodeError or csv.Error, also for rows beyond its columns."""
    with open(path, newline='', encoding='utf-8-sig') as file:  # spreadsheets begin a file with that mark
        rows = list(csv.DictReader(file, restval=''))
    if any(None in row for row in rows):
        raise csv.Error('a row has more fields than the first')
    return rows


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]], columns: Iterable[str] = (),
              lineterminator: str = '\n') -> None:
    """Write a CSV, whole or not at all, with `columns` first and then those of `rows` as they turn up.

    Names of files need not be UTF-8 and come out as they are. Raises OSError as `open` does.
    """
    rows = list(rows)
    names = dict.fromkeys([*columns, *(name for row in rows for name in row)])
    with atomic_write(path, newline='', encoding='utf-8', errors='surrogateescape') as file:
        writer = csv.DictWriter(file, list(names), lineterminator=lineterminator)
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV. Raises UserError when there are none, or they cannot be read."""
    try:
        rows = read_csv(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f'{path} cannot be read: {getattr(error, "strerror", None) or error}') from error
    if not rows:
        raise UserError(f'{path} has no rows')
    return rows


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add `rows` to the CSV at `path`; new columns come last. Raises UserError when it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_csv(path, [*(read_csv(path) if path.exists() else []), *rows])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, 'strerror', None) or error
        raise UserError(f'{path} cannot be written: {reason}; choose another --csv') from error
