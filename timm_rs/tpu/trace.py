"""A training step as a program for the TPU's compiler, as torch_xla traces it on the CPU: nothing is trained."""

import dataclasses
import multiprocessing
import os
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from PIL import Image

from timm_rs.data.samples import Samples
from timm_rs.device.xla import XlaDevice
from timm_rs.errors import UserError
from timm_rs.recipe.knobs import Recipe
from timm_rs.tasks import create_task
from timm_rs.training.build import build_training
from timm_rs.training.engine import train_updates
from timm_rs.training.runlog import Progress
from timm_rs.training.state import Position

IMAGENET_CLASSES = 1000


class BlankSamples(Samples):
    """`count` black images of one class, which need no disk."""

    classes = {}

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> tuple[Image.Image, int]:
        return Image.new('RGB', (32, 32)), 0


def create_program(recipe: Recipe, num_devices: int) -> bytes:
    """`create_program_on` torch_xla's CPU devices, in a process of its own: the compiler needs the memory it takes.

    Raises UserError as `create_program_on` does, without torch_xla, and when memory does not suffice.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        try:
            return pool.submit(_create_program, recipe, num_devices).result()
        except BrokenProcessPool:
            raise UserError('the process that traces the step was killed; it takes some 30 bytes of memory per '
                            'parameter and device: free some, or take fewer --chips') from None


def _create_program(recipe: Recipe, num_devices: int) -> bytes:
    os.environ |= dict(PJRT_DEVICE='CPU', CPU_NUM_DEVICES=str(num_devices))
    warnings.simplefilter('ignore')
    device = XlaDevice()
    try:
        return create_program_on(device, recipe)
    finally:
        device.close()


def create_program_on(device: XlaDevice, recipe: Recipe) -> bytes:
    """The program of one training step of `recipe`, as a serialized HloModuleProto. Nothing is trained.

    It is the step of the engine with all that belongs to it, from uint8 images on: one batch per update, on the
    devices of `device`. Raises UserError for a recipe that cannot be trained there.
    """
    recipe = dataclasses.replace(
        recipe, num_classes=recipe.num_classes or IMAGENET_CLASSES, grad_accum_steps=1, log_interval=sys.maxsize,
        workers=0, aa=None, randaugment='timm')  # what happens on the host is not in the program
    samples = BlankSamples(4 * recipe.batch_size * device.num_devices)
    training = build_training(recipe, device, create_task(recipe), samples)
    device.prepare(training.model, training.optimizer, training.average)

    position, programs, run = Position(), [], device.end_step

    def end_step() -> None:
        if position.update == 0:  # what the loop needs once
            run()
        elif position.update == 1:  # optimizers make what they keep in the first update: the second is like all others
            device.forget_collected()
        else:
            programs.append(device.collected_program())

    device.end_step = end_step  # type: ignore[method-assign]
    progress = Progress(4, 0, 1, enabled=False)
    try:
        for _ in train_updates(training, training.train_loader, device, position, progress):
            if programs:
                break
    finally:
        device.end_step = run  # type: ignore[method-assign]
        device.forget_collected()
    return programs[0]
