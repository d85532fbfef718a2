// Bicubic resizing of RGB images to the very pixels that Pillow computes, in Node and in browsers.
//
// transformers.js resizes without a low-pass filter, and canvases differ from browser to browser; either one moves
// boxes by a few thousandths. Coefficients are of 22 bits, as in Pillow: one pass for the columns, one for the rows.

const PRECISION_BITS = 22;

// `rgb` is a Uint8Array of width * height * 3 bytes; the result has newWidth * newHeight * 3.
export function resizeBicubic(rgb, width, height, newWidth, newHeight) {
  const wide = width === newWidth ? rgb : resizeColumns(rgb, width, height, newWidth);
  return height === newHeight ? wide : resizeRows(wide, newWidth, height, newHeight);
}

function resizeColumns(rgb, width, height, newWidth) {
  const output = new Uint8ClampedArray(newWidth * height * 3);
  coefficients(width, newWidth).forEach(({ first, weights }, x) => {
    for (let y = 0; y < height; ++y) {
      for (let channel = 0; channel < 3; ++channel) {
        let sum = 2 ** (PRECISION_BITS - 1);
        for (let k = 0; k < weights.length; ++k) sum += rgb[(y * width + first + k) * 3 + channel] * weights[k];
        output[(y * newWidth + x) * 3 + channel] = sum >> PRECISION_BITS;
      }
    }
  });
  return output;
}

function resizeRows(rgb, width, height, newHeight) {
  const output = new Uint8ClampedArray(width * newHeight * 3);
  const row = width * 3;
  coefficients(height, newHeight).forEach(({ first, weights }, y) => {
    for (let x = 0; x < row; ++x) {
      let sum = 2 ** (PRECISION_BITS - 1);
      for (let k = 0; k < weights.length; ++k) sum += rgb[(first + k) * row + x] * weights[k];
      output[y * row + x] = sum >> PRECISION_BITS;
    }
  });
  return output;
}

// For each output position: the first input position that it reads, and the integer weight of it and the next ones.
function coefficients(size, newSize) {
  const scale = size / newSize;
  const stretch = Math.max(scale, 1);
  const support = 2 * stretch;
  return Array.from({ length: newSize }, (_, position) => {
    const center = (position + 0.5) * scale;
    const first = Math.max(Math.trunc(center - support + 0.5), 0);
    const end = Math.min(Math.trunc(center + support + 0.5), size);
    const weights = [];
    for (let input = first; input < end; ++input) weights.push(cubic((input - center + 0.5) / stretch));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    return { first, weights: weights.map((weight) => roundAway((weight / total) * 2 ** PRECISION_BITS)) };
  });
}

// Keys' cubic kernel with a = -0.5.
function cubic(x) {
  const a = -0.5;
  const distance = Math.abs(x);
  if (distance < 1) return ((a + 2) * distance - (a + 3)) * distance * distance + 1;
  if (distance < 2) return (((distance - 5) * distance + 8) * distance - 4) * a;
  return 0;
}

function roundAway(value) {
  return Math.trunc(value < 0 ? value - 0.5 : value + 0.5);
}
