"""Pack a dataset into tar shards that training reads from front to back: smaller, and without a file per image.

Stopped at any moment, the same command continues. Images that cannot be read are left out, and listed in
DST/bad_samples.csv.
"""
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from timm_rs.data.workers import num_cores
from timm_rs.errors import UserError, exit_on_user_error
from timm_rs.recipe.command_line import Parser, at_least
from timm_rs.recipe.knobs import Recipe

if TYPE_CHECKING:
    from timm_rs.data.samples import Samples

EXAMPLE = """examples:
  python tools/pack_dataset.py imagenet packed --short-side 288      a folder with train/ and validation/
  python tools/pack_dataset.py photos packed --split train           one split
  python tools/pack_dataset.py cache packed --dataset hfds/NAME      any dataset of timm's that is not a stream
  python tools/pack_dataset.py imagenet packed --raw                 pixels: large, and read in a fraction of the time
  python tools/pack_dataset.py kinetics packed --frames              videos, as JPEGs of their frames
  python tools/pack_dataset.py --verify packed                       checksums
  python train.py --recipe R --dataset wds/packed --data-dir packed
"""


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, epilog=EXAMPLE)
    parser.add_argument('source', metavar='SRC', help='folder or tar as --data-dir of train.py; not with --verify only')
    parser.add_argument('destination', metavar='DST', nargs='?', help='folder of the shards')
    parser.add_argument('--dataset', default='', metavar='NAME', help='timm dataset name, as of train.py')
    parser.add_argument('--videos', action='store_true', help='SRC holds videos, as for --task video of train.py; '
                        'their files keep their bytes')
    parser.add_argument('--frames', action='store_true', help='the same, each video as its frames, which are JPEGs as '
                        'images would be: larger, and read in a fraction of the time')
    parser.add_argument('--raw', action='store_true', help='store the pixels of images as they are: nothing to decode '
                        'when training, for several times the disk, which is printed before')
    parser.add_argument('--split', metavar='NAME', help='only this split (default: train and validation)')
    parser.add_argument('--class-map', default='', metavar='FILE', help='maps class names to indices')
    parser.add_argument('--class-folder', default='top', choices=('top', 'leaf'),
                        help='the folder that names the class: directly below the split, or the last (top)')
    parser.add_argument('--short-side', type=at_least(0), default=288, metavar='PX',
                        help='shrink images to this (288); smaller ones stay, and 0 keeps all bytes, or with --raw '
                        'all pixels')
    parser.add_argument('--quality', type=int, metavar='Q', help='of the JPEGs (90), with 4:2:0 chroma')
    parser.add_argument('--shards', type=at_least(1), metavar='N',
                        help='per split (default: of about 270 MB, at least 8)')
    parser.add_argument('--seed', type=at_least(0), default=0, metavar='S', help='of the order within the shards (0)')
    parser.add_argument('--workers', type=int, default=num_cores(), metavar='N',
                        help='processes (default: one per core)')
    parser.add_argument('--verify', action='store_true', help='read all shards of DST and compare their checksums')
    args = parser.parse_args(argv)
    with exit_on_user_error():
        run(args)


def run(args: Namespace) -> None:
    if args.destination is None and not args.verify:
        raise UserError('give two folders: tools/pack_dataset.py SRC DST, or one: --verify DST')
    if args.workers < 0:
        raise UserError(f'--workers {args.workers}: give 0 or more processes')
    if args.raw and (args.videos or args.frames):
        raise UserError('--raw is for images: leave it out for videos, whose frames --frames stores as JPEGs')
    if args.raw and args.quality is not None:
        raise UserError(f'--quality {args.quality} is of JPEGs, and --raw stores none: give one of the two')
    from timm_rs.data.listing import summary
    from timm_rs.data.shards.encoding import FRAMES, IMAGES, OF_IMAGES, RAW, VIDEOS
    from timm_rs.data.shards.packing import pack, verify
    from timm_rs.data.shards.raw_size import QUALITY, check_disk, in_words, raw_size
    destination = args.destination or args.source
    kind = FRAMES if args.frames else VIDEOS if args.videos else RAW if args.raw else IMAGES
    quality = QUALITY if args.quality is None else args.quality
    if args.destination is not None:
        sources = open_source(args)
        shards = dict.fromkeys(sources, args.shards)
        if args.raw:
            sizes = {split: raw_size(samples, args.short_side) for split, samples in sources.items()}
            print('\n'.join(check_disk(sizes, destination)), flush=True)
            shards = {split: args.shards or size.num_shards for split, size in sizes.items()}
        for split, samples in sources.items():
            packed = pack(samples, destination, split, args.short_side, quality, shards[split], args.seed, args.workers,
                          source=f'{args.dataset} {args.source}'.strip(), kind=kind)
            bad = f'; bad images left out: {packed.num_bad}, see {Path(destination, "bad_samples.csv")}'
            nouns = IMAGES if kind in OF_IMAGES else VIDEOS
            print(f'{split}: {packed.num_samples} {nouns} in {packed.num_shards} shards, '
                  f'{in_words(packed.num_bytes)}{bad if packed.num_bad else ""}')
            if samples.listed:
                print(samples.listed)
            if samples.left_out:
                print(f'{split}: left out: {summary(samples.left_out)}')
    if args.verify:
        num_shards, num_bytes = verify(destination)
        print(f'{destination}: {num_shards} shards, {in_words(num_bytes)}, all as they were written')


def open_source(args: Namespace) -> 'dict[str, Samples]':
    """The samples of each split that is asked for."""
    from timm_rs.data.datasets import create_datasets, open_split
    from timm_rs.data.samples import as_samples
    from timm_rs.data.videos import open_video_split
    open_one = open_video_split if args.videos or args.frames else open_split
    train, validation = (None, None) if args.split else present_splits(args)
    if not (train and validation):
        only = args.split or train or validation or 'train'  # a folder without splits is one
        recipe = Recipe(data_dir=args.source, dataset=args.dataset, class_map=args.class_map,
                        class_folder=args.class_folder, train_split=only, val_split='')
        return {only: as_samples(create_datasets(recipe, open_one=open_one)[0])}
    recipe = Recipe(data_dir=args.source, dataset=args.dataset, class_map=args.class_map,
                    class_folder=args.class_folder, train_split=train, val_split=validation)
    datasets = create_datasets(recipe, open_one=open_one)
    return {train: as_samples(datasets[0]), validation: as_samples(datasets[1])}


def present_splits(args: Namespace) -> tuple[str | None, str | None]:
    """train and validation, or None for the one that the folder lacks; a named dataset is taken to have both."""
    from timm_rs.data.datasets import TRAIN_NAMES, VALIDATION_NAMES
    from timm_rs.data.videos import LISTS
    def is_there(names: tuple[str, ...]) -> bool:
        suffixes = ('', '.tar', *(LISTS if args.videos or args.frames else ()))
        paths = (Path(args.source, name + suffix) for name in names for suffix in suffixes)
        return bool(args.dataset) or any(path.exists() for path in paths)
    return 'train' if is_there(TRAIN_NAMES) else None, 'validation' if is_there(VALIDATION_NAMES) else None
