"use strict";
// A network as a list of instructions, run on one picture. Values are maps {channels, height, width, data}, channel by
// channel, row by row. An instruction reads the maps in the slots `from` and writes its own into the slot `to`.

const BLOCK = 4; // output channels, and pixels, that a convolution computes at once: 16 sums fit in registers

/** Return the value of each of the 65,536 finite or infinite 16-bit floats. */
function halfFloats() {
  const values = new Float32Array(65536);
  for (let bits = 0; bits < values.length; bits++) {
    const exponent = (bits >> 10) & 31, fraction = bits & 1023;
    const size = exponent ? (1024 + fraction) * 2 ** (exponent - 25) : fraction * 2 ** -24;
    values[bits] = bits & 32768 ? -size : size;
  }
  return values;
}

/** Return a function from {at, shape, half} to the tensor's numbers, for tensors in the bytes of a base64 text. */
function tensorReader(base64) {
  const text = atob(base64), bytes = new Uint8Array(text.length), halves = halfFloats();
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  return ({at, shape, half}) => {
    const count = shape.reduce((product, size) => product * size, 1);
    return half
      ? Float32Array.from(new Uint16Array(bytes.buffer, at, count), bits => halves[bits])
      : new Float32Array(bytes.buffer, at, count);
  };
}

function newMap(channels, height, width) {
  return {channels, height, width, data: new Float32Array(channels * height * width)};
}

/** Return a map with `padding` more pixels of this value on each side. */
function padPixels({channels, height, width, data}, padding, value) {
  if (!padding) return {channels, height, width, data};
  const padded = newMap(channels, height + 2 * padding, width + 2 * padding);
  if (value) padded.data.fill(value);
  for (let row = 0, to = padding * padded.width + padding; row < channels * height; row++, to += padded.width) {
    if (row && row % height === 0) to += 2 * padding * padded.width;
    padded.data.set(data.subarray(row * width, (row + 1) * width), to);
  }
  return padded;
}

/** Return weights [O, K] as blocks [O/4, K, 4]; what fills the last block is 0. */
function packWeights(weight, outputs, taps) {
  const packed = new Float32Array(Math.ceil(outputs / BLOCK) * taps * BLOCK);
  for (let output = 0; output < outputs; output++) {
    const start = Math.floor(output / BLOCK) * taps * BLOCK + output % BLOCK;
    for (let tap = 0; tap < taps; tap++) packed[start + tap * BLOCK] = weight[output * taps + tap];
  }
  return packed;
}

/** Return the place of each pixel's first input, padded to whole blocks by repeating the last one. */
function inputStarts(height, width, stride, inputWidth) {
  const starts = new Int32Array(Math.ceil(height * width / BLOCK) * BLOCK);
  for (let i = 0; i < starts.length; i++) {
    const pixel = Math.min(i, height * width - 1);
    starts[i] = Math.floor(pixel / width) * stride * inputWidth + pixel % width * stride;
  }
  return starts;
}

/** Add up weight times input for four outputs at four pixels at a time, over all taps, and write the sums. */
function multiply(weights, bias, input, offsets, starts, output, firstOutput, outputs, pixels) {
  const taps = offsets.length;
  for (let first = 0; first < outputs; first += BLOCK) {
    const block = first * taps, rows = Math.min(BLOCK, outputs - first);
    for (let pixel = 0; pixel < pixels; pixel += BLOCK) {
      const p0 = starts[pixel], p1 = starts[pixel + 1], p2 = starts[pixel + 2], p3 = starts[pixel + 3];
      let a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;
      let c0 = 0, c1 = 0, c2 = 0, c3 = 0, d0 = 0, d1 = 0, d2 = 0, d3 = 0;
      for (let tap = 0, w = block; tap < taps; tap++, w += BLOCK) {
        const offset = offsets[tap];
        const x0 = input[p0 + offset], x1 = input[p1 + offset], x2 = input[p2 + offset], x3 = input[p3 + offset];
        const wa = weights[w], wb = weights[w + 1], wc = weights[w + 2], wd = weights[w + 3];
        a0 += wa * x0; a1 += wa * x1; a2 += wa * x2; a3 += wa * x3;
        b0 += wb * x0; b1 += wb * x1; b2 += wb * x2; b3 += wb * x3;
        c0 += wc * x0; c1 += wc * x1; c2 += wc * x2; c3 += wc * x3;
        d0 += wd * x0; d1 += wd * x1; d2 += wd * x2; d3 += wd * x3;
      }
      const sums = [a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3];
      const columns = Math.min(BLOCK, pixels - pixel);
      for (let row = 0; row < rows; row++) {
        const channel = firstOutput + first + row;
        for (let i = 0; i < columns; i++) output[channel * pixels + pixel + i] = sums[row * BLOCK + i] + bias[channel];
      }
    }
  }
}

/** Return the convolution of an instruction: a function from map to map, with its weights packed once. */
function prepareConvolution({stride, padding, groups, weight}, tensor) {
  const [outputs, groupInputs, kernelHeight, kernelWidth] = weight.shape;
  const groupOutputs = outputs / groups, taps = groupInputs * kernelHeight * kernelWidth;
  const packed = Array.from({length: groups}, (_, group) => packWeights(
    tensor.weight.subarray(group * groupOutputs * taps, (group + 1) * groupOutputs * taps), groupOutputs, taps));
  return map => {
    const padded = padPixels(map, padding, 0), area = padded.height * padded.width;
    const result = newMap(outputs, Math.floor((padded.height - kernelHeight) / stride) + 1,
      Math.floor((padded.width - kernelWidth) / stride) + 1);
    const starts = inputStarts(result.height, result.width, stride, padded.width);
    const offsets = new Int32Array(taps);
    for (let tap = 0; tap < taps; tap++) {
      const channel = Math.floor(tap / (kernelHeight * kernelWidth)), inKernel = tap % (kernelHeight * kernelWidth);
      offsets[tap] = channel * area + Math.floor(inKernel / kernelWidth) * padded.width + inKernel % kernelWidth;
    }
    for (let group = 0; group < groups; group++) {
      const input = padded.data.subarray(group * groupInputs * area, (group + 1) * groupInputs * area);
      multiply(packed[group], tensor.bias, input, offsets, starts, result.data,
        group * groupOutputs, groupOutputs, result.height * result.width);
    }
    return result;
  };
}

/** Return the largest value of each window; what lies outside the map is never the largest. */
function maxPool(map, {kernel, stride, padding}) {
  const padded = padPixels(map, padding, -Infinity);
  const result = newMap(map.channels, Math.floor((padded.height - kernel) / stride) + 1,
    Math.floor((padded.width - kernel) / stride) + 1);
  let at = 0;
  for (let channel = 0; channel < map.channels; channel++) {
    for (let y = 0; y < result.height; y++) {
      for (let x = 0; x < result.width; x++) {
        let largest = -Infinity;
        for (let i = 0; i < kernel * kernel; i++) {
          const row = channel * padded.height + y * stride + Math.floor(i / kernel);
          largest = Math.max(largest, padded.data[row * padded.width + x * stride + i % kernel]);
        }
        result.data[at++] = largest;
      }
    }
  }
  return result;
}

/** Reduce each channel to one value. */
function reducePixels({channels, height, width, data}, reduce) {
  const result = newMap(channels, 1, 1);
  for (let channel = 0; channel < channels; channel++) {
    result.data[channel] = reduce(data.subarray(channel * height * width, (channel + 1) * height * width));
  }
  return result;
}

/** Take every step-th pixel, and put channels of zeros before and after the others. */
function subsample({channels, height, width, data}, {step, before, after}) {
  const result = newMap(before + channels + after, Math.ceil(height / step), Math.ceil(width / step));
  let at = before * result.height * result.width;
  for (let channel = 0; channel < channels; channel++) {
    for (let y = 0; y < height; y += step) {
      for (let x = 0; x < width; x += step) result.data[at++] = data[(channel * height + y) * width + x];
    }
  }
  return result;
}

/** Multiply each channel by a number and add another. */
function applyAffine(map, {scale, shift}) {
  const result = newMap(map.channels, map.height, map.width), area = map.height * map.width;
  for (let i = 0; i < result.data.length; i++) {
    const channel = Math.floor(i / area);
    result.data[i] = map.data[i] * scale[channel] + shift[channel];
  }
  return result;
}

/** Multiply the values of a map by a matrix. */
function applyLinear(map, {weight, bias}) {
  const result = newMap(bias.length, 1, 1), inputs = weight.length / bias.length;
  for (let output = 0; output < bias.length; output++) {
    let sum = bias[output];
    for (let i = 0; i < inputs; i++) sum += weight[output * inputs + i] * map.data[i];
    result.data[output] = sum;
  }
  return result;
}

/** What each instruction does: from its settings and tensors to a function of maps. */
const OPERATIONS = {
  convolution: prepareConvolution,
  affine: (settings, tensor) => map => applyAffine(map, tensor),
  relu: () => map => ({...map, data: map.data.map(value => value > 0 ? value : 0)}),
  add: () => (left, right) => ({...left, data: left.data.map((value, i) => value + right.data[i])}),
  subsample: settings => map => subsample(map, settings),
  max_pool: settings => map => maxPool(map, settings),
  mean: () => map => reducePixels(map, values => values.reduce((sum, value) => sum + value, 0) / values.length),
  max: () => map => reducePixels(map, values => values.reduce((most, value) => Math.max(most, value), -Infinity)),
  linear: (settings, tensor) => map => applyLinear(map, tensor),
};

/** Return a function from the pixels of a picture, [3, size, size] with values 0 to 255, to the logits. */
function prepareNetwork({size, instructions}, base64) {
  const read = tensorReader(base64);
  const steps = instructions.map(instruction => {
    const tensor = {};
    for (const [name, value] of Object.entries(instruction)) if (value.shape) tensor[name] = read(value);
    return {...instruction, run: OPERATIONS[instruction.op](instruction, tensor)};
  });
  return pixels => {
    const slots = [{channels: 3, height: size, width: size, data: Float32Array.from(pixels)}];
    for (const {from, to, run} of steps) slots[to] = run(...from.map(slot => slots[slot]));
    return slots[steps.at(-1).to].data;
  };
}
