"""Updates that would spoil the weights are found and left out."""

import torch

from timm_rs.device.torch_device import Device
from timm_rs.training.state import UNKNOWN, Position, Training


class Guard:
    """Makes an update only if its losses and gradients are finite in all processes; otherwise it leaves no trace.

    The host asks before each update, which costs nothing where the device is the CPU.
    """

    def __init__(self, training: Training, device: Device, position: Position):
        self.training, self.device, self.position = training, device, position
        self.loss_sum = device.put(torch.zeros(1))  # of the batches in this update
        self.num_right = device.put(torch.zeros(1))
        self.num_images = 0
        self.weights = list(training.model.parameters())
        # A forward pass also writes: the statistics of batch norm.
        self.buffers = [buffer for buffer in training.model.buffers() if buffer.numel()]
        self.before = [buffer.clone() for buffer in self.buffers]

    def add(self, loss: torch.Tensor, num_right: torch.Tensor | None, num_images: int) -> None:
        """Take note of a batch's mean loss, and of how many images are right if that can be said."""
        self.loss_sum += loss * num_images
        self.num_right += UNKNOWN if num_right is None else num_right
        self.num_images += num_images

    def begin(self, unscale: bool) -> bool:
        """Whether to make the update: its losses and, except for float16, its gradients are finite.

        float16 has a scaler that leaves out updates on its own, as it often must while it looks for its scale;
        `unscale` its gradients for those who look at them.
        """
        if unscale:
            self.training.scaler.unscale_(self.training.optimizer)
        checked = self.loss_sum
        if not self.training.scaler.is_enabled():
            checked = checked + torch.nn.utils.get_total_norm(self._gradients())
        self.made = not self.device.agree(not torch.isfinite(checked))
        self.hopeless = not self.made
        if self.made:
            self.training.unreported[0] += self.loss_sum[0]
            self.training.unreported[1] += self.num_images
            self.training.unreported[3] += self.num_right[0]
            self.device.copy(self.before, self.buffers)
        else:
            self.device.copy(self.buffers, self.before)
            if self.training.scaler.is_enabled():
                scaler = self.training.scaler
                scaler.update(scaler.get_scale() * scaler.get_backoff_factor())
        return self.made

    def step(self) -> None:
        """Let the optimizer update the weights."""
        scaler = self.training.scaler
        scale = scaler.get_scale()
        scaler.step(self.training.optimizer)
        scaler.update()
        # float16's scaler leaves out updates too; a scale below 1 will not be found any more.
        self.made = scaler.get_scale() >= scale
        self.hopeless = not self.made and scaler.get_scale() < 1

    def end(self) -> None:
        """Count the update, whether it was made or not."""
        if not self.made:
            self.training.unreported[2] += 1 / self.device.num_summed
        self.position.skipped_in_a_row = self.position.skipped_in_a_row + 1 if self.hopeless else 0
        self._start_over()

    def report(self) -> tuple[torch.Tensor, ...]:
        """What the host should hear of with the next report, besides `Training.unreported`."""
        return ()

    def _gradients(self) -> list[torch.Tensor]:
        return [weight.grad for weight in self.weights if weight.grad is not None]

    def _start_over(self) -> None:
        self.loss_sum.zero_()
        self.num_right.zero_()
        self.num_images = 0


class DeviceGuard(Guard):
    """The same without asking: the device decides, so that the host never waits for it between reports.

    Fused optimizers skip an update in their kernel (`found_inf`). All others make it, and what it changed is put back
    on the device. The host hears of it with the reports.
    """

    def __init__(self, training: Training, device: Device, position: Position):
        super().__init__(training, device, position)
        self.max_in_a_row = training.settings.max_nonfinite_steps
        self.buffers, self.before = device.bits(self.buffers), device.bits(self.before)
        self.kept: list[torch.Tensor] = []  # weights and optimizer state before the update
        self.is_fused = bool(getattr(training.optimizer, '_step_supports_amp_scaling', False))
        # A run that was stopped for too many may have been given a remedy: it gets another try.
        in_a_row = min(position.skipped_in_a_row, self.max_in_a_row)
        training.in_a_row = device.put(torch.tensor([float(in_a_row)]))
        device.end_step()  # the first update finds what the others find

    @torch.no_grad()
    def begin(self, unscale: bool) -> bool:
        """True, since the device knows; puts the statistics of batch norm back where the update is left out."""
        if self.training.scaler.is_enabled():
            self.training.scaler.unscale_(self.training.optimizer)
        loss_is_finite = torch.isfinite(self.loss_sum)
        finite = self.device.are_finite(self._gradients()) & loss_is_finite
        self.finite, self.loss_is_finite = self.device.all(torch.cat([finite, loss_is_finite])).unbind()
        self.device.put_back(self.finite, self.buffers, self.before)
        self.before = self.device.keep(self.buffers, self.before)
        if not self.is_fused:
            # An optimizer may begin to keep something in this very step, and nothing is known from before it.
            self.device.put_zeros(self.finite, self._gradients())
        return True

    @torch.no_grad()
    def step(self) -> None:
        optimizer, scaler = self.training.optimizer, self.training.scaler
        if self.is_fused:
            optimizer.found_inf = 1 - self.finite.float()  # type: ignore[attr-defined]
            optimizer.step()
            del optimizer.found_inf  # type: ignore[attr-defined]
        else:
            changing = self.training.tensors()
            self.kept = self.device.keep(changing, self.kept)
            optimizer.step()
            self.device.put_back(self.finite, changing, self.kept)
            if self.device.is_lazy:  # what still lives when the step is run would be one of its results
                self.kept = []
        scaler.update()
        if self.training.ema is not None:
            self.training.ema.share = self.finite.float()

    @torch.no_grad()
    def end(self) -> None:
        scaler, finite = self.training.scaler, self.finite.float()[None]
        is_hopeless = ~self.finite
        if scaler.is_enabled():  # without a finite loss, or with a scale that will not be found any more
            is_hopeless = is_hopeless & (~self.loss_is_finite | (scaler.scale(torch.ones_like(self.loss_sum))[0] < 1))
        self.training.unreported += torch.cat([
            torch.where(self.finite, self.loss_sum, 0.0), finite * self.num_images,
            (1 - finite) / self.device.num_summed, torch.where(self.finite, self.num_right, 0.0)])
        # Too many in a row stay too many until the host hears of it.
        in_a_row = self.training.in_a_row
        self.training.in_a_row = torch.where(
            in_a_row > self.max_in_a_row, in_a_row, (in_a_row + 1) * is_hopeless.float())
        self._start_over()

    def report(self) -> tuple[torch.Tensor, ...]:
        return (self.training.in_a_row,)
