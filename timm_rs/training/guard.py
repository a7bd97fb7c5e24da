"""Updates that would spoil the weights are found and left out."""

import torch

from timm_rs.device import Device
from timm_rs.training.state import Place, Training


class Guard:
    """Asks before each update whether its losses and gradients are finite, and if not takes back what led there."""

    def __init__(self, training: Training, device: Device, place: Place):
        self.training, self.device, self.place = training, device, place
        self.loss_sum = device.put(torch.zeros(1))  # of the batches in this update
        self.num_images = 0
        # A forward pass also writes: the statistics of batch norm.
        self.buffers = [buffer for buffer in training.model.buffers() if buffer.numel()]
        self.before = [buffer.clone() for buffer in self.buffers]

    def add(self, loss: torch.Tensor, num_images: int) -> None:
        """Take note of a batch's mean loss."""
        self.loss_sum += loss * num_images
        self.num_images += num_images

    def is_finite(self) -> bool:
        """Whether the losses, and but for float16 the gradients, are finite in all processes; then they count.

        float16 has a scaler that leaves out updates on its own, as it often must while it looks for its scale.
        """
        checked = self.loss_sum if self.training.scaler.is_enabled() else self.loss_sum + self._gradient_norm()
        finite = not self.device.agree(not torch.isfinite(checked))
        if finite:
            self.training.unreported[0] += self.loss_sum[0]
            self.training.unreported[1] += self.num_images
            self._copy(self.before, self.buffers)
        self._start_over()
        return finite

    def undo(self) -> None:
        """Leave out an update that was not finite."""
        self._copy(self.buffers, self.before)
        if self.training.scaler.is_enabled():
            self.training.scaler.update(self.training.scaler.get_scale() * self.training.scaler.get_backoff_factor())

    def settle(self, made: bool, hopeless: bool) -> None:
        """End the update: count it when it was not `made`, and as one in a row when it was `hopeless`."""
        if not made:
            self.training.unreported[2] += 1 / self.device.world_size  # reports sum over processes
        self.place.skipped_in_a_row = self.place.skipped_in_a_row + 1 if hopeless else 0

    def report(self) -> tuple[torch.Tensor, ...]:
        """What the host should hear of with the next report, besides `Training.unreported`."""
        return ()

    def _gradient_norm(self) -> torch.Tensor:
        return torch.nn.utils.get_total_norm(self._gradients())

    def _gradients(self) -> list[torch.Tensor]:
        return [weight.grad for weight in self.training.model.parameters() if weight.grad is not None]

    def _start_over(self) -> None:
        self.loss_sum.zero_()
        self.num_images = 0

    @staticmethod
    def _copy(targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
        if targets:  # a network without batch norm has none
            torch._foreach_copy_(targets, sources)


class LazyGuard(Guard):
    """The same without asking: where operations are only collected, every answer would cost the wait for all of them.

    Each update is made and then, on the device, taken back where it was not finite. The host hears of it with the
    reports.
    """

    def __init__(self, training: Training, device: Device, place: Place):
        super().__init__(training, device, place)
        self.in_a_row = device.put(torch.tensor([float(place.skipped_in_a_row)]))
        device.end_step()  # the first update finds what the others find

    @torch.no_grad()
    def is_finite(self) -> bool:
        """True, for the device knows; remembers what `settle` may have to take back."""
        self.finite = torch.isfinite(self.loss_sum + self._gradient_norm()).squeeze()
        for gradient in self._gradients():  # what the optimizer only now begins to keep must be finite as well
            gradient.copy_(torch.where(self.finite, gradient, 0.0))
        self.kept = [(tensor, tensor.clone()) for tensor in self.training.tensors()]
        return True

    @torch.no_grad()
    def settle(self, made: bool, hopeless: bool) -> None:
        for tensor, before in [*self.kept, *zip(self.buffers, self.before, strict=True)]:
            tensor.copy_(torch.where(self.finite, tensor, before))
        self.kept = []
        for before, buffer in zip(self.before, self.buffers, strict=True):
            before.copy_(buffer)
        finite = self.finite.float()[None]
        self.training.unreported += torch.cat([
            torch.where(self.finite, self.loss_sum, 0.0), finite * self.num_images, 1 - finite])
        self.in_a_row.copy_((self.in_a_row + 1) * (1 - finite))
        self._start_over()

    def report(self) -> tuple[torch.Tensor, ...]:
        return (self.in_a_row,)
