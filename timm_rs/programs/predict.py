"""Print the most likely classes of images or videos, or draw what a network says of their pixels.

Exit status: 0 when all of them are good, 1 when some cannot be used (they are named), 2 when nothing can be done.
"""
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from timm_rs.data.workers import num_cores
from timm_rs.errors import UserError, exit_on_user_error
from timm_rs.files import write_csv
from timm_rs.inference.options import SUFFIXES, add_model_arguments
from timm_rs.recipe.command_line import Parser
from timm_rs.tasks import find_task

if TYPE_CHECKING:
    from timm_rs.device.torch_device import Device
    from timm_rs.inference.predict import Prediction
    from timm_rs.inference.source import Source

COLUMNS = ('rank', 'class_index', 'class_name', 'probability')
EXAMPLE = """examples:
  python tools/predict.py output/train/NAME cat.jpg photos/ https://example.org/dog.jpg
  python tools/predict.py resnetrs_50 photos --top-k 3 --csv predictions.csv
  python tools/predict.py rs50.onnx photos
  python tools/predict.py output/train/SEGMENTATION photos --pictures drawn
  python tools/predict.py output/train/MOTION clip.mp4 videos/ folder_of_frames/ --pictures strips
"""


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, epilog=EXAMPLE)
    add_model_arguments(parser, pretrained=True, exports=True)
    parser.add_argument('images', nargs='+', metavar='IMAGES', help='files, folders (with all '
                        'below), URLs; videos for networks for clips')
    parser.add_argument('--top-k', type=int, metavar='K',
                        help='classes of each [5; where there may be any number, all that are there]')
    parser.add_argument('--csv', type=Path, metavar='FILE', help='also write a row per image and class there')
    parser.add_argument('--pictures', type=Path, metavar='FOLDER', help='where they are drawn: of tasks with an answer '
                        'for every pixel, or boxes [predictions]; of videos, frames and classes, only where given')
    parser.add_argument('--min-score', type=float, default=0.5, metavar='S',
                        help='of boxes that are drawn, and of tags, where an image may have several classes: 0 to 1 '
                             '[%(default)s]')
    parser.add_argument('--batch-size', type=int, metavar='N', help='images at once [32], or videos [4]')
    parser.add_argument('--workers', type=int, metavar='N', help='processes that decode [by how much there is]')
    parser.add_argument('--device', metavar='D', help='cpu or cuda [a GPU where there is one]')
    args = parser.parse_args(argv)
    with exit_on_user_error():
        if run(args):
            raise SystemExit(1)


def run(args: Namespace) -> int:
    """The number of images that cannot be used."""
    if any(number is not None and number < 1 for number in (args.top_k, args.batch_size)) or (args.workers or 0) < 0:
        raise UserError('--top-k and --batch-size must be at least 1, --workers 0 or more')
    if args.csv and not args.csv.parent.is_dir():
        raise UserError(f'--csv {args.csv}: there is no folder {args.csv.parent}')
    from timm_rs.device.torch_device import Device
    from timm_rs.inference.export import as_source, open_export
    from timm_rs.inference.pictures import draw_strip
    from timm_rs.inference.predict import find_images, predict
    from timm_rs.inference.source import open_model
    device = Device(args.device or 'cuda', fall_back=not args.device)
    fixed: Any = 'batch'
    if Path(args.model).suffix in SUFFIXES.values():
        exported = open_export(Path(args.model))
        source, device = as_source(Path(args.model), exported), Device('cpu')
        fixed = exported.metadata['input']['shape'][0]
    else:
        source = open_model(
            args.model, args.pretrained, args.num_classes, args.img_size, args.model_kwargs, args.weights,
            args.trust)
    task = find_task(source.recipe.task)
    images = find_images(args.images, source.name, task.is_of_videos)
    if task.parts:
        return draw(args, source, images, device)
    usual, few = (4, 4) if task.is_of_videos else (32, 64)
    batch_size = (args.batch_size or usual) if fixed == 'batch' else fixed
    workers = min(len(images) // few, num_cores()) if args.workers is None else args.workers
    rows, num_bad, columns, taken = list[dict[str, Any]](), 0, (task.noun, *COLUMNS), set[str]()
    for prediction in predict(source, images, args.top_k, batch_size, workers, device, args.min_score):
        num_bad += bool(prediction.problem)
        say(prediction, args.min_score)
        if args.pictures and prediction.frames is not None:
            draw_strip(prediction, args.pictures, taken)
        rows += [dict(zip(columns, (prediction.image, rank, *found), strict=True))
                 for rank, found in enumerate(prediction.classes, start=1)]
        if not (prediction.classes or prediction.problem):  # which says that there is no tag
            rows.append(dict.fromkeys(columns, '') | {task.noun: prediction.image})
    if args.csv:
        try:
            write_csv(args.csv, rows, columns)
        except OSError as error:
            raise UserError(f'--csv {args.csv} cannot be written: {error.strerror}') from error
    return num_bad


def draw(args: Namespace, source: 'Source', images: list[str], device: 'Device') -> int:
    """The number of images that cannot be used; pictures of the others."""
    from timm_rs.inference.pictures import draw_images
    if args.csv:
        raise UserError('--csv is for classes of images; pictures of what a network says of pixels and boxes go to '
                        '--pictures')
    num_bad = 0
    for drawn in draw_images(source, images, args.pictures or Path('predictions'), device, args.min_score):
        num_bad += bool(drawn.problem)
        say_line(f'{drawn.image}: {drawn.problem or f"{drawn.words}: {drawn.file}"}', bool(drawn.problem))
    return num_bad


def say(prediction: 'Prediction', min_score: float) -> None:
    classes = ', '.join(f'{found.name} {100 * found.probability:.1f} %' for found in prediction.classes
                        ) or f'no class of {100 * min_score:g} % or more'
    say_line(f'{prediction.image}: {prediction.problem or classes}', bool(prediction.problem))


def say_line(line: str, is_problem: bool) -> None:
    line = line.encode(errors='surrogateescape').decode(errors='backslashreplace')  # not all is UTF-8
    tqdm.write(line, file=sys.stderr if is_problem else sys.stdout)
