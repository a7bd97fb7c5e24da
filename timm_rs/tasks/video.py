"""One class per video: trained on clips, evaluated on as many views of each as wanted."""

import dataclasses
from typing import Any

import torch
from torch import nn

from timm_rs.data.listing import MISSING
from timm_rs.data.samples import AnyDataset
from timm_rs.data.videos import open_video_split
from timm_rs.errors import UserError, blaming
from timm_rs.recipe.command_line import flag
from timm_rs.recipe.declaring import knob
from timm_rs.recipe.knobs import Recipe
from timm_rs.tasks.classification import Classification
from timm_rs.transforms.clips import EvalClips, TrainClip
from timm_rs.transforms.create import SETTINGS, create_limits

# What a recipe may say of augmentation, and why clips have no more. The first value is what to give instead.
NOT_THEIRS = 'the authors have none for clips'
OF_IMAGES = 'it is made for images, and would take frames for columns'
ALLOWED: dict[str, tuple[tuple[Any, ...], str]] = {
    'cutmix': ((0.0,), OF_IMAGES), 'cutmix_minmax': ((None,), OF_IMAGES), 'reprob': ((0.0,), OF_IMAGES),
    'aa': ((None, ''), NOT_THEIRS), 'color_jitter': ((0.0, None), NOT_THEIRS),
    'grayscale_prob': ((None, 0.0), NOT_THEIRS), 'gaussian_blur_prob': ((None, 0.0), NOT_THEIRS),
    'vflip': ((0.0,), NOT_THEIRS), 'train_crop_mode': ((None, 'rrc'), NOT_THEIRS),
    'train_interpolation': (('bilinear', ''), 'as the authors have it'),
    'interpolation': (('bilinear', ''), 'as the authors have it'),
    'crop_pct': ((1.0, None), 'views take all of the short side'),
    'input_img_mode': ((None, 'RGB'), 'frames are RGB'), 'in_chans': ((None, 3), 'frames are RGB'),
    'randaugment': (('timm',), NOT_THEIRS), 'preprocessing': (('timm',), 'clips are always made as by the authors'),
    'decode': (('exact',), 'crops of frames are not decoded at a fraction'),
    'loader': (('fast',), 'timm\'s reads images'), 'pseudo_dir': (('',), 'pools are of images'),
}


def as_views(num_frames: int, frame_stride: int = 2) -> dict[str, Any]:
    """Values of a recipe for a network of which no run says more than its clips: it sees one of each video."""
    knobs = dict(num_frames=num_frames, frame_stride=frame_stride)
    return dict(task=Video.name, task_knobs={Video.name: knobs}, color_jitter=0.0, train_interpolation='bilinear')


class Video(Classification):
    """Clips (N, C, T, H, W) of videos, and views of them (N * views, C, T, H, W) where there are several."""

    name = 'video'
    noun = 'video'
    hub = ('video-classification', 'Video Classification')
    is_of_videos = True

    @dataclasses.dataclass
    class Knobs:
        num_frames: int = knob(32, 'frames of a clip', low=1, high=4096)
        frame_stride: int = knob(2, 'frames from one of a clip to the next', low=1, high=4096)
        eval_clips: int = knob(1, 'clips of each video at evaluation; the paper has 10', low=1, high=100)
        eval_crops: int = knob(
            1, 'crops of each of these clips: 1, or 3 along the long side as in the paper', low=1, high=3)
        eval_img_size: int | None = knob(
            None, 'image size at evaluation, where views are as high or wide as the short side; when unset, that of '
            'training', low=1, high=16384)

    def __init__(self, recipe: Recipe):
        super().__init__(recipe)
        self.views_at_once = recipe.validation_batch_size or recipe.batch_size
        self.num_missing = 0
        wrong = []
        for name, (allowed, reason) in ALLOWED.items():
            if (value := getattr(recipe, name)) not in allowed:
                remedy = f'leave out {name}' if getattr(Recipe(), name) in allowed else f'{flag(name)} {allowed[0]}'
                wrong.append(f'{name} {value} ({reason}): {remedy}')
        if 'num_frames' in recipe.model_kwargs:
            wrong.append(f'num_frames in model_kwargs: give {flag("num_frames")}')
        if recipe.device.startswith('xla'):
            wrong.append('device xla: give cpu or cuda')
        if self.knobs.eval_crops == 2:
            wrong.append(f'{flag("eval_crops")} 2: give 1 or 3')
        if wrong:
            raise UserError(f'task video does not take {"; ".join(wrong)}')

    def open_split(self, recipe: Recipe, split: str, is_training: bool) -> AnyDataset:
        return open_video_split(recipe, split, is_training)

    def create_datasets(
            self, recipe: Recipe, need_training: bool = True, known: dict[Any, int] | None = None, source: str = ''
    ) -> tuple[Any | None, Any | None, int | None]:
        """Of the validation data it counts what is missing, for `results`."""
        train, validation, num_classes = super().create_datasets(recipe, need_training, known, source)
        self.num_missing = sum(reason == MISSING for _, reason in getattr(validation, 'left_out', ()))
        return train, validation, num_classes

    def create_model(self, **arguments: Any) -> nn.Module:
        """As of any task, with `num_frames`. Raises UserError for a network that does not know it."""
        try:
            return super().create_model(**arguments | dict(num_frames=self.knobs.num_frames))
        except TypeError as error:
            if 'num_frames' not in str(error):
                raise
            raise UserError(f'{arguments["model_name"]} takes images, and task video has clips: take resnetrs3d_50 or '
                            'another network for clips') from None

    def eval_config(self, data_config: dict[str, Any]) -> dict[str, Any]:
        """At the image size of the views."""
        if not (size := self.knobs.eval_img_size):
            return data_config
        return data_config | dict(input_size=(data_config['input_size'][0], size, size))

    def shape(self, data_config: dict[str, Any], is_training: bool) -> tuple[int, ...]:
        channels, height, width = data_config['input_size']
        clip = self.knobs.num_frames, height, width, channels
        views = 1 if is_training else self.knobs.eval_clips * self.knobs.eval_crops
        return clip if views == 1 else (views, *clip)

    def create_transform(
            self, recipe: Recipe, data_config: dict[str, Any], is_training: bool) -> TrainClip | EvalClips:
        _, height, width = data_config['input_size']
        if height != width:
            raise UserError(f'task video makes square clips, got input_size {data_config["input_size"]}')
        knobs, limits = self.knobs, create_limits(recipe)
        if not is_training:
            return EvalClips(height, knobs.num_frames, knobs.frame_stride, knobs.eval_clips, knobs.eval_crops, limits)
        if recipe.no_aug:
            return EvalClips(height, knobs.num_frames, knobs.frame_stride, limits=limits)
        with blaming(SETTINGS):
            return TrainClip(height, knobs.num_frames, knobs.frame_stride, recipe.scale, recipe.ratio, recipe.hflip,
                             limits)

    def forward(self, model: nn.Module, images: torch.Tensor, targets: Any) -> torch.Tensor:
        """Logits (N, classes); of several views of each video the logarithm of their mean probability.

        The model sees no more views at a time than an evaluation batch has images, however many a video has.
        """
        views = len(images) // len(targets)
        if views == 1:
            return model(images)  # type: ignore[no-any-return]
        logits = torch.cat([model(chunk).float() for chunk in images.split(self.views_at_once)])
        return logits.softmax(1).unflatten(0, (-1, views)).mean(1).log()

    def middle(self, views: torch.Tensor) -> torch.Tensor:
        """Of the views (N, C, T, H, W) of a video all frames of all clips (C, N', H, W), in order; the middle crop."""
        clips = views.unflatten(0, (-1, self.knobs.eval_clips))[self.knobs.eval_crops // 2]
        return clips.movedim(0, 1).flatten(1, 2)

    def loading(self, data_config: dict[str, Any]) -> tuple[str, list[str]]:
        """The views of a video (views, C, T, H, W), as they were evaluated."""
        knobs, config = self.knobs, self.eval_config(data_config)
        views = config['input_size'][1], knobs.num_frames, knobs.frame_stride, knobs.eval_clips, knobs.eval_crops
        mean, std = (tuple(map(float, config[name])) for name in ('mean', 'std'))
        return 'from timm_rs.transforms.clips import EvalClips  # reads videos with PyAV: pip install av', [
            '# size, frames, frames from one to the next, clips of a video, crops of a clip',
            "with open('video.mp4', 'rb') as file:",
            f'    views = torch.from_numpy(EvalClips{views}(file.read(), 0))',
            f'x = (views / 255 - torch.tensor({mean})) / torch.tensor({std})',
            'x = x.reshape(-1, *x.shape[-4:]).movedim(-1, 1)  # a batch of clips (N, C, T, H, W)']

    def usage(self, num_outputs: int) -> list[str]:
        return ['    probabilities = model(x).softmax(dim=1).mean(0)',
                f'print(probabilities.topk({min(5, num_outputs)}))']

    def results(self, computed: dict[str, float]) -> dict[str, Any]:
        """With what they were measured on."""
        knobs = self.knobs
        return super().results(computed) | dict(
            num_missing=self.num_missing, views=f'{knobs.eval_clips}x{knobs.eval_crops}',
            frames=f'{knobs.num_frames}x{knobs.frame_stride}')
