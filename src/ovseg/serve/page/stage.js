// An image on a canvas: choosing it, drawing what was found on it, and saving that.

import { download, post, say, toBase64 } from "./api.js";
import { boundsOf, css, encodeRle, paintMask } from "./masks.js";

// The canvas is as large as there is room, within limits; images are sent whole.
const MOST_PIXELS = 1600;
const MOST_TIMES = 3;
// How JPEG and PNG begin, in Base64.
const AS_IT_IS = /^(\/9j\/|iVBORw0KGgo)/;

export class Stage {
  // `onImage` is called when an image has been loaded, `decorate` after everything else has been drawn.
  constructor(section, { onImage, decorate = () => {} }) {
    this.section = section;
    this.onImage = onImage;
    this.decorate = decorate;
    this.image = null;
    this.objects = [];
    this.opacity = 0.5;
    const place = section.querySelector(".place");
    place.append(document.getElementById("stage-template").content.cloneNode(true));
    this.element = place.querySelector(".stage");
    this.canvas = place.querySelector("canvas");
    this.canvas.setAttribute("aria-label", "Image");
    this.context = this.canvas.getContext("2d");
    acceptFiles(this.element, (files) => this.open(files[0]));
    for (const input of section.querySelectorAll(".stage input[type=file], aside .row input[type=file]")) {
      input.addEventListener("change", () => {
        if (input.files.length) this.open(input.files[0]);
        input.value = "";
      });
    }
    section.querySelector(".opacity")?.addEventListener("input", (event) => {
      this.opacity = event.target.value / 100;
      this.draw();
    });
    this.addDownloads();
  }

  addSamples(names) {
    const place = this.element.querySelector(".samples");
    for (const name of names) {
      const button = document.createElement("button");
      const picture = new Image();
      picture.src = `/samples/${name}`;
      picture.alt = `Sample ${name.replace(/\.\w+$/, "")}`;
      button.append(picture);
      button.addEventListener("click", async () => {
        const response = await fetch(picture.src);
        this.open(new File([await response.blob()], name));
      });
      place.append(button);
    }
  }

  async open(file) {
    const opening = this.opening = {}; // the last one chosen wins, however long another takes to read
    let bitmap;
    let data;
    try {
      [bitmap, data] = await Promise.all([createImageBitmap(file), toBase64(file)]);
    } catch {
      say(`${file.name} is not an image that this browser can show.`, true);
      return;
    }
    // Of others (a WebP that was turned), the browser may show something else than the service reads.
    if (!AS_IT_IS.test(data)) data = await toBase64(await pictureOf(bitmap));
    if (this.opening !== opening) return;
    this.image?.left.abort();
    const room = Math.min(this.element.clientWidth / bitmap.width, (innerHeight - 140) / bitmap.height) * 0.97;
    const scale = Math.min(room, MOST_TIMES, MOST_PIXELS / Math.max(bitmap.width, bitmap.height));
    this.canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    this.canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    this.image = {
      bitmap,
      name: file.name || "image",
      width: bitmap.width,
      height: bitmap.height,
      scale: this.canvas.width / bitmap.width,
      data,
      left: new AbortController(),
    };
    this.objects = [];
    this.element.querySelector(".empty").hidden = true;
    this.element.querySelector(".view").hidden = false;
    this.draw();
    this.onImage();
  }

  // Send the image with other things; null if it failed, or if there is another image by now.
  async ask(path, body) {
    const image = this.image;
    const busy = this.element.querySelector(".busy");
    // Only for what takes long: drawing it costs the browser something.
    const patience = setTimeout(() => { busy.hidden = false; }, 400);
    this.asking = (this.asking ?? 0) + 1;
    try {
      const result = await post(path, { image: image.data, visualize: false, ...body }, image.left.signal);
      return this.image === image ? result : null;
    } catch (error) {
      if (this.image === image) say(error.message, true);
      return null;
    } finally {
      this.asking -= 1;
      clearTimeout(patience);
      if (!this.asking) busy.hidden = true;
    }
  }

  // Objects have `mask` (of the whole image, or null), `colour`, and what `decorate` wants.
  draw() {
    if (!this.image) return;
    const { width, height } = this.canvas;
    this.context.drawImage(this.image.bitmap, 0, 0, width, height);
    for (const object of this.objects) {
      if (!object.mask) continue;
      object.layers ??= paintMask(object.mask, this.image, width, height, object.colour);
      this.context.globalAlpha = this.opacity;
      this.context.drawImage(object.layers[0], 0, 0);
      this.context.globalAlpha = 1;
      this.context.drawImage(object.layers[1], 0, 0);
    }
    this.decorate(this.context, this.image.scale);
    const nothing = !this.objects.some((object) => object.mask);
    for (const button of this.section.querySelectorAll(".downloads button")) button.disabled = nothing;
  }

  addDownloads() {
    const row = this.section.querySelector(".downloads");
    if (!row) return;
    const kinds = { PNG: () => this.savePicture(), "COCO RLE": () => this.saveJson("rle"), Polygons: () => this.saveJson("polygons") };
    for (const [name, save] of Object.entries(kinds)) {
      const button = document.createElement("button");
      button.textContent = name;
      button.title = `Download ${name}`;
      button.disabled = true;
      button.addEventListener("click", save);
      row.append(button);
    }
  }

  savedAs(suffix) {
    return this.image.name.replace(/\.\w+$/, "") + suffix;
  }

  async savePicture() {
    const { bitmap, width, height } = this.image;
    const canvas = new OffscreenCanvas(width, height);
    const context = canvas.getContext("2d");
    context.drawImage(bitmap, 0, 0);
    for (const object of this.objects.filter((one) => one.mask)) {
      const [inside, outline] = paintMask(object.mask, this.image, width, height, object.colour);
      context.globalAlpha = this.opacity;
      context.drawImage(inside, 0, 0);
      context.globalAlpha = 1;
      context.drawImage(outline, 0, 0);
    }
    download(this.savedAs("_masks.png"), await canvas.convertToBlob());
  }

  saveJson(kind) {
    const { name, width, height } = this.image;
    const objects = this.objects.filter((object) => object.mask);
    const nameOf = (object) => object.label ?? "object";
    const names = [...new Set(objects.map(nameOf))];
    const annotations = objects.map((object, i) => ({
      id: i + 1,
      image_id: 1,
      category_id: names.indexOf(nameOf(object)) + 1,
      ...(object.score == null ? {} : { score: object.score }),
      ...boundsOf(object.mask, height),
      iscrowd: 0,
      segmentation: kind === "rle" ? { size: [height, width], counts: encodeRle(object.mask) } : object.polygons,
    }));
    const categories = names.map((category, i) => ({ id: i + 1, name: category }));
    const data = { images: [{ id: 1, file_name: name, width, height }], categories, annotations };
    download(this.savedAs(`_${kind}.json`), new Blob([JSON.stringify(data, null, 1)], { type: "application/json" }));
  }
}

function pictureOf(bitmap) {
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  return canvas.convertToBlob();
}

// Call `use` with the images that are dropped on an element.
export function acceptFiles(element, use) {
  const over = (on) => (event) => {
    event.preventDefault();
    element.classList.toggle("over", on);
  };
  element.addEventListener("dragenter", over(true));
  element.addEventListener("dragover", over(true));
  element.addEventListener("dragleave", over(false));
  element.addEventListener("drop", (event) => {
    over(false)(event);
    const files = [...event.dataTransfer.files];
    if (files.length) use(files);
  });
}

// Write on the canvas, above the point x, y where there is room.
export function tag(context, text, x, y, colour) {
  context.font = "600 14px system-ui, sans-serif";
  const width = context.measureText(text).width + 8;
  const left = Math.max(0, Math.min(x, context.canvas.width - width));
  const top = y >= 20 ? y - 20 : y;
  context.fillStyle = css(colour);
  context.fillRect(left, top, width, 20);
  context.fillStyle = colour[0] + colour[1] + colour[2] < 420 ? "#fff" : "#000";
  context.fillText(text, left + 4, top + 15);
}

// An entry of a list at the side.
export function entry(name, score, colour) {
  const item = document.createElement("li");
  for (const [kind, text] of [["chip", ""], ["name", name], ["score", score == null ? "" : score.toFixed(2)]]) {
    const part = document.createElement("span");
    part.className = kind;
    part.textContent = text;
    item.append(part);
  }
  item.querySelector(".chip").style.background = css(colour);
  item.querySelector(".name").title = name;
  return item;
}
