#!/usr/bin/env python
"""Measure speed here: candidates in turn, medians and spreads, rows with provenance.

examples:
  python tools/benchmark.py loader --recipe train_recipes/rs50.yaml
  python tools/benchmark.py loader --recipe train_recipes/rs152_i224.yaml --data-dir imagenet --workers 8
"""

import dataclasses
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import timm

import timm_rs  # noqa: F401  (registers the models)
from timm_rs.benchmark import append_rows, decoding_psnr, provenance, ratios, spread, take_turns, write_photos
from timm_rs.data.datasets import create_datasets
from timm_rs.data.loader import create_train_loader, num_workers
from timm_rs.data.samples import Samples, Subset, as_samples
from timm_rs.data.shards import open_shards, pack
from timm_rs.data.workers import num_cores
from timm_rs.device import Device
from timm_rs.errors import UserError, exit_on_user_error
from timm_rs.recipe import Parser, Recipe, add_recipe_arguments, resolve


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog='benchmark.py', description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    loader = commands.add_parser('loader', help='the data loader beside timm\'s: CPU time and images per second')
    loader.add_argument('--images', type=int, default=2048, help='images per turn, in several epochs if need be [2048]')
    loader.add_argument('--rounds', type=int, default=7, help='turns of each loader that count [7]')
    loader.add_argument('--no-pack', action='store_true', help='leave out packed shards')
    loader.add_argument('--csv', type=Path, help='add the rows to this file, e.g. results/loader.csv')
    add_recipe_arguments(loader)
    arguments = parser.parse_args(argv)
    with exit_on_user_error():
        recipe, _ = resolve(arguments)
        benchmark_loader(recipe, arguments)


def benchmark_loader(recipe: Recipe, arguments: Any) -> None:
    if min(arguments.images, arguments.rounds) < 1:
        raise UserError('--images and --rounds must be at least 1')
    if not recipe.data_dir and not recipe.dataset:
        recipe = dataclasses.replace(recipe, data_dir=str(write_photos()))
    recipe = dataclasses.replace(recipe, val_split='')
    device = Device('cpu')
    samples, _, num_classes = create_datasets(recipe)
    if not isinstance(samples, Samples):
        raise UserError(f'dataset {recipe.dataset} is streamed, and has no loader but timm\'s; give a folder or shards')
    if len(samples) > arguments.images:
        samples = Subset(samples, range(arguments.images))
    recipe = dataclasses.replace(
        recipe, batch_size=min(recipe.batch_size, len(samples)), num_classes=num_classes or recipe.num_classes or 1000)
    config = timm.data.resolve_data_config(
        dataclasses.asdict(recipe), pretrained_cfg=timm.get_pretrained_cfg(recipe.model).to_dict())
    size = config['input_size'][-1]

    with tempfile.TemporaryDirectory() as scratch:
        fast = dict(loader='fast', preprocessing='timm')
        candidates: dict[str, tuple[dict[str, Any], Samples]] = {
            'timm': (dict(loader='timm', preprocessing='timm', randaugment='timm'), samples),
            'fast': (fast, samples),
            'fast, decode scaled': (fast | dict(decode='scaled'), samples)}
        if recipe.preprocessing == 'tf':
            candidates['fast, released crops'] = (dict(loader='fast'), samples)
        if not arguments.no_pack:
            pack(samples, scratch, 'train', workers=num_cores())
            candidates['fast, packed'] = (fast, as_samples(open_shards(scratch, 'train')))
        costs = take_turns({
            name: partial(read, dataclasses.replace(recipe, **changes), config, data, arguments.images, device)
            for name, (changes, data) in candidates.items()}, arguments.rounds, label='loaders')

    exact, scaled, share = decoding_psnr(samples, size, min(len(samples), 200))
    psnr = {'fast': exact, 'fast, decode scaled': scaled}
    rows = []
    print(f'{recipe.model} at {size} px, {num_workers(recipe)} workers, {arguments.images} images per turn, '
          f'{arguments.rounds} rounds; CPU of all processes')
    print(f'{"loader":20} {"CPU ms/image (min-max)":>26} {"images/s":>9} {"timm / this, CPU (min-max)":>28}')
    for name, own in costs.items():
        cpu, speed = spread([1e3 * cost.cpu for cost in own]), spread([1 / cost.wall for cost in own])
        cpu_ratio, wall_ratio = (spread(ratios(costs['timm'], own, which)) for which in ('cpu', 'wall'))
        print(f'{name:20} {cpu["median"]:10.3f} ({cpu["min"]:.3f}-{cpu["max"]:.3f}) {speed["median"]:9.0f} '
              f'{cpu_ratio["median"]:13.2f} ({cpu_ratio["min"]:.2f}-{cpu_ratio["max"]:.2f})')
        rows.append(dict(
            loader=name, img_size=size, workers=num_workers(recipe), images=arguments.images, rounds=arguments.rounds,
            **{f'cpu_ms_{key}': value for key, value in cpu.items()},
            **{f'images_per_s_{key}': value for key, value in speed.items()},
            **{f'cpu_ratio_to_timm_{key}': value for key, value in cpu_ratio.items()},
            **{f'wall_ratio_to_timm_{key}': value for key, value in wall_ratio.items()},
            psnr_db_median=psnr.get(name),
            **provenance()))
    print(f'median PSNR against PIL\'s full decode and antialiased bicubic of the same crop: exact {exact:.1f} dB; '
          + (f'scaled {scaled:.1f} dB in the {100 * share:.0f} % of crops that it decodes smaller' if share else
             'no crop is large enough to decode it smaller'))
    if arguments.csv:
        append_rows(arguments.csv, rows)


def read(recipe: Recipe, config: dict[str, Any], samples: Samples, images: int, device: Device) -> int:
    """Have a new loader make at least `images` images on the host; returns how many it made."""
    assert recipe.num_classes
    loader = create_train_loader(samples, recipe, config, recipe.num_classes, device)
    done = epoch = 0
    while done < images:
        loader.set_epoch(epoch)
        done += sum(len(batch) for batch, _ in loader.host_batches())
        epoch += 1
    return done  # the loader goes, and its workers with it


if __name__ == '__main__':
    main()
