"""Augmentation of whole batches of images, on the device where they are.

Draws are made for each sample, on the CPU, so that all devices agree.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightning_ecd.checks import above, at_least


class Augmentation(ABC):
    """A random change of a batch of images."""

    @abstractmethod
    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the changed images.

        Args:
            images: (B, C, H, W), of any type; they are left alone.
            generator: On the CPU; what all draws come from.

        Returns:
            New images, (B, C, H, W).
        """


class RandomShift(Augmentation):
    """Shifts each image by up to some pixels in both directions; zeros move in.

    The same law as torchvision's ``RandomCrop(size, padding=pixels)``.

    Args:
        pixels: The largest shift.
    """

    def __init__(self, pixels: int) -> None:
        at_least(0, pixels=pixels)
        self.pixels = pixels

    def __call__(  # noqa: D102
        self, images: Tensor, generator: torch.Generator
    ) -> Tensor:
        batch, channels, height, width = images.shape
        top, left = torch.randint(
            2 * self.pixels + 1, (2, batch, 1, 1), generator=generator
        ).to(images.device)
        padded = pad(images, 4 * [self.pixels])
        high, wide = padded.shape[2:]
        # Where each row of the result starts among the padded pixels: copying whole
        # rows is several times faster than indexing windows.
        plane = torch.arange(batch * channels, device=images.device)
        row = torch.arange(height, device=images.device)
        start = (top + row) * wide + left + plane.view(batch, -1, 1) * (high * wide)
        rows = padded.reshape(-1).unfold(0, width, 1)
        return rows.index_select(0, start.flatten()).view(images.shape)

    def __repr__(self) -> str:
        return f"RandomShift(pixels={self.pixels})"


class RandomFlip(Augmentation):
    """Mirrors each image, left and right, with a probability.

    Args:
        probability: Of being mirrored.
    """

    def __init__(self, probability: float = 0.5) -> None:
        if not 0 <= probability <= 1:
            raise ValueError(f"probability must lie in [0, 1], got {probability}")
        self.probability = probability

    def __call__(  # noqa: D102
        self, images: Tensor, generator: torch.Generator
    ) -> Tensor:
        mirrored = torch.rand(len(images), generator=generator) < self.probability
        chosen = torch.arange(len(images)) + len(images) * mirrored
        both = torch.cat([images, images.flip(3)])
        return both.index_select(0, chosen.to(images.device))

    def __repr__(self) -> str:
        return f"RandomFlip(probability={self.probability})"


class RandomBrightness(Augmentation):
    """Adds one number to all pixels of an image, without clipping.

    Args:
        size: The numbers are uniform in [-size, size), in parts of the brightest
            pixel.
        top: The brightest pixel, 255 of bytes.
    """

    def __init__(self, size: float = 0.5, top: float = 255.0) -> None:
        at_least(0, size=size)
        above(0, top=top)
        self.size, self.top = size, top

    def __call__(  # noqa: D102
        self, images: Tensor, generator: torch.Generator
    ) -> Tensor:
        draws = torch.rand(len(images), 1, 1, 1, generator=generator)
        shift = (2 * draws - 1) * (self.size * self.top)
        return images.to(torch.float32) + shift.to(images.device)

    def __repr__(self) -> str:
        return f"RandomBrightness(size={self.size})"


class Compose(Augmentation):
    """Applies several transforms, one after the other.

    Args:
        transforms: In the order of their application.
    """

    def __init__(self, transforms: Sequence[Augmentation]) -> None:
        self.transforms = tuple(transforms)

    def __call__(  # noqa: D102
        self, images: Tensor, generator: torch.Generator
    ) -> Tensor:
        for transform in self.transforms:
            images = transform(images, generator)
        return images

    def __repr__(self) -> str:
        return f"Compose({list(self.transforms)})"
