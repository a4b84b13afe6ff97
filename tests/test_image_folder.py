"""Folders of pictures: formats, orientation, transparency, cropping, broken files, layouts and their cache."""

from __future__ import annotations

import json
import logging
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torchvision
from PIL import Image, features
from PIL.PngImagePlugin import PngInfo

from resnet_train.config import make_config
from resnet_train.data import pictures
from resnet_train.data.dataset import load_dataset
from resnet_train.data.layout import find_images, to_text
from resnet_train.data.pictures import BUDGET, MAX_PIXELS, MEMORY_BYTES, read_image

ORIENTATION = 0x0112


def random_pixels(height=32, width=32, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, pixels=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random_pixels() if pixels is None else pixels).save(path, **options)
    return path


def upright(array):
    """Return [3, H, W] as [H, W, 3]."""
    return array.transpose(1, 2, 0)


def fill_folder(data_dir, split="train", classes=("cat", "dog"), each=3, size=8):
    for number, name in enumerate(classes):
        for i in range(each):
            save(data_dir / split / name / f"{i:03}.png", random_pixels(size, size, seed=100 * number + i))


def load(data_dir, split="train", image_size=8, **settings):
    return load_dataset("folder", split, data_dir, image_size, dict(make_config(settings)))


def reports(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "resnet_train.data.sources.folder"]


# One picture


@pytest.mark.parametrize(("suffix", "options"), [("png", {}), ("bmp", {}), ("webp", {"lossless": True})])
def test_lossless_picture_of_the_right_size_is_read_exactly(tmp_path, suffix, options):
    path = save(tmp_path / f"x.{suffix}", **options)
    result = read_image(path, 32)
    assert result.shape == (3, 32, 32)
    assert result.dtype == np.uint8
    assert np.array_equal(upright(result), random_pixels())


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "webp"])
def test_lossy_picture_is_read_approximately(tmp_path, suffix):
    smooth = (np.indices((32, 32)).sum(0)[..., None] * [4, 3, 2]).astype(np.uint8)
    result = read_image(save(tmp_path / f"x.{suffix}", smooth, quality=95), 32)
    assert np.abs(upright(result).astype(int) - smooth).max() < 12


@pytest.mark.parametrize("mode", ["L", "1"])
def test_gray_pictures_have_three_equal_channels(tmp_path, mode):
    image = Image.fromarray(random_pixels(channels=1)).convert(mode)
    image.save(tmp_path / "x.png")
    for channel in read_image(tmp_path / "x.png", 32):
        assert np.array_equal(channel, np.asarray(image.convert("L")))


def test_cmyk_jpeg_is_read_in_color(tmp_path):
    image = Image.new("RGB", (32, 32), (200, 40, 90)).convert("CMYK")
    image.save(tmp_path / "x.jpg", quality=95)
    assert np.abs(upright(read_image(tmp_path / "x.jpg", 32)).astype(int) - [200, 40, 90]).max() < 6


# From stored to upright pixels, by EXIF orientation
TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", TURNS)
def test_exif_orientation_is_turned_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(upright(read_image(path, 32)), TURNS[orientation](random_pixels()))


def test_jpeg_on_its_side_is_turned_before_cropping(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    pixels = np.zeros((64, 128, 3), dtype=np.uint8)
    pixels[:, :64] = 255  # left as stored is the top as seen
    result = read_image(save(tmp_path / "x.jpg", pixels, exif=exif, quality=95), 32).astype(int)
    assert result[:, :14].min() > 200
    assert result[:, 18:].max() < 55


def test_transparency_is_shown_on_white(tmp_path):
    pixels = random_pixels(channels=4)
    pixels[:16, :, 3], pixels[16:, :16, 3], pixels[16:, 16:, 3] = 0, 255, 128
    result = upright(read_image(save(tmp_path / "x.png", pixels), 32)).astype(int)
    assert (result[:16] == 255).all()
    assert np.array_equal(result[16:, :16], pixels[16:, :16, :3])
    assert np.abs(result[16:, 16:] - (pixels[16:, 16:, :3] * (128 / 255) + 127)).max() <= 1


def test_gray_with_transparency_is_shown_on_white(tmp_path):
    gray = random_pixels(channels=1)
    alpha = np.where(np.indices((32, 32))[1] < 16, 0, 255).astype(np.uint8)
    Image.merge("LA", [Image.fromarray(gray), Image.fromarray(alpha)]).save(tmp_path / "x.png")
    for channel in read_image(tmp_path / "x.png", 32):
        assert (channel[:, :16] == 255).all()
        assert np.array_equal(channel[:, 16:], gray[:, 16:])


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 255])])
def test_transparent_palette_color_is_shown_on_white(tmp_path, transparency):
    numbers = (np.indices((32, 32)).sum(0) % 3).astype(np.uint8)
    image = Image.fromarray(numbers).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata(numbers.ravel().tolist())
    image.save(tmp_path / "x.png", transparency=transparency)
    colors = np.array([[10, 20, 30], [255, 255, 255], [70, 80, 90]])
    assert np.array_equal(upright(read_image(tmp_path / "x.png", 32)), colors[numbers])


def test_palette_without_transparency_keeps_its_colors(tmp_path):
    image = Image.fromarray(random_pixels()).quantize(16)
    image.save(tmp_path / "x.png")
    assert np.array_equal(upright(read_image(tmp_path / "x.png", 32)), np.asarray(image.convert("RGB")))


def test_transparent_color_key_is_shown_on_white(tmp_path):
    pixels = np.full((32, 32, 3), 77, dtype=np.uint8)
    pixels[:16] = (1, 2, 3)
    result = upright(read_image(save(tmp_path / "x.png", pixels, transparency=(1, 2, 3)), 32))
    assert (result[:16] == 255).all()
    assert (result[16:] == 77).all()


def test_16_bit_gray_is_scaled_not_clipped(tmp_path):
    deep = np.linspace(0, 65535, 32 * 32).round().astype(np.uint16).reshape(32, 32)
    path = save(tmp_path / "x.png", deep)
    with Image.open(path) as stored:
        assert stored.mode == "I;16"
    for channel in read_image(path, 32):
        assert np.abs(channel - deep / 257).max() <= 1
        assert (channel.min(), channel.max()) == (0, 255)


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [
        (32, 64, (16, 0, 48, 32)),
        (64, 32, (0, 16, 32, 48)),
        (64, 96, (16, 0, 80, 64)),
        (96, 64, (0, 16, 64, 80)),
        (50, 50, (0, 0, 50, 50)),
        (8, 12, (2, 0, 10, 8)),
        (7, 7, (0, 0, 7, 7)),
    ],
)
def test_short_side_is_resized_and_the_centre_cropped(tmp_path, height, width, box):
    path = save(tmp_path / "x.png", random_pixels(height, width))
    with Image.open(path) as image:
        expected = image.resize((32, 32), Image.Resampling.BICUBIC, box=box)
    assert np.array_equal(upright(read_image(path, 32)), np.asarray(expected))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (300, 1), (3, 1000)])
def test_tiny_and_thin_pictures_fill_the_square(tmp_path, height, width):
    path = save(tmp_path / "x.png", np.full((height, width, 3), 99, dtype=np.uint8))
    assert (read_image(path, 32) == 99).all()


def test_large_jpeg_decoded_at_a_fraction_looks_the_same(tmp_path):
    y, x = np.indices((600, 900))
    smooth = np.stack([x * 255 / 899, y * 255 / 599, 128 + 100 * np.sin(x / 90)], axis=2).astype(np.uint8)
    jpeg = read_image(save(tmp_path / "x.jpg", smooth, quality=95), 32).astype(int)
    png = read_image(save(tmp_path / "x.png", smooth), 32)
    assert np.abs(jpeg - png).max() < 12


def png_header(path, width, height):
    """Write a PNG of a few bytes that claims a size."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [20_000, 8_000])
def test_decompression_bomb_is_skipped_and_reported(tmp_path, caplog, side):
    fill_folder(tmp_path, each=10)
    png_header(tmp_path / "train" / "dog" / "bomb.png", side, side)
    assert len(load(tmp_path)) == 20
    (report,) = reports(caplog)
    assert "bomb.png" in report
    assert "pixels" in report


def test_pixel_limit_is_exact(tmp_path):
    png_header(tmp_path / "x.png", MAX_PIXELS // 4000, 4001)
    with pytest.raises(ValueError, match=f"15000 × 4001 pixels are more than {MAX_PIXELS}, the limit"):
        read_image(tmp_path / "x.png", 32)


def test_pictures_that_take_too_much_memory_are_refused(tmp_path):
    """A WebP takes more than a PNG; the file is of a few bytes."""
    size = (7000 - 1).to_bytes(3, "little")
    (tmp_path / "x.webp").write_bytes(b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + 2 * size + bytes(40))
    with pytest.raises(
        ValueError, match=r"7000 × 7000 pixels are more than fit: they take 934 MiB .* limit is 512 MiB"
    ):
        read_image(tmp_path / "x.webp", 32)


# The folder


def test_pictures_are_sorted_by_class_and_name_and_labelled(tmp_path):
    fill_folder(tmp_path, classes=("dog", "cat", "Ape"), each=2)
    data = load(tmp_path)
    assert data.classes == ("Ape", "cat", "dog")
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.labels.dtype == np.int64
    assert data.images.shape == (6, 3, 8, 8)
    assert data.images.dtype == np.uint8
    for row, seed in enumerate([200, 201, 100, 101, 0, 1]):
        assert np.array_equal(upright(data.images[row]), random_pixels(8, 8, seed=seed))
    assert data.title == f"folder {tmp_path.name}"


def test_text_stays_text_where_file_names_are_ascii(monkeypatch):
    monkeypatch.setattr(os, "fsencode", lambda name: name.encode("ascii", "surrogateescape"))
    assert to_text("Größe") == "Größe"
    assert to_text("Größe".encode().decode("ascii", "surrogateescape")) == "Größe"


def test_statistics_are_of_the_pictures(tmp_path):
    fill_folder(tmp_path)
    data = load(tmp_path)
    assert data.mean == pytest.approx((data.images / 255).mean((0, 2, 3)), abs=1e-6)
    assert data.std == pytest.approx((data.images / 255).std((0, 2, 3)), abs=1e-6)


def test_all_formats_and_spellings_are_found_and_no_others(tmp_path):
    folder = tmp_path / "train" / "cat"
    names = ["a.png", "b.PNG", "c.jpg", "d.JPEG", "e.webp", "f.bmp", "g.tif", "h.gif", "i.ppm"]
    for name in names:
        save(folder / name)
    for name in ("notes.txt", "x.svg", "png", "Thumbs.db", ".hidden.png", "._a.png"):
        (folder / name).write_text("no picture")
    (folder / "deeper.png").mkdir()
    (tmp_path / "train" / "loose.png").write_text("belongs to no class")
    (tmp_path / "train" / ".git").mkdir()
    listing = find_images(tmp_path, "train")
    assert sorted(file.path.name for file in listing.files) == sorted(names)
    assert listing.classes == ("cat",)
    assert len(load(tmp_path)) == len(names)


def test_test_labels_count_the_classes_of_the_training_images(tmp_path):
    fill_folder(tmp_path, "train", ("ape", "cat", "dog"))
    fill_folder(tmp_path, "test", ("cat",), each=2)
    test = load(tmp_path, "test")
    assert test.classes == ("ape", "cat", "dog")
    assert test.labels.tolist() == [1, 1]


def test_folder_with_test_images_only_is_a_test_set(tmp_path):
    fill_folder(tmp_path, "test")
    test = load(tmp_path, "test")
    assert test.classes == ("cat", "dog")
    assert len(test) == 6
    with pytest.raises(ValueError, match=r"has no folder train/; it must hold train/<class>/\*"):
        load(tmp_path, "train")


def test_folder_with_training_images_only_has_no_test_set(tmp_path):
    fill_folder(tmp_path, "train")
    assert load(tmp_path, "test") is None
    assert len(load(tmp_path, "train")) == 6


def test_class_only_in_test_is_refused(tmp_path):
    fill_folder(tmp_path, "train")
    fill_folder(tmp_path, "test", ("cat", "emu"))
    with pytest.raises(ValueError, match=r"test.emu is a class that the training images do not have \(cat, dog\)"):
        load(tmp_path, "test")


def test_missing_data_dir_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere' is not a folder; it must hold train/<class>/\*"):
        load(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_data_dir_that_is_a_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        load(save(tmp_path / "x.png"))


def test_class_without_training_pictures_is_refused(tmp_path):
    fill_folder(tmp_path)
    (tmp_path / "train" / "emu").mkdir()
    with pytest.raises(ValueError, match=r"emu holds no images \(\.avif, \.bmp, .*\.webp\)$"):
        load(tmp_path)


def test_class_without_test_pictures_is_allowed(tmp_path):
    fill_folder(tmp_path)
    fill_folder(tmp_path, "test", ("dog",))
    (tmp_path / "test" / "cat").mkdir()
    assert load(tmp_path, "test").labels.tolist() == [1, 1, 1]


@pytest.mark.parametrize("split", ["train", "test"])
def test_split_without_any_class_is_refused(tmp_path, split):
    (tmp_path / split).mkdir()
    save(tmp_path / split / "loose.png")
    with pytest.raises(ValueError, match=f"{split} holds no images in folders named after classes"):
        load(tmp_path, split)


# Broken pictures

BROKEN = {
    "empty": b"",
    "text": b"this is not a picture",
    "page": b"<html>404</html>",
    "only magic": b"\x89PNG\r\n\x1a\n",
    "jpeg magic": b"\xff\xd8\xff\xe0",
    "webp magic": b"RIFF\x10\x00\x00\x00WEBPVP8 ",
    "bmp magic": b"BM",
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_picture_is_skipped_and_reported_by_name(tmp_path, caplog, broken):
    fill_folder(tmp_path, classes=("cat", "dog"), each=10, size=2)
    (tmp_path / "train" / "cat" / "007.png").write_bytes(BROKEN[broken])
    data = load(tmp_path, image_size=2)
    assert len(data) == 19
    assert np.bincount(data.labels).tolist() == [9, 10]
    seeds = [seed for seed in [*range(10), *range(100, 110)] if seed != 7]
    for image, seed in zip(data.images, seeds, strict=True):
        assert np.array_equal(upright(image), random_pixels(2, 2, seed=seed))
    (report,) = reports(caplog)
    assert "skipped 1 unreadable image(s) in train/: " in report
    assert str(tmp_path / "train" / "cat" / "007.png") in report
    assert len(report.splitlines()) == 1


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
@pytest.mark.parametrize("keep", [0.3, 0.7])
def test_picture_cut_short_is_skipped_and_reported(tmp_path, caplog, suffix, keep):
    fill_folder(tmp_path, each=2)
    path = save(tmp_path / "train" / "dog" / f"short.{suffix}", random_pixels(64, 64))
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    assert len(load(tmp_path)) == 4
    (report,) = reports(caplog)
    assert f"short.{suffix}" in report


def test_postscript_named_png_never_reaches_ghostscript(tmp_path, caplog, monkeypatch):
    programs_run = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *arguments: programs_run.append(arguments))
    fill_folder(tmp_path, each=10)
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    (tmp_path / "train" / "dog" / "program.png").write_bytes(content)
    assert len(load(tmp_path)) == 20
    assert "program.png" in reports(caplog)[0]
    assert programs_run == []


def test_report_is_repeated_when_the_cache_is_opened(tmp_path, caplog):
    fill_folder(tmp_path, each=10)
    (tmp_path / "train" / "cat" / "bad.png").write_bytes(b"bad")
    load(tmp_path)
    load(tmp_path)
    first, second = reports(caplog)
    assert first == second


def test_statistics_leave_broken_pictures_out(tmp_path):
    fill_folder(tmp_path, each=10)
    expected = load(tmp_path)
    (tmp_path / "train" / "cat" / "bad.png").write_bytes(b"bad")
    found = load(tmp_path)
    assert (found.mean, found.std) == (expected.mean, expected.std)


@pytest.mark.parametrize(("total", "broken"), [(100, 5), (20, 1), (2, 1)])
def test_up_to_one_or_5_percent_broken_pictures_are_skipped(tmp_path, total, broken):
    fill_folder(tmp_path, classes=("cat",), each=total, size=2)
    for number in range(broken):
        (tmp_path / "train" / "cat" / f"{number:03}.png").write_bytes(b"bad")
    assert len(load(tmp_path, image_size=2)) == total - broken


@pytest.mark.parametrize(("total", "broken"), [(100, 6), (4, 2), (2, 2)])
def test_more_broken_pictures_are_refused_and_leave_no_cache(tmp_path, total, broken):
    fill_folder(tmp_path, classes=("cat",), each=total, size=2)
    for number in range(broken):
        (tmp_path / "train" / "cat" / f"{number:03}.png").write_bytes(b"bad")
    with pytest.raises(ValueError, match=rf"{broken} of {total} images can't be read: .*000\.png") as refusal:
        load(tmp_path, image_size=2)
    assert len(str(refusal.value).splitlines()) == 1
    assert cache_folders(tmp_path) == []


@pytest.mark.parametrize("split", ["train", "test"])
def test_only_picture_being_broken_is_refused(tmp_path, split):
    path = tmp_path / split / "cat" / "only.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"bad")
    with pytest.raises(ValueError, match=r"can't be read.*only\.png"):
        load(tmp_path, split)


def test_a_broken_file_with_an_undecodable_name_is_reported(tmp_path, caplog):
    fill_folder(tmp_path, each=10)
    strange = os.fsdecode(b"\xff\xfe.png")
    (tmp_path / "train" / "cat" / strange).write_bytes(b"bad")
    assert len(load(tmp_path)) == 20
    assert len(load(tmp_path)) == 20
    assert len(reports(caplog)) == 2
    assert all(r"\xff\xfe.png" in report for report in reports(caplog))


# The cache


def cache_folders(data_dir):
    return sorted(path.name for path in (data_dir / ".resnet_train").iterdir() if path.name != ".lock")


def test_cache_holds_npy_and_json_files_only_and_no_pickles(tmp_path):
    for split in ("train", "test"):
        fill_folder(tmp_path, split)
        (tmp_path / split / "cat" / "bad.png").write_bytes(b"bad")
        load(tmp_path, split)
    files = [path for path in (tmp_path / ".resnet_train").rglob("*") if path.is_file() and path.name != ".lock"]
    assert len(files) == 6
    assert {path.suffix for path in files} == {".npy", ".json"}
    for path in files:
        if path.suffix == ".npy":
            assert len(np.load(path, allow_pickle=False)) == 6
        else:
            assert len(json.loads(path.read_text())["content"]["facts"]["unreadable"]) == 1


def test_pictures_are_decoded_once(tmp_path, monkeypatch):
    fill_folder(tmp_path)
    first = np.array(load(tmp_path).images)
    monkeypatch.setattr("resnet_train.data.sources.folder.read_image", None)
    assert np.array_equal(load(tmp_path).images, first)


def changed_content(path):
    save(path, random_pixels(8, 8, seed=999))


def changed_time(path):
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


def changed_name(path):
    path.rename(path.with_name("zzz.png"))


def removed(path):
    path.unlink()


def added(path):
    save(path.with_name("more.png"))


def moved_to_another_class(path):
    path.rename(path.parent.parent / "dog" / "moved.png")


@pytest.mark.parametrize(
    "change", [changed_content, changed_time, changed_name, removed, added, moved_to_another_class]
)
def test_cache_is_rebuilt_when_a_source_changes(tmp_path, change):
    fill_folder(tmp_path)
    load(tmp_path)
    before = cache_folders(tmp_path)
    change(tmp_path / "train" / "cat" / "001.png")
    data = load(tmp_path)
    assert len(before) == len(cache_folders(tmp_path)) == 1
    assert before != cache_folders(tmp_path)
    files = find_images(tmp_path, "train").files
    assert data.labels.tolist() == [file.label for file in files]
    for image, file in zip(data.images, files, strict=True):
        assert np.array_equal(image, read_image(file.path, 8))


def test_new_class_changes_the_labels_of_cached_test_images(tmp_path):
    fill_folder(tmp_path)
    fill_folder(tmp_path, "test", ("dog",))
    assert load(tmp_path, "test").labels.tolist() == [1, 1, 1]
    fill_folder(tmp_path, classes=("ape",))
    assert load(tmp_path, "test").labels.tolist() == [2, 2, 2]


def test_each_split_and_size_has_its_own_cache(tmp_path):
    for split in ("train", "test"):
        fill_folder(tmp_path, split)
        for image_size in (4, 8):
            assert load(tmp_path, split, image_size).images.shape == (6, 3, image_size, image_size)
    names = [name.rsplit("-", 1)[0] for name in cache_folders(tmp_path)]
    assert names == ["folder-test-4", "folder-test-8", "folder-train-4", "folder-train-8"]


def test_moved_data_dir_keeps_its_cache(tmp_path, monkeypatch):
    fill_folder(tmp_path / "old")
    load(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    monkeypatch.setattr("resnet_train.data.sources.folder.read_image", None)
    data = load(tmp_path / "new")
    assert len(data) == 6
    assert data.title == "folder new"


def test_damaged_cache_is_rebuilt(tmp_path, caplog):
    fill_folder(tmp_path)
    expected = np.array(load(tmp_path).images)
    (path,) = (tmp_path / ".resnet_train").glob("*/images.npy")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert np.array_equal(load(tmp_path).images, expected)
    assert [r.levelno for r in caplog.records if r.name == "resnet_train.data.cache"] == [logging.WARNING]


def test_skipped_files_are_counted_by_kind(tmp_path, caplog):
    fill_folder(tmp_path)
    for name in ("a.svg", "b.SVG", "notes.txt", ".DS_Store", "._x.jpg", ".x.jpg", "Makefile"):
        (tmp_path / "train" / "cat" / name).write_bytes(b"")
    save(tmp_path / "train" / "loose.png")
    data = load(tmp_path)
    (report,) = reports(caplog)
    kinds = "2 .svg, 1 .DS_Store, 1 ._*, 1 .png outside the class folders, 1 .txt, 1 hidden .jpg, 1 without extension"
    assert report == f"{tmp_path / 'train'}: 8 skipped: {kinds}"
    assert len(data) == 6
    assert len(data.skipped) == 8
    assert f"{tmp_path / 'train' / 'cat' / 'a.svg'} (.svg)" in data.skipped


@pytest.mark.parametrize("suffix", [".heic", ".HEIF"])
def test_heic_files_are_named_with_a_remedy(tmp_path, caplog, suffix):
    fill_folder(tmp_path)
    (tmp_path / "train" / "cat" / f"x{suffix}").write_bytes(b"")
    load(tmp_path)
    assert f"1 skipped: 1 {suffix.lower()}; HEIC can't be read: convert it to JPEG" in reports(caplog)[0]
    (tmp_path / "train" / "emu").mkdir()
    (tmp_path / "train" / "emu" / f"x{suffix}").write_bytes(b"")
    with pytest.raises(ValueError, match=r"emu holds no images .*convert it to JPEG"):
        load(tmp_path)


def test_heic_under_the_name_of_a_jpeg_is_named_with_a_remedy(tmp_path):
    for brand in (b"heic", b"heix", b"mif1"):
        (tmp_path / "x.jpg").write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(4) + b"mif1heic" + bytes(100))
        with pytest.raises(ValueError, match="HEIC can't be read: convert it to JPEG"):
            read_image(tmp_path / "x.jpg", 8)


def test_class_folders_of_pictures_alone_give_no_warning(tmp_path, caplog):
    fill_folder(tmp_path)
    (tmp_path / "train" / "README.txt").write_text("")
    with caplog.at_level(logging.WARNING, logger="resnet_train"):
        find_images(tmp_path, "train")
    assert caplog.records == []


def test_the_fingerprint_depends_on_the_pictures_alone(tmp_path):
    for name in ("a", "b"):
        fill_folder(tmp_path / name)
    fill_folder(tmp_path / "c", each=4)
    os.utime(tmp_path / "b" / "train" / "cat" / "000.png", (1, 1))
    first, second, other = (load(tmp_path / name).fingerprint for name in ("a", "b", "c"))
    assert first == second
    assert first != other


# Layouts


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
def test_a_folder_of_validation_images_is_the_validation_split(tmp_path, name):
    fill_folder(tmp_path, "train", ("ape", "cat", "dog"))
    fill_folder(tmp_path, name, ("cat",), each=2)
    assert load(tmp_path, "val").labels.tolist() == [1, 1]
    assert load(tmp_path, "val").classes == ("ape", "cat", "dog")
    assert load(tmp_path, "test") is None
    assert len(load(tmp_path)) == 9


def test_two_folders_of_validation_images_are_refused(tmp_path):
    for name in ("train", "val", "valid"):
        fill_folder(tmp_path, name)
    with pytest.raises(ValueError, match="has both val/ and valid/; keep one of them"):
        load(tmp_path)


def test_a_flat_folder_of_classes_is_split_in_proportion(tmp_path):
    for name, each in (("ape", 20), ("cat", 10), ("dog", 4)):
        fill_folder(tmp_path, "", (name,), each)
    train, test = (load(tmp_path, split, test_size=7) for split in ("train", "test"))
    assert np.bincount(test.labels).tolist() == [4, 2, 1]
    assert np.bincount(train.labels).tolist() == [16, 8, 3]
    assert train.classes == test.classes == ("ape", "cat", "dog")
    (tmp_path / "cat" / "notes.txt").write_text("")
    assert [len(load(tmp_path, split, test_size=7).skipped) for split in ("train", "test")] == [1, 0]
    whole = load(tmp_path)
    assert len(whole) == 34
    assert load(tmp_path, "test") is None
    assert load(tmp_path, "val") is None


def test_the_test_split_of_a_flat_folder_is_always_the_same(tmp_path):
    for name in ("a", "b"):
        fill_folder(tmp_path / name, "", each=10)
    assert len({load(tmp_path / name, "test", test_size=4).fingerprint for name in ("a", "b")}) == 1
    files = [{f.path.name for f in find_images(tmp_path / "a", split, 4).files} for split in ("train", "test")]
    assert len(find_images(tmp_path / "a", "test", 4).files) == 4
    assert files[1] != {"000.png", "001.png"}


def test_training_images_without_test_folder_are_split_too(tmp_path):
    fill_folder(tmp_path, each=10)
    assert len(load(tmp_path, "test", test_size=4)) == 4
    assert len(load(tmp_path, "train", test_size=4)) == 16


def test_a_test_size_leaves_validation_images_alone(tmp_path):
    for split in ("train", "val"):
        fill_folder(tmp_path, split, each=10)
    sizes = {split: len(load(tmp_path, split, test_size=4)) for split in ("train", "val", "test")}
    assert sizes == {"train": 16, "val": 20, "test": 4}


def test_a_test_size_beside_a_test_folder_is_refused(tmp_path):
    for split in ("train", "test"):
        fill_folder(tmp_path, split)
    with pytest.raises(ValueError, match=r"test_size \(=2\) has no effect: .* has a folder test/"):
        load(tmp_path, test_size=2)


def test_a_test_size_that_leaves_a_class_untrained_is_refused(tmp_path):
    fill_folder(tmp_path, "", each=3)
    with pytest.raises(ValueError, match=r"test_size \(=5\) must be at most 4, so that every class keeps"):
        load(tmp_path, test_size=5)


def test_a_class_may_be_called_train(tmp_path):
    fill_folder(tmp_path, "", ("car", "test", "train"))
    assert load(tmp_path).classes == ("car", "test", "train")


def test_subfolders_of_a_class_are_walked_as_imagefolder_does(tmp_path):
    for path in ("b.png", "a/z.png", "a/deep/y.png", "c/x.png"):
        save(tmp_path / "train" / "cat" / path)
    save(tmp_path / "train" / "dog" / "a.png")
    expected = torchvision.datasets.ImageFolder(tmp_path / "train").samples
    found = find_images(tmp_path, "train").files
    assert [(str(file.path), file.label) for file in found] == expected


@pytest.mark.parametrize("name", ["__MACOSX", "@eaDir", ".ipynb_checkpoints", ".git", "$RECYCLE.BIN"])
def test_folders_of_systems_are_neither_classes_nor_walked(tmp_path, name):
    fill_folder(tmp_path)
    fill_folder(tmp_path, "", (name,))
    for place in ("train", "train/cat", "train/cat/deep"):
        save(tmp_path / place / name / "x.png")
    assert load(tmp_path).classes == ("cat", "dog")
    assert len(load(tmp_path)) == 6


def test_links_that_form_a_loop_are_skipped(tmp_path, caplog):
    fill_folder(tmp_path)
    cat = tmp_path / "train" / "cat"
    (cat / "deep").mkdir()
    save(cat / "deep" / "x.png")
    links = {"self": "self", "self.png": "self.png", "here": ".", "up": "..", "top": "../..", "deep/back": "../deep"}
    for name, target in (links | {"deep/out": "..", "gone.png": "nowhere.png"}).items():
        (cat / name).symlink_to(target)
    (tmp_path / "train" / "loop").symlink_to("loop")
    (cat / "linked.png").symlink_to("000.png")
    data = load(tmp_path)
    assert data.classes == ("cat", "dog")
    assert data.labels.tolist() == [0] * 5 + [1] * 3
    assert "8 skipped" in reports(caplog)[0]


def test_a_fifo_among_pictures_is_skipped(tmp_path, caplog):
    fill_folder(tmp_path)
    os.mkfifo(tmp_path / "train" / "cat" / "x.png")
    assert len(load(tmp_path)) == 6
    assert "1 skipped: 1 special file" in reports(caplog)[0]


def test_names_composed_and_decomposed_are_one_class(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    fill_folder(tmp_path, classes=(composed, "zoo"))
    fill_folder(tmp_path, "test", (decomposed,))
    save(tmp_path / "train" / decomposed / "more.png")
    assert load(tmp_path).classes == load(tmp_path, "test").classes == (composed, "zoo")
    assert load(tmp_path).labels.tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_names_that_are_not_utf_8_become_text(tmp_path):
    data_dir = tmp_path / os.fsdecode(b"data \xe4")
    fill_folder(data_dir, classes=(os.fsdecode(b"caf\xe9"), os.fsdecode(b"\x8e")))
    data = load(data_dir)
    assert data.classes == (r"\x8e", r"caf\xe9")
    assert data.title == r"folder data \xe4"
    assert load(data_dir).fingerprint == data.fingerprint


def test_a_run_on_names_that_are_not_utf_8(tmp_path, run_cli):
    data_dir = tmp_path / os.fsdecode(b"data \xe4")
    fill_folder(data_dir, "", (os.fsdecode(b"caf\xe9"), os.fsdecode(b"\x8e")), each=12)
    (data_dir / os.fsdecode(b"caf\xe9") / os.fsdecode(b"\xe4.svg")).write_text("")
    settings = ["--dataset", "folder", "--data-dir", data_dir, "--test-size", 4, "--val-size", 4, "--epochs", 1]
    small = ["--arch", "resnet8", "--image-size", 8, "--batch-size", 8, "--device", "cpu", "--name", "run"]
    assert run_cli("resnet-train", *settings, *small, cwd=tmp_path).code == 0
    assert r"caf\xe9/\xe4.svg (.svg)" in (tmp_path / "runs" / "run" / "train.log").read_text()
    again = run_cli("resnet-train", *settings, *small, "--resume", "auto", cwd=tmp_path)
    assert "is finished; nothing to do" in again.stderr
    evaluated = run_cli("resnet-eval", "runs/run", cwd=tmp_path)
    assert evaluated.code == 0
    assert r"caf\xe9" in evaluated.stdout


@pytest.mark.parametrize(("share", "broken"), [(0.5, 10), (1, 19), (0.25, 5)])
def test_max_unreadable_lifts_the_limit(tmp_path, share, broken):
    fill_folder(tmp_path, "train", ("cat",), each=20, size=2)
    for number in range(broken):
        (tmp_path / "train" / "cat" / f"{number:03}.png").write_bytes(b"bad")
    assert len(load(tmp_path, image_size=2, max_unreadable=share)) == 20 - broken
    with pytest.raises(ValueError, match=rf"{broken} of 20 images can't be read: .*; --max-unreadable 0.05 allows"):
        load(tmp_path, image_size=2)


def test_max_unreadable_0_allows_none(tmp_path):
    fill_folder(tmp_path, each=10)
    (tmp_path / "train" / "cat" / "bad.png").write_bytes(b"bad")
    with pytest.raises(ValueError, match="1 of 21 images can't be read"):
        load(tmp_path, max_unreadable=0)


def test_a_class_that_loses_all_its_pictures_is_refused(tmp_path):
    fill_folder(tmp_path, each=2)
    for number in range(2):
        (tmp_path / "train" / "cat" / f"{number:03}.png").write_bytes(b"bad")
    with pytest.raises(ValueError, match="class 'cat' has no image that can be read"):
        load(tmp_path, max_unreadable=0.9)


# More formats


def draw(mode, size=(32, 32)):
    return Image.fromarray(random_pixels(size[1], size[0])).convert(mode)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "CMYK"])
def test_first_page_of_a_tiff_is_read(tmp_path, mode, compression):
    page = draw(mode)
    page.save(tmp_path / "x.tif", compression=compression, save_all=True, append_images=[draw("RGB", (8, 8))])
    assert np.array_equal(upright(read_image(tmp_path / "x.tif", 32)), np.asarray(page.convert("RGB")))


@pytest.mark.parametrize("orientation", TURNS)
def test_tiff_orientation_is_turned_upright_once(tmp_path, orientation):
    for compression in (None, "tiff_lzw"):
        Image.fromarray(random_pixels()).save(
            tmp_path / "x.tif", tiffinfo={ORIENTATION: orientation}, compression=compression
        )
        assert np.array_equal(upright(read_image(tmp_path / "x.tif", 32)), TURNS[orientation](random_pixels()))


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_16_bit_tiff_is_scaled_not_clipped(tmp_path, order):
    deep = np.linspace(0, 65535, 32 * 32).round().astype(np.uint16).reshape(32, 32)
    Image.fromarray(deep.astype(order)).save(tmp_path / "x.tif")
    for channel in read_image(tmp_path / "x.tif", 32):
        assert np.abs(channel - deep / 257).max() <= 1


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_without_a_fixed_range_are_refused(tmp_path, kind):
    Image.fromarray(np.ones((8, 8), dtype=kind)).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match="32 bits and no fixed range: save it with 8 or 16 bits"):
        read_image(tmp_path / "x.tif", 8)


def test_first_frame_of_a_gif_is_read_on_white(tmp_path):
    colors = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]], dtype=np.uint8)
    numbers = (np.indices((32, 32)).sum(0) % 3).astype(np.uint8)
    frame = Image.fromarray(numbers).convert("P")
    frame.putpalette(colors.ravel().tolist())
    frame.putdata(numbers.ravel().tolist())
    frame.save(tmp_path / "x.gif", transparency=1, save_all=True, append_images=[draw("P")], disposal=2)
    colors[1] = 255
    assert np.array_equal(upright(read_image(tmp_path / "x.gif", 32)), colors[numbers])


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF decoder")
def test_avif_is_read(tmp_path):
    smooth = (np.indices((32, 32)).sum(0)[..., None] * [4, 3, 2]).astype(np.uint8)
    save(tmp_path / "x.avif", smooth, quality=95, speed=10)
    assert np.abs(upright(read_image(tmp_path / "x.avif", 32)).astype(int) - smooth).max() < 12


def test_avif_without_a_decoder_is_named_with_a_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr("resnet_train.data.pictures.FORMATS", ("PNG", "JPEG"))
    (tmp_path / "x.jpg").write_bytes(b"\0\0\0\x18ftypavif" + bytes(100))
    with pytest.raises(ValueError, match="this Pillow has no AVIF decoder: upgrade it"):
        read_image(tmp_path / "x.jpg", 8)


def test_a_png_with_megabytes_of_text_and_profile_is_read(tmp_path):
    texts = PngInfo()
    for compressed in (False, True):
        texts.add_text("a text", "x" * 3_000_000, zip=compressed)
        texts.add_itxt("an international text", "é" * 3_000_000, zip=compressed)
    save(tmp_path / "x.png", pnginfo=texts, icc_profile=bytes(5_000_000))
    assert (tmp_path / "x.png").stat().st_size > 6_000_000
    with pytest.raises(ValueError, match="too large"):
        Image.open(tmp_path / "x.png").load()
    assert np.array_equal(upright(read_image(tmp_path / "x.png", 32)), random_pixels())


def test_texts_behind_the_pixels_are_left_out(tmp_path):
    content = save(tmp_path / "x.png").read_bytes()
    text = b"zTXt" + b"key\0\0" + zlib.compress(bytes(5_000_000))
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    (tmp_path / "x.png").write_bytes(content[:-12] + chunk + content[-12:])
    assert np.array_equal(upright(read_image(tmp_path / "x.png", 32)), random_pixels())


def test_transparency_is_blended_after_reducing(tmp_path):
    """Hidden colors under transparent pixels do not bleed into the others."""
    pixels = np.zeros((64, 64, 4), dtype=np.uint8)
    pixels[:, :32] = (0, 200, 0, 255)
    pixels[:, 32:] = (255, 0, 0, 0)
    result = upright(read_image(save(tmp_path / "x.png", pixels), 16)).astype(int)
    assert np.abs(result[:, :6] - [0, 200, 0]).max() <= 1
    assert np.abs(result[:, 10:] - 255).max() <= 1
    assert (result[:, 7:9, 0] <= result[:, 7:9, 1] + 80).all()


def test_one_large_picture_is_decoded_at_a_time(tmp_path, monkeypatch):
    free, opened = [], pictures._open
    monkeypatch.setattr("resnet_train.data.pictures.BUDGET", pictures.MemoryBudget(80_000_000))
    monkeypatch.setattr("resnet_train.data.pictures._open", lambda *_: free.append(pictures.BUDGET.free) or opened(*_))
    draw("RGB", (2000, 1500)).save(tmp_path / "x.webp", lossless=True, method=0)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: read_image(tmp_path / "x.webp", 32), range(8)))
    assert free == [80_000_000 - 20 * 2000 * 1500] * 8
    assert pictures.BUDGET.free == 80_000_000


def test_memory_is_free_again_after_a_broken_picture(tmp_path):
    path = save(tmp_path / "x.png", random_pixels(64, 64))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(OSError, match="truncated"):
        read_image(path, 8)
    assert BUDGET.free == MEMORY_BYTES
