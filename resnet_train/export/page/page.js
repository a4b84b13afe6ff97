"use strict";
// What a person sees and does: choose, drop, paste or film a picture, and read the answer.

const network = JSON.parse(document.getElementById("network").textContent);
const [answer, bars, camera, choose, file, note, photo, problem, seen, shown, video] = [
  "answer", "bars", "camera", "choose", "file", "note", "photo", "problem", "seen", "shown", "video",
].map(id => document.getElementById(id));
const MOST_BARS = 10;
const CAMERA_PROBLEMS = {
  NotAllowedError: "The camera is blocked. Allow it for this page in the browser, then try again.",
  NotFoundError: "No camera was found. Connect one, or choose a picture.",
  NotReadableError: "The camera can't be started. Close other programs that use it, then try again.",
};
let stream = null, newest = 0;

// --- The network, in a worker ---

const worker = new Worker(URL.createObjectURL(new Blob([document.getElementById("worker").textContent])));
const waiting = new Map(); // number of a question to the functions that end it

worker.postMessage({network, weights: document.getElementById("weights").textContent.trim()});
worker.addEventListener("message", ({data}) => {
  const question = waiting.get(data.id);
  waiting.delete(data.id);
  if (!question) tell(`The network can't run in this browser (${data.error}).`);
  else if (data.error) question.reject(new Error(data.error));
  else question.resolve(data);
});
worker.addEventListener("error", () => tell("The network can't run in this browser: it does not start workers."));

/** Return what the network says about a file or a frame: {square, logits, milliseconds}. */
function ask(source) {
  const id = ++newest;
  return new Promise((resolve, reject) => {
    waiting.set(id, {resolve, reject});
    worker.postMessage({id, source}, source instanceof Blob ? [] : [source]);
  });
}

// --- The answer ---

/** Return the calibrated probabilities of logits, and the score that is low for unknown pictures. */
function interpret(logits) {
  const temperature = network.calibration?.temperature ?? 1, most = Math.max(...logits);
  const powers = Array.from(logits, logit => Math.exp((logit - most) / temperature));
  const sum = powers.reduce((total, power) => total + power, 0);
  const score = most + Math.log(logits.reduce((total, logit) => total + Math.exp(logit - most), 0));
  return {probabilities: powers.map(power => power / sum), score};
}

const percent = probability => `${(100 * probability).toFixed(1)} %`;

/** Set the text of an element that is read aloud when it changes. */
function say(element, text) {
  element.hidden = !text;
  if (element.textContent !== text) element.textContent = text;
}

/** Say what went wrong; an empty text takes that back. */
function tell(text) {
  say(problem, text);
}

function newElement(tag, className, text) {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

function drawBars(probabilities) {
  const ranked = probabilities.map((probability, i) => [network.classes[i], probability]);
  ranked.sort((left, right) => right[1] - left[1]);
  bars.replaceChildren(...ranked.slice(0, MOST_BARS).map(([name, probability]) => {
    const row = document.createElement("li"), track = newElement("span", "track", "");
    const bar = track.appendChild(newElement("span", "bar", ""));
    bar.style.width = `${100 * probability}%`;
    row.append(newElement("bdi", "name", name), track, newElement("span", "number", percent(probability)));
    return row;
  }));
  return ranked[0];
}

/** Draw the pixels that the network got. */
function drawSquare(square) {
  const {size} = network, image = new ImageData(size, size), area = size * size;
  for (let i = 0; i < area; i++) {
    image.data.set([square[i], square[area + i], square[2 * area + i], 255], 4 * i);
  }
  seen.width = seen.height = size;
  seen.getContext("2d").putImageData(image, 0, 0);
}

/** Show what the network says; the frames of a camera are announced without their numbers, which change all the time. */
function show({square, logits, milliseconds}, isLive) {
  const {probabilities, score} = interpret(logits), [name, probability] = drawBars(probabilities);
  const threshold = network.calibration?.known_from, isUnknown = threshold !== undefined && score < threshold;
  drawSquare(square);
  say(answer, (isLive ? name : `${name}, ${percent(probability)}`) + (isUnknown ? " – or none of its classes" : ""));
  const known = threshold === undefined ? "" : `Score ${score.toFixed(2)}, ${isUnknown ? "below" : "at least"} ${
    threshold.toFixed(2)}: ${isUnknown ? "unlike" : "like"} the training pictures. `;
  note.textContent = `${known}Computed in ${milliseconds.toFixed(0)} ms.`;
  shown.hidden = note.hidden = false;
}

// --- Pictures ---

async function classifyFile(picture) {
  stopCamera();
  tell("");
  const question = ask(picture), id = newest;
  try {
    const said = await question;
    if (id !== newest) return; // another picture came
    URL.revokeObjectURL(photo.src);
    photo.src = URL.createObjectURL(picture);
    photo.alt = picture.name ? `Your picture ${picture.name}` : "Your picture";
    photo.hidden = false;
    show(said, false);
  } catch (error) {
    tell(`${picture.name || "This"} is not a picture that this browser can read. Convert it to JPEG or PNG.`);
  }
}

/** Classify the first of the files that were dropped, pasted or chosen. */
function take(files, otherwise) {
  const picture = [...files].find(one => one.type.startsWith("image/")) ?? files[0];
  if (picture) classifyFile(picture);
  else if (otherwise) tell(otherwise);
}

choose.addEventListener("click", () => file.click());
file.addEventListener("change", () => {
  take(file.files);
  file.value = ""; // so that the same file can be chosen again
});
addEventListener("paste", event => take(event.clipboardData.files, "There is no picture on the clipboard."));
addEventListener("dragover", event => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
addEventListener("dragleave", event => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
addEventListener("drop", event => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  take(event.dataTransfer.files, "Only files can be dropped here: save the picture first.");
});

// --- The camera ---

function stopCamera() {
  stream?.getTracks().forEach(track => track.stop());
  stream = video.srcObject = null;
  video.hidden = true;
  camera.textContent = "Use the camera";
}

async function startCamera() {
  tell("");
  if (!navigator.mediaDevices?.getUserMedia) {
    tell("This browser does not give this page a camera: open it as a file or over https.");
    return;
  }
  try {
    const opened = await navigator.mediaDevices.getUserMedia({video: {facingMode: "environment"}});
    stream = video.srcObject = opened;
    opened.getVideoTracks()[0].addEventListener("ended", () => {
      stopCamera();
      tell("The camera was disconnected.");
    });
    await video.play();
    photo.hidden = true;
    video.hidden = shown.hidden = false;
    camera.textContent = "Stop the camera";
    while (stream === opened) {
      const said = await ask(await createImageBitmap(video));
      if (stream !== opened) return;
      show(said, true);
      await new Promise(requestAnimationFrame);
    }
  } catch (error) {
    stopCamera();
    tell(CAMERA_PROBLEMS[error.name] ?? `The camera can't be used (${error.name}: ${error.message}).`);
  }
}

camera.addEventListener("click", () => stream ? stopCamera() : startCamera());
