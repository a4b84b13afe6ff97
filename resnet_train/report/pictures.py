"""Pictures for TensorBoard, drawn with Pillow: captioned images, the most confident mistakes, a confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from resnet_train.data.augment import denormalize
from resnet_train.data.batch import Batch
from resnet_train.evaluation.evaluate import Evaluation
from resnet_train.records import About

# A card in TensorBoard is about 400 pixels wide and shrinks what is wider.
NUM_SHOWN, PER_ROW = 16, 4
IMAGE_SIDE, MARGIN, LINE_HEIGHT = 96, 6, 14  # in pixels
MAX_LABELLED_CLASSES = 100
BACKGROUND, INK, PALE_INK = "white", "black", "#767676"


def caption_images(images: np.ndarray, captions: Sequence[str]) -> np.ndarray:
    """Return one picture uint8 [H, W, 3] of at most 16 images uint8 [N, 3, h, w], each above its caption.

    A caption may have several lines; those that are too long are cut.
    """
    images, captions = images[:NUM_SHOWN], captions[:NUM_SHOWN]
    num_lines = max((caption.count("\n") + 1 for caption in captions), default=1)
    cell = IMAGE_SIDE + MARGIN, IMAGE_SIDE + MARGIN + num_lines * LINE_HEIGHT
    num_rows = max(1, -(-len(images) // PER_ROW))
    picture = Image.new("RGB", (min(PER_ROW, max(1, len(images))) * cell[0], num_rows * cell[1]), BACKGROUND)
    draw, font = ImageDraw.Draw(picture), _font(11)
    for number, (image, caption) in enumerate(zip(images, captions)):
        left, top = number % PER_ROW * cell[0] + MARGIN // 2, number // PER_ROW * cell[1] + MARGIN // 2
        picture.paste(_enlarge(image), (left, top))
        for line, text in enumerate(caption.split("\n")):
            ink = PALE_INK if line else INK
            place = left, top + IMAGE_SIDE + 1 + line * LINE_HEIGHT
            draw.text(place, _cut(text, font, IMAGE_SIDE), fill=ink, font=font)
    return np.asarray(picture)


def draw_batch(batch: Batch, about: About) -> np.ndarray:
    """Return a picture of training images as the network sees them, with their classes."""
    pixels = denormalize(batch.images[:NUM_SHOWN].float().cpu(), about.mean, about.std)  # [N, 3, H, W]
    names = [about.classes[label] for label in batch.labels[:NUM_SHOWN].tolist()]
    if batch.partner_labels is not None and batch.weights is not None:
        partners = [about.classes[label] for label in batch.partner_labels[:NUM_SHOWN].tolist()]
        weights = batch.weights[:NUM_SHOWN].tolist()
        names = [f"{weight:.0%} {a}\n{1 - weight:.0%} {b}" for weight, a, b in zip(weights, names, partners)]
    return caption_images((pixels.clamp(0, 1) * 255).round().byte().numpy(), names)


def find_mistakes(evaluation: Evaluation) -> np.ndarray:
    """Return the positions of the 16 wrong predictions with the highest probability, highest first."""
    confidence, predicted = evaluation.logits.double().softmax(1).max(1)  # [N]
    wrong = (predicted != evaluation.labels).nonzero()[:, 0]
    return wrong[confidence[wrong].argsort(descending=True, stable=True)][:NUM_SHOWN].numpy()


def draw_mistakes(
    evaluation: Evaluation, positions: np.ndarray, images: np.ndarray, classes: Sequence[str]
) -> np.ndarray:
    """Return a picture of wrongly classified images uint8 [N, 3, H, W]: prediction, its probability, true class."""
    confidence, predicted = evaluation.logits[positions].softmax(1).max(1)  # [N]
    rows = zip(predicted.tolist(), confidence.tolist(), evaluation.labels[positions].tolist())
    return caption_images(images, [f"{classes[p]} {c:.0%}\nis {classes[label]}" for p, c, label in rows])


def draw_confusion(confusion: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Return a picture of a confusion matrix int [C, C]; the shade of a cell is its share of the row's images.

    Up to 20 classes have their counts, and up to 100 their names.
    """
    num = len(classes)
    cell = 34 if num <= 20 else 12 if num <= MAX_LABELLED_CLASSES else max(1, 1200 // num)
    font = _font(12 if num <= 20 else 9)
    names = [_cut(name, font, 120) for name in classes] if num <= MAX_LABELLED_CLASSES else []
    edge = max((int(font.getlength(name)) for name in names), default=0) + 12
    top = edge + 18

    # Shade the cells, light where there are few images.
    shares = confusion / np.maximum(1, confusion.sum(axis=1, keepdims=True))
    dark = np.array([8, 48, 107])
    shades = (255 - (255 - dark) * np.sqrt(shares)[..., None]).astype(np.uint8)  # [C, C, 3]
    cells = Image.fromarray(shades).resize((num * cell, num * cell), Image.Resampling.NEAREST)
    picture = Image.new("RGB", (edge + num * cell + MARGIN, top + num * cell + MARGIN), BACKGROUND)
    picture.paste(cells, (edge, top))
    draw = ImageDraw.Draw(picture)
    draw.text((4, 2), "rows: true class, columns: predicted class", fill=PALE_INK, font=_font(11))

    # Draw names next to the rows and, rotated, above the columns.
    for number, name in enumerate(names):
        middle = number * cell + cell // 2
        draw.text((edge - 5, top + middle), name, fill=INK, font=font, anchor="rm")
        turned = Image.new("RGB", (edge, cell), BACKGROUND)
        ImageDraw.Draw(turned).text((4, cell // 2), name, fill=INK, font=font, anchor="lm")
        picture.paste(turned.rotate(90, expand=True), (edge + number * cell, 18))
    if num <= 20:
        for (row, column), count in np.ndenumerate(confusion):
            ink = "white" if shares[row, column] > 0.3 else INK if count else PALE_INK
            place = edge + column * cell + cell // 2, top + row * cell + cell // 2
            draw.text(place, f"{count}", fill=ink, font=font, anchor="mm")
    return np.asarray(picture)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _enlarge(image: np.ndarray) -> Image.Image:
    """Return an image uint8 [3, h, w] at the size of a cell; small ones keep sharp pixels, large ones are averaged."""
    pixels = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    method = Image.Resampling.NEAREST if max(pixels.size) < IMAGE_SIDE else Image.Resampling.BOX
    return pixels.resize((IMAGE_SIDE, IMAGE_SIDE), method)


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Return the text without control characters, shortened to at most `width` pixels."""
    text = "".join(character if character.isprintable() else "?" for character in text)[:width]
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"
