from collections import Counter

import pytest
import torch
from torchvision.transforms import RandomCrop, RandomHorizontalFlip

from datamodules import Compose, RandomBrightness, RandomFlip, RandomShift

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


def test_brightness_is_one_uniform_number_per_image():
    images = torch.full((DRAWS, 2, 3, 3), 200, dtype=torch.uint8)
    shifts = RandomBrightness(0.5)(images, draws()) - 200
    assert torch.equal(shifts, shifts[:, :1, :1, :1].expand_as(shifts))
    numbers = shifts[:, 0, 0, 0] / 255  # not clipped at 255
    assert -0.5 <= numbers.min() < -0.49 and 0.49 < numbers.max() < 0.5
    # uniform: standard deviation 1/sqrt 12, of the mean 1/sqrt(12 draws)
    assert numbers.std().item() == pytest.approx(12**-0.5, rel=0.05)
    assert abs(numbers.mean().item()) < 5 * (12 * DRAWS) ** -0.5


@pytest.mark.parametrize(
    ("settings", "name"), [({"size": -0.1}, "size"), ({"top": 0.0}, "top")]
)
def test_brightness_refuses_what_is_no_size(settings, name):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        RandomBrightness(**settings)


def test_transforms_depend_on_the_generator_only():
    both = Compose([RandomShift(1), RandomFlip(), RandomBrightness()])
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
