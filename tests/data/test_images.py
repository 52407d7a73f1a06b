"""Image folders: what is found, what is read, and that draws repeat."""

from __future__ import annotations

import pickle
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from pyguide.data.image_transforms import EvalTransform, TrainTransform
from pyguide.data.images import EpochSampler, ImageFolder
from pyguide.errors import UserError


def pixels(image, generator):
    """A transform that leaves the image as it was read."""
    return torch.from_numpy(np.array(image))


@pytest.fixture
def folder(tmp_path):
    """Three classes of four images of random colours and odd sizes."""
    rng = np.random.default_rng(0)
    for name in ("b", "a", "c"):
        (tmp_path / name).mkdir()
        for i in range(4):
            array = rng.integers(256, size=(31 + i, 45 - i, 3), dtype=np.uint8)
            Image.fromarray(array).save(tmp_path / name / f"{i}.png")
    return tmp_path


def test_classes_are_the_sorted_folders(folder):
    images = ImageFolder(folder, pixels)
    assert images.classes == ("a", "b", "c")
    assert len(images) == 12
    assert [y for _, y in images] == 4 * [0] + 4 * [1] + 4 * [2]
    assert images.path(5) == folder / "b" / "1.png"
    assert torch.equal(images[5][0], images[-7][0])
    with pytest.raises(IndexError):
        images[12]


def test_images_lie_anywhere_below_and_other_files_are_left_out(folder):
    image = Image.new("RGB", (3, 3))
    (folder / "a" / "more" / "deep").mkdir(parents=True)
    image.save(folder / "a" / "more" / "deep" / "x.JPEG")
    image.save(folder / "a" / "ä ö.Png")
    (folder / "a" / "notes.txt").write_text("no image")
    (folder / "readme.md").write_text("no class")
    (folder / ".cache").mkdir()
    images = ImageFolder(folder, pixels)
    names = [images.path(i).relative_to(folder / "a").as_posix() for i in range(6)]
    assert names == ["0.png", "1.png", "2.png", "3.png", "more/deep/x.JPEG", "ä ö.Png"]
    assert images[5][0].shape == (3, 3, 3)
    assert images.classes == ("a", "b", "c") and len(images) == 14


def test_what_is_wrong_with_a_folder_is_said(folder, tmp_path_factory):
    def refuses(root, message, **options):
        with pytest.raises(UserError, match=message):
            ImageFolder(root, pixels, **options)

    refuses(folder / "none", "none: no such folder")
    refuses(folder / "a" / "0.png", "no such folder")
    refuses(folder / "a", "no folders in it")
    refuses(folder, "differ in d", classes=["a", "b", "c", "d"])
    refuses(folder, "differ in c", classes=["a", "b"])
    refuses(folder, "differ in their order", classes=["b", "a", "c"])
    assert len(ImageFolder(folder, pixels, classes=["a", "b", "c"])) == 12
    (folder / "empty").mkdir()
    refuses(folder, r"empty: no images \(.jpg")


COLOUR, GREY = (200, 100, 50), (120, 120, 120)


def palette_image():
    image = Image.new("P", (9, 7), 1)
    image.putpalette([0, 0, 0, *COLOUR])
    return image


@pytest.mark.parametrize(
    ("image", "name", "options", "colour"),
    [
        (Image.new("RGB", (9, 7), COLOUR), "x.png", {}, COLOUR),
        (Image.new("RGB", (9, 7), COLOUR), "x.jpg", {}, COLOUR),
        (Image.new("RGB", (1, 1), COLOUR), "x.webp", {}, COLOUR),
        (Image.new("L", (9, 7), 120), "x.png", {}, GREY),
        (Image.new("L", (9, 7), 120), "x.jpeg", {}, GREY),
        (Image.new("L", (9, 7), 120), "x.pgm", {}, GREY),
        (Image.new("1", (9, 7), 1), "x.png", {}, (255, 255, 255)),
        (Image.new("LA", (9, 7), (120, 30)), "x.png", {}, GREY),
        (Image.new("RGBA", (9, 7), (*COLOUR, 30)), "x.png", {}, COLOUR),
        (palette_image(), "x.png", {}, COLOUR),
        (palette_image(), "x.png", {"transparency": bytes([255, 30])}, COLOUR),
        (palette_image(), "x.png", {"transparency": 1}, COLOUR),
        # Inks are 255 minus light.
        (Image.new("CMYK", (9, 7), (55, 155, 205, 0)), "x.jpg", {}, COLOUR),
        (Image.fromarray(np.full((7, 9), 120 * 257, np.uint16)), "x.png", {}, GREY),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_every_mode_is_read_as_rgb(tmp_path, image, name, options, colour):
    (tmp_path / "a").mkdir()
    image.save(tmp_path / "a" / name, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x, _ = ImageFolder(tmp_path, pixels)[0]
    assert x.shape == (image.height, image.width, 3)
    # JPEG and WebP keep a plain colour to a few units.
    difference = (x.int() - torch.tensor(colour)).abs().max().item()
    assert difference <= (4 if name.endswith(("jpg", "jpeg", "webp")) else 0)


def damaged(kind, path):
    Image.effect_noise((64, 64), 50).save(path)
    data = bytearray(path.read_bytes())
    if kind == "empty":
        data = b""
    elif kind == "text":
        data = b"<html>not found</html>"
    elif kind == "cut":
        data = data[: len(data) // 2]
    path.write_bytes(data)


@pytest.mark.parametrize("extension", ["png", "jpg"])
@pytest.mark.parametrize("kind", ["empty", "text", "cut"])
def test_a_damaged_image_is_named(folder, kind, extension):
    path = folder / "b" / f"9.{extension}"
    damaged(kind, path)
    images = ImageFolder(folder, pixels)
    with pytest.raises(UserError, match=rf"{path}: cannot be read as an image \(.+\); replace"):
        images[8]


def test_an_image_that_claims_a_huge_size_is_named(folder):
    path = folder / "b" / "9.png"
    damaged("whole", path)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 100_000, 100_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"{path}: cannot be read .*100000000"):
        ImageFolder(folder, pixels)[8]


@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_any_damage_is_seen_as_that_or_read(folder, extension):
    path = folder / "b" / f"9.{extension}"
    damaged("whole", path)
    whole, images = path.read_bytes(), ImageFolder(folder, pixels)
    rng, seen = np.random.default_rng(0), 0
    for _ in range(300):
        data = bytearray(whole)
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        try:
            images[8]
        except UserError as error:
            assert str(path) in str(error)
            seen += 1
    assert seen > 0


def test_a_worker_names_the_damaged_image(folder):
    path = folder / "b" / "9.png"
    damaged("cut", path)
    loader = DataLoader(ImageFolder(folder, EvalTransform(size=8, resize=8)), num_workers=1)
    with pytest.raises(UserError, match=str(path)):
        list(loader)


def draw(image, generator):
    return torch.rand(4, generator=generator)


def test_draws_depend_on_seed_epoch_and_index_alone(folder):
    def read(key, seed=0):
        return ImageFolder(folder, draw, seed=seed)[key][0]

    torch.manual_seed(1)
    x = read((3, 5))
    torch.manual_seed(2)
    assert torch.equal(read((3, 5)), x)
    assert torch.equal(read((np.int64(3), np.int64(5))), x)
    assert torch.equal(read((0, 5)), read(5)) and torch.equal(read(-7), read(5))
    others = [read((3, 6)), read((4, 5)), read((5, 3)), read((3, 5), seed=1), read((35, 0))]
    assert len({tuple(other.tolist()) for other in [x, *others]}) == 6


def test_the_sampler_orders_each_epoch_anew():
    def order(epoch, seed=0):
        sampler = EpochSampler(50, seed=seed)
        sampler.set_epoch(epoch)
        assert len(sampler) == 50
        assert {e for e, _ in sampler} == {epoch}
        return [i for _, i in sampler]

    assert order(2) == order(2)
    assert sorted(order(2)) == list(range(50))
    assert len({tuple(order(*key)) for key in [(0,), (1,), (2,), (1, 1)]}) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_repeat_with_any_workers_and_after_a_resume(folder, workers):
    def epochs(workers, numbers):
        sampler = EpochSampler(12, seed=4)
        loader = DataLoader(
            ImageFolder(folder, TrainTransform(size=8), seed=4),
            batch_size=5,
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        for number in numbers:
            sampler.set_epoch(number)
            yield list(loader)

    reference = list(epochs(0, [0, 1, 2]))
    torch.manual_seed(99)
    resumed = list(epochs(workers, [1, 2]))
    for expected, batches in zip(reference[1:], resumed, strict=True):
        for (x, y), (x_again, y_again) in zip(expected, batches, strict=True):
            assert torch.equal(x, x_again) and torch.equal(y, y_again)
    assert not torch.equal(reference[0][0][0], reference[1][0][0])


def test_a_dataset_can_be_sent_to_a_spawned_worker(folder):
    images = ImageFolder(folder, TrainTransform(size=8), seed=3)
    copy = pickle.loads(pickle.dumps(images))
    assert torch.equal(copy[(2, 7)][0], images[(2, 7)][0])
