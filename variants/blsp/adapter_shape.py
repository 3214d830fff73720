"""The shape of an adapter, without torch, so that commands list these options fast."""

from __future__ import annotations

from dataclasses import dataclass, field

from units.runtime.command import check_range
from units.runtime.settings import check_types


@dataclass(frozen=True)
class AdapterShape:
    """The shape of an adapter."""

    kernels: list[int] = field(default_factory=lambda: [5, 5, 5])
    """Kernel of each convolution, an odd number of frames."""
    strides: list[int] = field(default_factory=lambda: [2, 2, 2])
    """Stride of each convolution: their product is the number of frames of an embedding."""
    inner: int = 512
    """Width of the bottleneck."""

    def __post_init__(self) -> None:
        check_types(self, "adapter.")
        if not self.kernels or len(self.kernels) != len(self.strides):
            raise ValueError(
                f"adapter: {len(self.kernels)} kernels and {len(self.strides)} strides; each convolution has both"
            )
        if wrong := [kernel for kernel in self.kernels if kernel < 1 or kernel % 2 == 0]:
            raise ValueError(f"adapter: a kernel is {wrong[0]}; kernels are odd numbers")
        check_range("inner", self.inner, 1)
        for stride in self.strides:
            check_range("strides", stride, 1)

    def embeddings(self, frames: int) -> int:
        """How many embeddings M a sound of so many frames gives; 0 if it has no frame."""
        for stride in self.strides:
            frames = (frames - 1) // stride + 1 if frames > 0 else 0
        return frames
