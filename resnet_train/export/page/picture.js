"use strict";
// A picture as the square of pixels that a network takes: upright, on white, its short side resized, its center cropped,
// with the arithmetic of Pillow, which training and resnet-predict use. A canvas would scale with other weights.

const STRIP = 256; // rows that are read from the canvas at a time, a multiple of 8: large pictures take little memory
const PRECISION = 2 ** 22; // of the fixed-point weights of a resize

const clip = value => value < 0 ? 0 : value > 255 ? 255 : value;

/** Return the part of a length that a square of the other side's length takes: [start, end]. */
const cropCenter = (length, other) => length > other ? [(length - other) / 2, (length - other) / 2 + other] : [0, length];

function bicubic(x) {
  x = Math.abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

/** Return, for each of `size` pixels, the first of the old pixels it is made of and their weights. */
function resizeWeights(length, [start, end], size) {
  const scale = (end - start) / size, stretch = Math.max(scale, 1), support = 2 * stretch;
  return Array.from({length: size}, (_, i) => {
    const center = start + (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5));
    const last = Math.min(length, Math.trunc(center + support + 0.5));
    const weights = Array.from({length: last - first}, (_, x) => bicubic((x + first - center + 0.5) / stretch));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    return {first, weights: weights.map(weight => {
      const fixed = weight / sum * PRECISION;
      return Math.trunc(fixed < 0 ? fixed - 0.5 : fixed + 0.5);
    })};
  });
}

/** Resize along one axis. The other axis has `lines` lines; `step` and `lineStep` are distances in `pixels`. */
function resizeAxis(pixels, resized, targets, lines, [step, lineStep], [newStep, newLineStep]) {
  for (let line = 0; line < lines; line++) {
    targets.forEach(({first, weights}, target) => {
      for (let channel = 0; channel < 4; channel++) {
        let sum = PRECISION / 2, at = line * lineStep + first * step + channel;
        for (let i = 0; i < weights.length; i++, at += step) sum += pixels[at] * weights[i];
        resized[line * newLineStep + target * newStep + channel] = clip(Math.floor(sum / PRECISION));
      }
    });
  }
}

/** Return by how much Pillow reduces a JPEG while it decodes it: 8, 4, 2 or 1. */
const jpegScale = (width, height, size) => [8, 4, 2].find(scale => Math.min(width, height) >= scale * size) ?? 1;

/** Reduce RGBA pixels to the means of squares, as decoders of JPEGs do; a square at the border is filled up. */
function reduceJpeg(pixels, width, height, scale) {
  const newWidth = Math.ceil(width / scale), newHeight = Math.ceil(height / scale);
  const sums = new Uint32Array(newWidth * newHeight * 4), area = scale * scale;
  for (let y = 0; y < newHeight * scale; y++) {
    const line = Math.min(y, height - 1) * width, newLine = Math.floor(y / scale) * newWidth;
    for (let x = 0; x < newWidth * scale; x++) {
      const from = (line + Math.min(x, width - 1)) * 4, to = (newLine + Math.floor(x / scale)) * 4;
      for (let channel = 0; channel < 4; channel++) sums[to + channel] += pixels[from + channel];
    }
  }
  return Uint8ClampedArray.from(sums, sum => sum / area); // rounded
}

/** Multiply the colors by the alpha value, in place, so that transparent pixels count for nothing when resized. */
function premultiply(pixels) {
  for (let i = 0; i < pixels.length; i += 4) {
    for (let channel = 0; channel < 3; channel++) {
      const product = pixels[i + channel] * pixels[i + 3] + 128;
      pixels[i + channel] = ((product >> 8) + product) >> 8;
    }
  }
}

/** Return premultiplied RGBA pixels on white, as RGB [3, size, size]. */
function putOnWhite(pixels) {
  const area = pixels.length / 4, square = new Uint8Array(3 * area);
  for (let i = 0; i < area; i++) {
    const alpha = pixels[4 * i + 3], part = alpha * 128, rest = 255 * 128 - part;
    for (let channel = 0; channel < 3; channel++) {
      const value = pixels[4 * i + channel];
      const color = alpha === 0 || alpha === 255 ? value : clip(Math.trunc(255 * value / alpha));
      const blended = color * part + 255 * rest + 128 * 128;
      square[channel * area + i] = alpha ? (((blended >> 8) + blended) >> 8) >> 7 : 255;
    }
  }
  return square;
}

/** Return the EXIF orientation of a WebP file, 1 to 8. Browsers ignore it in this format only. */
function webpOrientation(buffer) {
  const view = new DataView(buffer), text = at => String.fromCharCode(...new Uint8Array(buffer, at, 4));
  try {
    let at = 12;
    while (text(at) !== "EXIF") at += 8 + Math.ceil(view.getUint32(at + 4, true) / 2) * 2;
    const start = at + (text(at + 8) === "Exif" ? 14 : 8), isLittle = text(start).startsWith("II");
    const directory = start + view.getUint32(start + 4, isLittle);
    for (let entry = 0; entry < view.getUint16(directory, isLittle); entry++) {
      const place = directory + 2 + 12 * entry;
      if (view.getUint16(place, isLittle) === 0x0112) return view.getUint16(place + 8, isLittle);
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // the file ends without it
  }
  return 1;
}

/** Return a square with its pixels moved as an EXIF orientation says. */
function turnUpright(square, size, orientation) {
  const last = size - 1, turned = new Uint8Array(square.length);
  const find = {
    2: (x, y) => [last - x, y], 3: (x, y) => [last - x, last - y], 4: (x, y) => [x, last - y], 5: (x, y) => [y, x],
    6: (x, y) => [y, last - x], 7: (x, y) => [last - y, last - x], 8: (x, y) => [last - y, x],
  }[orientation];
  if (!find) return square;
  for (let i = 0; i < square.length; i++) {
    const [x, y] = find(i % size, Math.floor(i / size) % size);
    turned[i] = square[i - i % (size * size) + y * size + x];
  }
  return turned;
}

/** Return the square of a picture, RGB [3, size, size] with values 0 to 255.
 *
 * `readRows(y, count)` returns RGBA pixels of the upright picture. A JPEG is reduced as far as Pillow reduces it. */
function toSquare(readRows, width, height, size, isJpeg) {
  const scale = isJpeg ? jpegScale(width, height, size) : 1;
  const newWidth = Math.ceil(width / scale), newHeight = Math.ceil(height / scale);
  const columns = resizeWeights(newWidth, cropCenter(newWidth, newHeight), size);
  const narrow = new Uint8ClampedArray(size * newHeight * 4), square = new Uint8ClampedArray(size * size * 4);

  // Strip by strip: reduce, then resize to the final width.
  for (let y = 0; y < height; y += STRIP) {
    const count = Math.min(STRIP, height - y);
    let rows = readRows(y, count);
    premultiply(rows);
    if (scale > 1) rows = reduceJpeg(rows, width, count, scale);
    const lines = Math.ceil(count / scale), start = y / scale * size * 4;
    resizeAxis(rows, narrow.subarray(start), columns, lines, [4, newWidth * 4], [4, size * 4]);
  }

  // Then resize to the final height.
  const lines = resizeWeights(newHeight, cropCenter(newHeight, newWidth), size);
  resizeAxis(narrow, square, lines, size, [size * 4, 4], [size * 4, 4]);
  return putOnWhite(square);
}
