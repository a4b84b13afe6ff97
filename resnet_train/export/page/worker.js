"use strict";
// Runs outside the page, which stays responsive: reads a picture, runs the network, and sends back the logits.

let size, runNetwork;

/** Return what a file is, whatever its name: "jpeg", "webp" or another picture. */
async function findKind(file) {
  const start = String.fromCharCode(...new Uint8Array(await file.slice(0, 12).arrayBuffer()));
  return start.startsWith("\xff\xd8") ? "jpeg" : /^RIFF[^]{4}WEBP/.test(start) ? "webp" : "";
}

/** Return the square of a file or of a frame of the camera. */
async function readSquare(source) {
  const isFile = source instanceof Blob, kind = isFile ? await findKind(source) : "";
  const imageOrientation = kind === "webp" ? "none" : "from-image";
  const bitmap = isFile ? await createImageBitmap(source, {colorSpaceConversion: "none", imageOrientation}) : source;
  const {width, height} = bitmap;
  const canvas = new OffscreenCanvas(width, Math.min(height, STRIP));
  const context = canvas.getContext("2d", {willReadFrequently: true});
  const readRows = (y, count) => {
    context.clearRect(0, 0, width, count);
    context.drawImage(bitmap, 0, y, width, count, 0, 0, width, count);
    return context.getImageData(0, 0, width, count).data;
  };
  const square = toSquare(readRows, width, height, size, kind === "jpeg");
  bitmap.close();
  return kind === "webp" ? turnUpright(square, size, webpOrientation(await source.arrayBuffer())) : square;
}

addEventListener("message", async ({data: {network, weights, id, source}}) => {
  try {
    if (network) {
      ({size} = network);
      runNetwork = prepareNetwork(network, weights);
      return;
    }
    const square = await readSquare(source), start = performance.now();
    const logits = runNetwork(square);
    postMessage({id, square, logits, milliseconds: performance.now() - start});
  } catch (error) {
    postMessage({id, error: `${error.name}: ${error.message}`});
  }
});
