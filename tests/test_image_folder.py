"""Folders of pictures: formats, orientation, transparency, cropping, broken files, layouts and their cache."""

from __future__ import annotations

import json
import logging
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from resnet_train.data.dataset import load_dataset
from resnet_train.data.sources.folder import MAX_PIXELS, find_images, read_image

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


def load(data_dir, split="train", image_size=8):
    return load_dataset("folder", split, data_dir, image_size)


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


@pytest.mark.parametrize("side", [20_000, 7_000])
def test_decompression_bomb_is_skipped_and_reported(tmp_path, caplog, side):
    fill_folder(tmp_path, each=10)
    png_header(tmp_path / "train" / "dog" / "bomb.png", side, side)
    assert len(load(tmp_path)) == 20
    (report,) = reports(caplog)
    assert "bomb.png" in report
    assert "pixels" in report


def test_pixel_limit_is_exact(tmp_path):
    png_header(tmp_path / "x.png", MAX_PIXELS // 4096, 4097)
    with pytest.raises(ValueError, match=f"8192 × 4097 pixels are more than {MAX_PIXELS}"):
        read_image(tmp_path / "x.png", 32)


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


def test_statistics_are_of_the_pictures(tmp_path):
    fill_folder(tmp_path)
    data = load(tmp_path)
    assert data.mean == pytest.approx((data.images / 255).mean((0, 2, 3)), abs=1e-6)
    assert data.std == pytest.approx((data.images / 255).std((0, 2, 3)), abs=1e-6)


def test_all_formats_and_spellings_are_found_and_no_others(tmp_path):
    folder = tmp_path / "train" / "cat"
    names = ["a.png", "b.PNG", "c.jpg", "d.JPEG", "e.webp", "f.bmp", ".hidden.png"]
    for name in names:
        save(folder / name)
    for name in ("notes.txt", "x.gif", "png", "Thumbs.db"):
        (folder / name).write_text("no picture")
    (folder / "deeper.png").mkdir()
    (tmp_path / "train" / "loose.png").write_text("belongs to no class")
    (tmp_path / "train" / ".git").mkdir()
    files, classes = find_images(tmp_path, "train")
    assert sorted(file.path.name for file in files) == sorted(names)
    assert classes == ("cat",)
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
    with pytest.raises(ValueError, match=r"has no folder train/; images must lie in train/<class>/\*"):
        load(tmp_path, "train")


def test_folder_with_training_images_only_has_no_test_set(tmp_path):
    fill_folder(tmp_path, "train")
    assert load(tmp_path, "test") is None
    assert len(load(tmp_path, "train")) == 6


def test_class_only_in_test_is_refused(tmp_path):
    fill_folder(tmp_path, "train")
    fill_folder(tmp_path, "test", ("cat", "emu"))
    with pytest.raises(ValueError, match=r"test.emu is a class that .*train does not have"):
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
    with pytest.raises(ValueError, match=r"emu holds no images \(\.bmp, \.jpeg, \.jpg, \.png, \.webp\)"):
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
    assert all(r"\udcff\udcfe.png" in report for report in reports(caplog))


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
            assert len(json.loads(path.read_text())["content"]["facts"]["skipped"]) == 1


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
    files, _ = find_images(tmp_path, "train")
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


def test_a_warning_counts_entries_that_are_not_pictures(tmp_path, caplog):
    fill_folder(tmp_path)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("")
    (tmp_path / "train" / "cat" / "more").mkdir()
    (tmp_path / "train" / "dog" / "x.gif").write_bytes(b"")
    with caplog.at_level(logging.WARNING, logger="resnet_train"):
        files, _ = find_images(tmp_path, "train")
    (record,) = [record for record in caplog.records if record.name == "resnet_train.data.sources.folder"]
    assert "ignoring 3 entries of class folders that are not PNG, JPEG, WebP or BMP" in record.getMessage()
    assert len(files) == 6


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
