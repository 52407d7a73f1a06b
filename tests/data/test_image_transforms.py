"""The transforms: which pixels they take, and what they draw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from pyguide.data.image_transforms import (
    MEAN,
    STD,
    EvalTransform,
    TrainTransform,
    normalised,
)


def random_image(width, height):
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(256, size=(height, width, 3), dtype=np.uint8))


def expected(pixels):
    """The formula in float64, channels first."""
    scaled = (np.asarray(pixels) / 255 - np.array(MEAN)) / np.array(STD)
    return torch.from_numpy(scaled.transpose(2, 0, 1).copy()).float()


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def test_normalised():
    image = random_image(5, 3)
    x = normalised(image)
    assert x.dtype == torch.float32 and x.is_contiguous()
    torch.testing.assert_close(x, expected(image))


@pytest.mark.parametrize(("width", "height"), [(300, 256), (256, 301)])
def test_evaluation_takes_the_centre(width, height):
    image = random_image(width, height)
    left, top = round((width - 224) / 2), round((height - 224) / 2)
    pixels = np.asarray(image)[top : top + 224, left : left + 224]
    torch.testing.assert_close(EvalTransform()(image), expected(pixels))


def test_evaluation_resizes_the_short_side_and_keeps_the_shape():
    # Halving a ramp averages two columns; the result is 300 wide, so the crop starts at 38.
    ramp = np.broadcast_to(np.linspace(0, 255, 600)[None, :, None], (512, 600, 3))
    x = EvalTransform()(Image.fromarray(ramp.astype(np.uint8)))
    columns = np.linspace(0, 255, 600)[76:524].reshape(224, 2).mean(axis=1)
    torch.testing.assert_close(
        x[0], expected(np.broadcast_to(columns[None, :, None], (224, 224, 3)))[0], atol=0.02, rtol=0
    )


@pytest.mark.parametrize("size", [(1, 1), (7, 40), (223, 3)])
@pytest.mark.parametrize("transform", [EvalTransform(), TrainTransform()])
def test_small_and_narrow_images_are_enlarged(transform, size):
    x = transform(random_image(*size), draws())
    assert x.shape == (3, 224, 224) and x.isfinite().all()


def test_evaluation_refuses_a_crop_larger_than_the_image():
    with pytest.raises(ValueError, match="at least size = 224, got 200"):
        EvalTransform(resize=200)


def test_training_flips():
    image = random_image(32, 32)
    whole = {"size": 32, "scale": (1, 1), "ratio": (1, 1)}
    kept = TrainTransform(**whole, flip=0)(image, draws())
    flipped = TrainTransform(**whole, flip=1)(image, draws())
    torch.testing.assert_close(kept, expected(image))
    torch.testing.assert_close(flipped, kept.flip(-1))
    share = sum(
        torch.equal(TrainTransform(**whole)(image, draws(seed)), flipped) for seed in range(200)
    )
    assert 70 < share < 130  # 4 standard deviations around 100


def test_training_crops_within_the_ranges():
    width, height = 400, 300
    generator, transform = draws(), TrainTransform()
    crops = [transform._crop(width, height, generator) for _ in range(2000)]
    left, top, w, h = np.array(crops).T
    assert (left >= 0).all() and (top >= 0).all()
    assert (left + w <= width).all() and (top + h <= height).all()
    area, ratio = w * h / (width * height), w / h
    assert 0.078 < area.min() < 0.10 and area.max() > 0.9
    assert 0.74 < ratio.min() < 0.77 and 1.31 < ratio.max() < 1.35
    # Where the crop can lie, it lies on average in the middle.
    assert abs((left / np.maximum(width - w, 1)).mean() - 0.5) < 0.03
    assert abs((top / np.maximum(height - h, 1)).mean() - 0.5) < 0.03


def test_training_resizes_the_crop_alone():
    # Outside the left half all is white; a black crop must not take any of it in.
    image = Image.new("RGB", (64, 64), "white")
    image.paste("black", (0, 0, 32, 64))
    transform = TrainTransform(size=96)
    black = normalised(Image.new("RGB", (96, 96)))
    inside = 0
    for seed in range(300):
        left, _, w, _ = transform._crop(64, 64, draws(seed))
        if left + w == 32:
            inside += 1
            torch.testing.assert_close(transform(image, draws(seed)), black)
    assert inside > 0


@pytest.mark.parametrize(
    ("size", "crop"), [((10, 900), (0, 443, 10, 13)), ((900, 10), (443, 0, 13, 10))]
)
def test_training_falls_back_to_the_centre(size, crop):
    # No crop of at least 8 % and of a ratio of at most 4 / 3 fits.
    assert TrainTransform()._crop(*size, draws()) == crop


def test_training_draws_from_its_generator_alone():
    image, before = random_image(60, 40), torch.get_rng_state()
    a, b, c = (TrainTransform(size=16)(image, draws(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)
