"""Images that occur twice: equal ones, and ones that were shifted, mirrored or re-encoded.

Near duplicates are found in two steps. Each image is compared with all others by a descriptor of 8×8 cells, which
changes little if the image is shifted by a pixel. Then the nearest pairs are laid over each other at all small shifts,
and their details are correlated: a plane in front of the sky has the descriptor of other planes, but not their edges.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

SIDE = 32  # pixels at which images are compared; larger ones are averaged down
CELLS = 8  # cells of a descriptor in each direction
NUM_CANDIDATES = 8  # nearest images by their descriptors, straight and mirrored, that are examined closely
MIN_COSINE = 0.9  # between the descriptors of candidates
MAX_SHIFT = 2  # pixels
# Correlation of the details of near duplicates: at least the first; more if unrelated images are that similar by
# chance, as pictures with few details are, but never more than the second.
MIN_SIMILARITY, MAX_SIMILARITY = 0.85, 0.95
NUM_RANDOM_PAIRS, MIN_IMAGES = 1024, 50  # to estimate chance from, and the fewest images for which it is estimated
SURROUNDINGS_SHARE = 8  # a pixel is compared with those up to 1/8 of the side length away: 4 pixels of 32
CHUNK, ROWS_AT_ONCE, PAIRS_AT_ONCE = 1024, 256, 1024  # images and pairs, so that memory stays small

Progress = Callable[[Iterable[int]], Iterable[int]]  # shows how many of the steps are done


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs of images that are nearly the same, most similar first.

    Attributes:
        pairs: int64 [P, 2], the lower index first.
        similarity: float [P], the correlation of their details, at most 1.
        mirrored: bool [P].
        shifts: int64 [P, 2], how far the second image is shifted, down and to the right, in pixels of the compared
            size.
    """

    pairs: np.ndarray
    similarity: np.ndarray
    mirrored: np.ndarray
    shifts: np.ndarray

    def __len__(self) -> int:
        return len(self.pairs)

    def renumber(self, numbers: np.ndarray) -> NearDuplicates:
        """Return the same pairs with the number of each image instead of its index."""
        return replace(self, pairs=numbers[self.pairs])


def shrink(images: np.ndarray) -> np.ndarray:
    """Return images uint8 [N, 3, H, W] averaged down to at most 32 pixels."""
    side = images.shape[-1]
    if side <= SIDE:
        return np.ascontiguousarray(images)
    parts = (torch.from_numpy(images[start : start + CHUNK]) for start in range(0, len(images), CHUNK))
    return torch.cat([F.interpolate(part.float(), size=SIDE, mode="area").round().byte() for part in parts]).numpy()


def group_equal(images: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Return the indices, int64, of the images in each group of equal ones, for images uint8 [3, H, W]."""
    groups: dict[bytes, list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(hashlib.blake2b(image.tobytes(), digest_size=16).digest(), []).append(index)
    return [np.array(group) for group in groups.values() if len(group) > 1]


@torch.inference_mode()
def find_near(images: np.ndarray, device: torch.device, progress: Progress = iter) -> NearDuplicates:
    """Find pairs of images that are the same up to a shift of two pixels, a reflection and small changes of the pixels.

    The time grows with the square of the number of images.

    Args:
        images: uint8 [N, 3, S, S] with S of at most 32, all different.
        device: the device to compute on.
        progress: wraps the steps.
    """
    candidates, mirrored = _find_candidates(images, device, progress)
    similarity, shifts = _measure(images, candidates, mirrored, device)
    least = _find_threshold(images, device)

    # Keep the similar pairs, most similar first, each once: an image may resemble another and its reflection.
    order = np.argsort(-similarity, kind="stable")
    order = order[similarity[order] >= least]
    _, first = np.unique(candidates[order], axis=0, return_index=True)
    chosen = order[np.sort(first)]
    return NearDuplicates(candidates[chosen], similarity[chosen], mirrored[chosen], shifts[chosen])


def join_groups(count: int, pairs: Iterable[Sequence[int]]) -> np.ndarray:
    """Return for each of `count` images the lowest index among those that pairs connect it with, int64 [N]."""
    from scipy.sparse import coo_array  # takes 0.2 s to import
    from scipy.sparse.csgraph import connected_components

    edges = np.array(list(pairs), dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), shape=(count, count))
    _, component = connected_components(graph, directed=False)
    _, lowest = np.unique(component, return_index=True)
    return lowest[component]


def _find_candidates(images: np.ndarray, device: torch.device, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of images with similar descriptors, int64 [P, 2], and whether one of them is mirrored, bool [P]."""
    straight = torch.cat([_describe(images[i : i + CHUNK], device) for i in range(0, len(images), CHUNK)])  # [N, D]
    turned = straight.unflatten(1, (3, -1, min(CELLS, images.shape[-1]))).flip(3).flatten(1)
    found: set[tuple[int, int, bool]] = set()
    count = min(NUM_CANDIDATES, len(images))
    for start in progress(range(0, len(images), ROWS_AT_ONCE)):
        for others, is_mirrored in ((straight, False), (turned, True)):
            cosines = straight[start : start + ROWS_AT_ONCE] @ others.T  # [B, N]
            cosines[torch.arange(len(cosines)), torch.arange(start, start + len(cosines))] = -1
            values, nearest = cosines.topk(count, dim=1)
            rows, columns = torch.nonzero(values >= MIN_COSINE, as_tuple=True)
            for one, other in zip((rows + start).tolist(), nearest[rows, columns].tolist()):
                found.add((min(one, other), max(one, other), is_mirrored))
    ordered = sorted(found)
    pairs = np.array([(one, other) for one, other, _ in ordered], dtype=np.int64).reshape(-1, 2)
    return pairs, np.array([is_mirrored for *_, is_mirrored in ordered], dtype=bool)


def _measure(
    images: np.ndarray, pairs: np.ndarray, mirrored: np.ndarray, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Return the similarity of each pair, float [P], and how far its second image is shifted, int64 [P, 2]."""
    similarity, shifts = np.empty(len(pairs), np.float32), np.empty((len(pairs), 2), np.int64)
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        first, second = (_to_details(images[pairs[part, side]], device) for side in (0, 1))
        flips = torch.from_numpy(mirrored[part]).to(device)[:, None, None, None]
        best, where = _correlate(first, torch.where(flips, second.flip(3), second))
        similarity[part], shifts[part] = best.cpu().numpy(), where.cpu().numpy()
    return similarity, shifts


def _find_threshold(images: np.ndarray, device: torch.device) -> float:
    """Return the similarity that no pair of unrelated images should reach, within the two limits.

    Fisher's transform of correlations is about normal; the highest of N² such numbers lies a known number of standard
    deviations away.
    """
    if len(images) < MIN_IMAGES:
        return MIN_SIMILARITY
    rng = np.random.default_rng(0)
    first = rng.integers(0, len(images), NUM_RANDOM_PAIRS)
    second = (first + rng.integers(1, len(images), NUM_RANDOM_PAIRS)) % len(images)
    similarity, _ = _measure(images, np.stack([first, second], axis=1), np.zeros(NUM_RANDOM_PAIRS, bool), device)
    transformed = np.arctanh(similarity.clip(-0.999, 0.999))
    highest = transformed.mean() + transformed.std() * np.sqrt(2 * np.log(len(images) ** 2))
    return float(np.tanh(highest).clip(MIN_SIMILARITY, MAX_SIMILARITY))


def _describe(images: np.ndarray, device: torch.device) -> Tensor:
    """Return the colors of 8×8 blurred cells without the mean of each channel, float [B, D] of length 1.

    The blur makes it change less if the image is shifted. Plain images have a descriptor of zeros.
    """
    pixels, cells = torch.from_numpy(images).to(device).float(), min(CELLS, images.shape[-1])
    colors = F.adaptive_avg_pool2d(_blur(pixels, min(MAX_SHIFT, images.shape[-1] // CELLS)), cells)
    return F.normalize((colors - colors.mean(dim=(2, 3), keepdim=True)).flatten(1), dim=1)


def _to_details(images: np.ndarray, device: torch.device) -> Tensor:
    """Return what differs from the surroundings of each pixel, float [B, 3, S, S]."""
    pixels = torch.from_numpy(images).to(device).float()
    return pixels - _blur(pixels, max(1, images.shape[-1] // SURROUNDINGS_SHARE))


def _blur(pixels: Tensor, radius: int) -> Tensor:
    """Return the mean of the pixels up to `radius` away in each direction."""
    return F.avg_pool2d(pixels, 2 * radius + 1, stride=1, padding=radius, count_include_pad=False)


def _correlate(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return the correlation of two images at the best shift, float [B], and that shift, int64 [B, 2].

    Args:
        first, second: details float [B, 3, S, S].
    """
    # Without color, find the shift at which they are most similar.
    margin = min(MAX_SHIFT, (first.shape[-1] - 1) // 4)
    steps = range(-margin, margin + 1)
    shifts = torch.tensor([(down, right) for down in steps for right in steps], device=first.device)  # [25, 2]
    gray = first.mean(dim=1, keepdim=True), second.mean(dim=1, keepdim=True)
    best = torch.stack([_compare(*gray, margin, *shift) for shift in shifts.tolist()]).argmax(dim=0)  # [B]

    # Compare their colors there.
    similarity = torch.empty(len(first), device=first.device)
    for number, shift in enumerate(shifts.tolist()):
        chosen = best == number
        similarity[chosen] = _compare(first[chosen], second[chosen], margin, *shift)
    return similarity, shifts[best]


def _compare(first: Tensor, second: Tensor, margin: int, down: int, right: int) -> Tensor:
    """Return the correlation of the middle of one image with the shifted window of another, float [B]."""
    side = first.shape[-1] - 2 * margin
    middle = first[:, :, margin : margin + side, margin : margin + side].flatten(1)
    top, left = margin + down, margin + right
    return F.cosine_similarity(middle, second[:, :, top : top + side, left : left + side].flatten(1), dim=1)
