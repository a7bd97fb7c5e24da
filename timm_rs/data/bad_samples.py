"""Images that cannot be read or decoded: why not, which ones so far, and how many are too many."""

import contextlib
import csv
import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image

from timm_rs.data.listing import LEFT_OUT
from timm_rs.data.mixture import Mixture
from timm_rs.data.samples import Relabelled, Samples, Subset, TimmSamples
from timm_rs.data.shards.reading import ShardSamples
from timm_rs.errors import UserError
from timm_rs.files import write_csv
from timm_rs.transforms.decode import DEFAULT_LIMITS, BadImage, Limits, open_picture
from timm_rs.transforms.frames import open_video

# What `Samples.read` raises for one bad sample. The last two are Pillow's, in torchvision datasets that decode.
READ_ERRORS = (OSError, EOFError, tarfile.TarError, Image.DecompressionBombError, SyntaxError)

MAX_BAD_IN_A_ROW = 100
COLUMNS = ('name', 'reason')
Problem: TypeAlias = tuple[str, str]  # the name of an image, and what is wrong with it


def problem_of(samples: Samples, index: int, mode: str = 'RGB', limits: Limits = DEFAULT_LIMITS,
               are_videos: bool = False) -> str | None:
    """Why image or video `index` cannot be used, in a few words, or None when it can. Reads and decodes all of it."""
    try:
        source: Any = samples.read(index)[0]
        with limits.in_time():
            if are_videos:
                video = open_video(source, limits)
                video.frames(range(video.num_frames), prepare=lambda pixels: pixels[:1, :1])  # no need to keep more
            else:
                open_picture(source, mode, limits).pixels()
    except BadImage as error:
        return str(error)
    except READ_ERRORS as error:
        return why_unreadable(error)
    return None


def why_unreadable(error: Exception) -> str:
    """One of `READ_ERRORS` in a few words."""
    if isinstance(error, FileNotFoundError):
        return 'no such file'
    if isinstance(error, PermissionError):
        return 'no permission to read it'
    if isinstance(error, IsADirectoryError):
        return 'a directory, not a file'
    if isinstance(error, tarfile.TarError | EOFError):
        return f'damaged archive: {error or "unexpected end"}'
    return getattr(error, 'strerror', None) or str(error) or type(error).__name__


def unlisted(samples: Samples) -> list[Problem]:
    """What should have been images of a folder, tar or shards but is not among `samples`."""
    while isinstance(samples, Mixture | Subset | Relabelled):
        samples = samples.labelled if isinstance(samples, Mixture) else samples.samples
    if isinstance(samples, ShardSamples) and samples.skipped:
        return [(str(samples.root), f'{samples.skipped} samples without an image or a usable label')]
    if not isinstance(samples, TimmSamples) or not hasattr(samples.reader, 'directories'):
        return []
    root = samples.reader.root
    if os.path.isdir(root):
        return [(name, 'a directory, not a file') for name in samples.reader.directories]
    rest = unreadable_rest(root)
    return [(str(root), rest)] if rest else []


def unreadable_rest(archive: str | os.PathLike[str]) -> str | None:
    """Why no member of the tar file `archive` after some point is seen, or None when all are.

    A damaged header ends the list of members as if it were the end of the file, without an error.
    """
    try:
        with tarfile.open(archive) as tar:
            members = tar.getmembers()
            with open(archive, 'rb') as file:
                file.seek(tar.offset)
                rest = file.read(tarfile.BLOCKSIZE)
    except READ_ERRORS as error:
        return why_unreadable(error)
    if any(rest):
        return f'damaged archive: what follows {members[-1].name} cannot be read'
    return None


def default_limit(num_samples: int) -> int:
    """How many bad images a run tolerates unless told otherwise: 0.1 % of the data, at least 10."""
    return max(10, num_samples // 1000)


class BadSamples:
    """The bad images of a run, each once, also in the file `path` (CSV: name, reason) as soon as they are known.

    The file exists once there is something to say. A `resumed` run goes on with the previous list; any other removes
    it. What was `left_out` of the data stands there too, and does not count. Raises UserError when the file cannot be
    read or written.
    """

    def __init__(self, path: Path, limit: int, resumed: bool, left_out: Iterable[Problem] = ()):
        self.path, self.limit = path, limit
        self.reasons: dict[str, str] = {}  # by name
        with self._user_error():
            if not resumed:
                path.unlink(missing_ok=True)
            elif path.exists():
                self._read()
            # A kill may have left half a row at the end, which the next would be glued to.
            if (rows := [*left_out, *self.reasons.items()]) or path.exists():
                write_csv(path, [dict(zip(COLUMNS, row, strict=True)) for row in rows], COLUMNS)

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, name: str, reason: str) -> bool:
        """Put an image on the list; True when it was not there yet."""
        if name in self.reasons:
            return False
        with self._user_error():
            self.path.parent.mkdir(parents=True, exist_ok=True)  # it may have been removed since
            with open(self.path, 'a', newline='', encoding='utf-8', errors='surrogateescape') as file:
                writer = csv.writer(file, lineterminator='\n')
                writer.writerows([COLUMNS, (name, reason)] if file.tell() == 0 else [(name, reason)])
        self.reasons[name] = reason
        return True

    def check(self) -> None:
        """Raise UserError when more than `limit` images are bad."""
        if len(self) > self.limit:
            some = '; '.join(f'{name}: {reason}' for name, reason in list(self.reasons.items())[:3])
            raise UserError(
                f'{len(self)} images are bad, more than the {self.limit} allowed; the list is in {self.path}; '
                'tools/scan_dataset.py finds all others: mend or remove them, or raise '
                f'--max-bad-samples; the first are {some}')

    def _read(self) -> None:
        with open(self.path, newline='', encoding='utf-8', errors='surrogateescape') as file:
            rows = [row for row in csv.reader(file) if len(row) == len(COLUMNS)]
        self.reasons = {name: reason for name, reason in rows
                        if (name, reason) != COLUMNS and reason not in LEFT_OUT}

    @contextlib.contextmanager
    def _user_error(self) -> Iterator[None]:
        try:
            yield
        except (OSError, csv.Error) as error:
            raise UserError(f'{self.path} cannot be written: {getattr(error, "strerror", None) or error}') from error
