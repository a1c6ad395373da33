// COCO's run lengths, and masks on a canvas. A mask is a Uint8Array of 0 and 1, column after column.

export const PALETTE = [
  [230, 57, 70], [46, 134, 222], [38, 171, 88], [250, 166, 26], [155, 81, 224], [0, 184, 190],
  [240, 98, 160], [140, 120, 20], [90, 110, 250], [255, 112, 67], [124, 179, 66], [180, 80, 50],
];
export const colourOf = (i) => PALETTE[i % PALETTE.length];
export const css = (colour) => `rgb(${colour.join(" ")})`;

export function decodeRle(counts, height, width) {
  const mask = new Uint8Array(height * width);
  const runs = [];
  for (let at = 0, place = 0, value = 0; at < counts.length;) {
    let run = 0;
    let shift = 0;
    let code;
    do {
      code = counts.charCodeAt(at++) - 48;
      run |= (code & 31) << shift;
      shift += 5;
    } while (code & 32);
    if (code & 16) run |= -1 << shift;
    if (runs.length > 2) run += runs[runs.length - 2];
    runs.push(run);
    if (value) mask.fill(1, place, place + run);
    place += run;
    value = 1 - value;
  }
  return mask;
}

export function encodeRle(mask) {
  const runs = [];
  for (let at = 0, value = 0; at < mask.length; value = 1 - value) {
    const start = at;
    while (at < mask.length && mask[at] === value) at++;
    runs.push(at - start);
  }
  let text = "";
  runs.forEach((run, i) => {
    let left = i > 2 ? run - runs[i - 2] : run;
    for (let more = true; more;) {
      let code = left & 31;
      left >>= 5;
      more = code & 16 ? left !== -1 : left !== 0;
      if (more) code |= 32;
      text += String.fromCharCode(code + 48);
    }
  });
  return text;
}

// The mask of the whole image, of one that begins at `offset` in it.
export function wholeMask(mask, image) {
  const [height, width] = mask.size;
  const [left, top] = mask.offset;
  const part = decodeRle(mask.counts, height, width);
  if (height === image.height && width === image.width) return part;
  const whole = new Uint8Array(image.height * image.width);
  const rows = Math.min(height, image.height - top);
  for (let x = 0; x < width && left + x < image.width; x++) {
    whole.set(part.subarray(x * height, x * height + rows), (left + x) * image.height + top);
  }
  return whole;
}

// Two canvases as large as the view: the inside of a mask, and its outline.
export function paintMask(mask, image, width, height, colour) {
  const rows = Int32Array.from({ length: height }, (_, y) => Math.floor(((y + 0.5) * image.height) / height));
  // The mask as the view has it, row after row, with a border of nothing.
  const stride = width + 2;
  const shown = new Uint8Array(stride * (height + 2));
  for (let x = 0; x < width; x++) {
    const column = Math.floor(((x + 0.5) * image.width) / width) * image.height;
    for (let y = 0, i = stride + x + 1; y < height; y++, i += stride) shown[i] = mask[column + rows[y]];
  }
  const layers = [new ImageData(width, height), new ImageData(width, height)];
  const [inside, outline] = layers.map((layer) => new Uint32Array(layer.data.buffer));
  const value = new Uint32Array(new Uint8Array([...colour, 255]).buffer)[0];
  for (let y = 0, at = 0, i = stride + 1; y < height; y++, i += 2) {
    for (let x = 0; x < width; x++, at++, i++) {
      if (!shown[i]) continue;
      const surrounded = shown[i - 1] & shown[i + 1] & shown[i - stride] & shown[i + stride];
      (surrounded ? inside : outline)[at] = value;
    }
  }
  return layers.map((layer) => {
    const canvas = new OffscreenCanvas(width, height);
    canvas.getContext("2d").putImageData(layer, 0, 0);
    return canvas;
  });
}

export function boundsOf(mask, height) {
  let area = 0;
  let left = Infinity;
  let top = Infinity;
  let right = -1;
  let bottom = -1;
  for (let i = 0; i < mask.length; i++) {
    if (!mask[i]) continue;
    area++;
    const x = Math.floor(i / height);
    const y = i % height;
    left = Math.min(left, x);
    right = Math.max(right, x);
    top = Math.min(top, y);
    bottom = Math.max(bottom, y);
  }
  return { area, bbox: area ? [left, top, right - left + 1, bottom - top + 1] : [0, 0, 0, 0] };
}
