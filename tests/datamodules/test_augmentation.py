from collections import Counter

import pytest
import torch
from torchvision.transforms import RandomCrop, RandomHorizontalFlip

from datamodules import Compose, RandomFlip, RandomShift

IMAGE = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3)
DRAWS = 3600


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def counted(images):
    return Counter(tuple(image.flatten().tolist()) for image in images)


def test_shift_has_the_law_of_torchvisions_padded_crop():
    ours = counted(RandomShift(1)(IMAGE.expand(DRAWS, 1, 3, 3), draws()))
    torch.manual_seed(0)
    crop = RandomCrop(3, padding=1)
    theirs = counted(crop(IMAGE[0]) for _ in range(300))
    assert set(ours) == set(theirs) and len(ours) == 9
    # binomial(3600, 1/9) has the standard deviation 19
    assert all(abs(count - 400) < 95 for count in ours.values())


def test_shift_moves_zeros_in_and_keeps_channels_together():
    images = torch.rand(50, 3, 5, 6) + 1
    images[:, 1] = images[:, 0]
    shifted = RandomShift(2)(images, draws())
    assert shifted.shape == images.shape and shifted.dtype == images.dtype
    assert torch.equal(shifted[:, 1], shifted[:, 0])
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    for wide, image in zip(padded, shifted, strict=True):
        windows = wide.unfold(1, 5, 1).unfold(2, 6, 1)
        assert (windows == image[:, None, None]).flatten(3).all(3).all(0).any()


def test_shift_by_no_pixels_changes_nothing():
    assert torch.equal(RandomShift(0)(IMAGE, draws()), IMAGE)


def test_flip_has_the_law_of_torchvisions():
    ours = counted(RandomFlip()(IMAGE.expand(DRAWS, 1, 3, 3), draws()))
    torch.manual_seed(0)
    theirs = counted(RandomHorizontalFlip()(IMAGE[0]) for _ in range(50))
    assert set(ours) == set(theirs) and len(ours) == 2
    # binomial(3600, 1/2) has the standard deviation 30
    assert all(abs(count - 1800) < 150 for count in ours.values())


@pytest.mark.parametrize(("probability", "flips"), [(0.0, 0), (1.0, DRAWS)])
def test_flip_probability_is_respected(probability, flips):
    images = IMAGE.expand(DRAWS, 1, 3, 3)
    flipped = RandomFlip(probability)(images, draws())
    assert int((flipped[:, 0, 0, 0] == 3).sum()) == flips


def test_transforms_depend_on_the_generator_only():
    both = Compose([RandomShift(1), RandomFlip()])
    images = torch.rand(40, 2, 4, 4)
    first = both(images, draws(1))
    torch.manual_seed(99)
    assert torch.equal(first, both(images, draws(1)))
    assert not torch.equal(first, both(images, draws(2)))


def test_composition_applies_in_order():
    generator = draws(3)
    expected = RandomFlip()(RandomShift(1)(IMAGE, generator), generator)
    composed = Compose([RandomShift(1), RandomFlip()])
    assert torch.equal(composed(IMAGE, draws(3)), expected)


@pytest.mark.parametrize(
    ("build", "name"),
    [(lambda: RandomShift(-1), "pixels"), (lambda: RandomFlip(1.5), "probability")],
)
def test_bad_arguments_are_refused_by_name(build, name):
    with pytest.raises(ValueError, match=name):
        build()
