"""What every transform of samples is, whatever it makes them of."""

from typing import Any


class SampleTransform:
    """A sample as it was read, and a seed -> uint8 pixels, always the same for the same seed.

    Raises `decode.BadImage` for a sample that cannot be used.
    """

    def __call__(self, source: Any, seed: int) -> Any:
        raise NotImplementedError

    def with_target(self, source: Any, target: Any, seed: int) -> tuple[Any, Any]:
        """The pixels, and the target as it is for them."""
        return self(source, seed), target
