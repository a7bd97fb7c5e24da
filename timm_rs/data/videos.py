"""Videos as samples: in folders of classes, or named by a list; each a file, or a folder of frames."""

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from timm_rs.data.compact import Names
from timm_rs.data.datasets import in_class_map, split_root
from timm_rs.data.listing import (
    EMPTY,
    EMPTY_OF_VIDEOS,
    IMAGE_SUFFIXES,
    MISSING,
    NO_IMAGE,
    NO_VIDEO,
    Listing,
    class_of,
    in_class_order,
    list_folder,
    natural_key,
    some,
    summary,
)
from timm_rs.data.minival import MINIVAL
from timm_rs.data.samples import AnyDataset, Samples
from timm_rs.data.shards.reading import is_packed, open_shards
from timm_rs.errors import UserError
from timm_rs.recipe.knobs import Recipe
from timm_rs.transforms.frames import VIDEO_SUFFIXES, Frames, Source

LISTS = ('.csv', '.txt')
KINETICS = {'label', 'youtube_id', 'time_start', 'time_end'}  # columns of the official lists


class VideoSamples(Samples):
    """Videos at `paths`, files or folders of frames, with class indices `labels`."""

    def __init__(self, paths: Sequence[str], labels: Sequence[int], classes: dict[str, int],
                 left_out: Sequence[tuple[str, str]] = ()):
        self.paths, self.labels = Names.of(paths), np.asarray(labels, np.int64)
        self.classes, self.left_out = classes, left_out

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> tuple[Source, int]:  # type: ignore[override]
        """The video's file, or the frames of its folder in natural order, and its class. Raises OSError."""
        return read_video(Path(self.paths[index])), int(self.labels[index])

    def name(self, index: int) -> str:
        return str(self.paths[index])

    def targets(self) -> list[int]:
        return self.labels.tolist()  # type: ignore[no-any-return]


def read_video(path: Path) -> Source:
    """The bytes of a file, or the frames of a folder. Raises OSError."""
    return frames_in(path) if path.is_dir() else path.read_bytes()


def frames_in(folder: Path) -> Frames:
    """The images that lie in `folder`, in the order of timm's natural sort. Raises OSError."""
    names = sorted(name for name in os.listdir(folder) if name.lower().endswith(IMAGE_SUFFIXES))
    return Frames([folder / name for name in sorted(names, key=natural_key)])


def open_video_split(recipe: Recipe, split: str, is_training: bool) -> AnyDataset:
    """One split of videos: packed shards, a list `split`.csv or .txt in `data_dir`, or a folder of classes.

    Raises UserError when it is missing, empty, cannot be read, or has classes that the class map lacks.
    """
    in_shards = recipe.dataset.lower().startswith('wds/')
    if recipe.dataset and not in_shards:
        raise UserError(f'dataset {recipe.dataset} has no videos that could be read: leave it out, and give '
                        '--data-dir with folders of videos, lists of them or packed shards')
    if recipe.data_dir and (in_shards or is_packed(recipe.data_dir)):
        shards = open_shards(recipe.data_dir, split, recipe.input_key, recipe.target_key, are_videos=True)
        if shards is None:
            raise UserError(f'{recipe.data_dir} is a stream, whose videos have no index: give shards on disk')
        return in_class_map(shards, recipe.class_map, recipe.data_dir)
    root = split_root(recipe.data_dir, split, recipe.val_split in ('', MINIVAL), (*LISTS, ''))
    samples = open_list(root) if root.endswith(LISTS) else open_folder(root, recipe.class_folder == 'leaf')
    return in_class_map(samples, recipe.class_map, root)


def open_folder(root: str, class_is_leaf: bool = False) -> VideoSamples:
    """The videos below `root`, in classes by natural order; a folder of images, below that of a class, is one, too.

    Raises UserError where there is none, or where some lie in no class; OSError.
    """
    names, left_out = videos_of(list_folder(root, (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)))
    left_out = [(os.path.join(root, name), reason) for name, reason in left_out]
    labels = [class_of(name, class_is_leaf) for name in names]
    if '' in labels:
        raise UserError(f'videos lie directly in {root}; training needs one folder per class there, or a list beside '
                        f'it, {Path(root).name}.csv')
    if not names:
        raise UserError(f'there are no videos in {root}' + (
            f'; what is there: {summary(left_out)}' if left_out else ''))
    classes = in_class_order(labels)
    return VideoSamples([os.path.join(root, name) for name in names], [classes[label] for label in labels], classes,
                        left_out)


def videos_of(listing: Listing, in_classes: bool = True) -> tuple[list[str], list[tuple[str, str]]]:
    """The names of the videos in a listing, and what is left out of it.

    A folder of images is one, unless there are videos in it, too, or it is the folder of a class.
    """
    videos: dict[str, None] = {}
    of_files = {str(folder) for name in listing.names if name.lower().endswith(VIDEO_SUFFIXES)
                for folder in PurePosixPath(name).parents}
    reasons = {NO_IMAGE: NO_VIDEO, EMPTY: EMPTY_OF_VIDEOS}
    left_out = [(name, reasons.get(reason, reason)) for name, reason in listing.left_out]
    left_out += [(name, EMPTY_OF_VIDEOS) for name in listing.directories]
    for name in listing.names:
        folder = os.path.dirname(name)
        if name.lower().endswith(VIDEO_SUFFIXES):
            videos[name] = None
        elif ('/' in folder or not in_classes) and (folder or '.') not in of_files:
            videos[folder] = None
        else:
            left_out.append((name, NO_VIDEO))
    return list(videos), left_out


def open_list(path: str) -> VideoSamples:
    """The videos that a list names and that are there; those that are not are left out, by name.

    A line is a path, white space (a tab, where there is one) and a class, a number or a name. Paths, which may have
    spaces, are relative to the list's folder, or to the one beside it that is called like the list. Or the list is one
    of the official Kinetics; its videos lie anywhere in that folder, as `ID_START_END` or `ID`, with any suffix.
    Raises UserError when it cannot be read, or when none of its videos is there.
    """
    entries = list(_read_list(Path(path)))
    if not entries:
        raise UserError(f'{path} names no videos: a line is a path and a class')
    found = [(video, label) for _, video, label in entries if video]
    missing = [(name, MISSING) for name, video, _ in entries if not video]
    if not found:
        raise UserError(f'none of the {len(entries)} videos that {path} names is there: '
                        f'{some([name for name, _ in missing], 2)}')
    labels = [label for _, _, label in entries]  # of missing ones too: what is there must not number the classes
    numbered = all(label.isdecimal() for label in labels)
    classes = {str(index): index for index in range(1 + max(map(int, labels)))} if numbered else in_class_order(labels)
    return VideoSamples([video for video, _ in found],
                        [classes[str(int(label)) if numbered else label] for _, label in found], classes, missing)


def _read_list(path: Path) -> Iterator[tuple[str, str, str]]:
    """(what the list calls it, path or empty where it is not there, class) of each video of a list."""
    try:
        with open(path, newline='', encoding='utf-8', errors='surrogateescape') as file:
            header = next(csv.reader(file), [])
            file.seek(0)
            yield from (_read_kinetics if set(header) >= KINETICS else _read_paths)(path, file)
    except (OSError, csv.Error) as error:
        raise UserError(f'{path} cannot be read: {getattr(error, "strerror", None) or error}') from error


def _read_paths(path: Path, lines: Iterator[str]) -> Iterator[tuple[str, str, str]]:
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line:
            continue
        name, *label = (part.strip() for part in line.rsplit('\t' if '\t' in line else None, 1))
        if not label:
            raise UserError(f'{path}, line {number}: a path and a class are wanted, got {line[:200]!r}')
        places = (path.parent / name, path.with_suffix('') / name)
        yield name, next((str(place) for place in places if place.exists()), ''), label[0]


def _read_kinetics(path: Path, lines: Iterator[str]) -> Iterator[tuple[str, str, str]]:
    folder = path.with_suffix('') if path.with_suffix('').is_dir() else path.parent
    names, _ = videos_of(list_folder(str(folder), (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)))
    by_stem = {Path(name).stem if name.lower().endswith(VIDEO_SUFFIXES) else Path(name).name: name for name in names}
    for number, row in enumerate(csv.DictReader(lines), 2):
        try:
            start, end = (round(float(row[column])) for column in ('time_start', 'time_end'))
        except (TypeError, ValueError):
            raise UserError(f'{path}, line {number}: time_start and time_end are wanted in seconds') from None
        name = f'{row["youtube_id"]}_{start:06}_{end:06}'
        video = by_stem.get(name) or by_stem.get(row['youtube_id'])
        yield name, str(folder / video) if video else '', row['label']
