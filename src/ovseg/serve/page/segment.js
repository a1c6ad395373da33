// Promptable segmentation: clicks and boxes become masks.

import { say } from "./api.js";
import { colourOf, css, wholeMask } from "./masks.js";
import { entry, Stage } from "./stage.js";

const PATH = "/open-vocabulary-segmentation";
// Pixels on the screen that a pointer may move in a click.
const SLACK = 5;

export function start(section) {
  const list = document.getElementById("segment-list");
  const undo = document.getElementById("undo");
  const clear = document.getElementById("clear");
  let history = [];
  let count = 0;
  let drag = null;
  let cross = null;

  const stage = new Stage(section, {
    onImage: async () => {
      history = [];
      count = 0;
      cross = null;
      show();
      // Encoded now, so that the first click waits for the decoder only.
      say("Reading the image …");
      const { width, height } = stage.image;
      const ready = await stage.ask(PATH, { prompt: [[width / 2, height / 2]], prompt_type: "point" });
      if (ready && !stage.objects.length) say("Click on what you want, or drag a box around it.");
      stage.canvas.focus({ preventScroll: true });
    },
    decorate: (context, scale) => {
      for (const object of stage.objects) drawPrompt(context, scale, object);
      if (drag?.moved) drawBox(context, drag.from, drag.to, "#fff");
      if (cross?.box) drawBox(context, cross.box, cross, "#fff");
      if (cross) drawCross(context, cross);
    },
  });

  // ------------------------------------------------------------ prompts

  const modeOf = (event) => {
    if (event.altKey) return "remove";
    return event.shiftKey ? "add" : section.querySelector("[name=mode]:checked").value;
  };

  function point(place, mode) {
    const xy = [place.x / stage.image.scale, place.y / stage.image.scale];
    const current = stage.objects.at(-1);
    if (mode !== "new" && current?.points) {
      const labels = [...current.labels, mode === "add" ? 1 : 0];
      replace(current, { ...current, points: [...current.points, xy], labels });
    } else if (mode === "remove") {
      say("First click on the object that something is to be taken away from.", true);
    } else {
      add({ points: [xy], labels: [1] });
    }
  }

  function box(from, to) {
    const { scale } = stage.image;
    const [x1, x2] = [from.x, to.x].sort((a, b) => a - b).map((x) => x / scale);
    const [y1, y2] = [from.y, to.y].sort((a, b) => a - b).map((y) => y / scale);
    add({ box: [x1, y1, x2, y2] });
  }

  function add(prompt) {
    const object = { ...prompt, number: ++count, colour: colourOf(count - 1), mask: null };
    change([...stage.objects, object]);
    find(object);
  }

  function replace(old, object) {
    delete object.layers;
    change(stage.objects.map((one) => (one === old ? object : one)));
    find(object, old);
  }

  // `old` is what the object was before, and is again if nothing is found.
  async function find(object, old) {
    const started = performance.now();
    const body = object.box
      ? { prompt: [object.box], prompt_type: "box" }
      : { prompt: [object.points], prompt_type: "point", pointLabels: [object.labels] };
    const result = await stage.ask(PATH, { ...body, polygons: true });
    if (!result) {
      change(stage.objects.map((one) => (one === object ? old : one)).filter(Boolean), false);
      return;
    }
    const [mask] = result.masks;
    object.mask = wholeMask(mask, stage.image);
    object.layers = undefined;
    object.polygons = mask.polygons;
    object.score = result.mask_infos[0].score;
    show();
    say(`Object ${object.number} in ${Math.round(performance.now() - started)} ms.`);
    section.dataset.masks = Number(section.dataset.masks ?? 0) + 1;
  }

  function change(objects, remember = true) {
    if (remember) history.push(stage.objects);
    stage.objects = objects;
    show();
  }

  // ------------------------------------------------------------ pointer and keys

  const placeOf = (event) => {
    const bounds = stage.canvas.getBoundingClientRect();
    const inside = (value, most) => Math.max(0, Math.min(most, value));
    return {
      x: inside(((event.clientX - bounds.left) * stage.canvas.width) / bounds.width, stage.canvas.width),
      y: inside(((event.clientY - bounds.top) * stage.canvas.height) / bounds.height, stage.canvas.height),
    };
  };

  stage.canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !stage.image) return;
    stage.canvas.setPointerCapture(event.pointerId);
    cross = null;
    drag = { from: placeOf(event), screen: [event.clientX, event.clientY], moved: false };
  });
  stage.canvas.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const far = Math.hypot(event.clientX - drag.screen[0], event.clientY - drag.screen[1]) > SLACK;
    drag.moved ||= far;
    drag.to = placeOf(event);
    if (drag.moved) stage.draw();
  });
  stage.canvas.addEventListener("pointerup", (event) => {
    if (!drag) return;
    const { from, moved } = drag;
    drag = null;
    if (moved) box(from, placeOf(event));
    else point(from, modeOf(event));
  });
  stage.canvas.addEventListener("pointercancel", () => {
    drag = null;
    stage.draw();
  });

  stage.canvas.addEventListener("keydown", (event) => {
    const step = (event.shiftKey ? 25 : 5) * (stage.canvas.width / stage.canvas.getBoundingClientRect().width);
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (moves[event.key]) {
      cross ??= { x: stage.canvas.width / 2, y: stage.canvas.height / 2 };
      cross.x = Math.max(0, Math.min(stage.canvas.width, cross.x + moves[event.key][0]));
      cross.y = Math.max(0, Math.min(stage.canvas.height, cross.y + moves[event.key][1]));
    } else if (event.key === "Enter" && cross) {
      point({ x: cross.x, y: cross.y }, modeOf(event));
    } else if (event.key.toLowerCase() === "b" && cross && !event.ctrlKey) {
      if (cross.box && cross.box.x !== cross.x && cross.box.y !== cross.y) box(cross.box, { x: cross.x, y: cross.y });
      cross.box = cross.box ? null : { x: cross.x, y: cross.y };
    } else if (event.key === "Escape") {
      cross = null;
    } else {
      return;
    }
    event.preventDefault();
    stage.draw();
  });

  function undoLast() {
    if (!history.length) return;
    stage.objects = history.pop();
    show();
    say("");
  }
  undo.addEventListener("click", undoLast);
  clear.addEventListener("click", () => {
    change([]);
    say("");
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target instanceof HTMLInputElement && event.target.type !== "radio";
    if (section.hidden || typing || event.key !== "z" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    undoLast();
  });

  // ------------------------------------------------------------ what is shown

  function show() {
    const objects = stage.objects;
    list.replaceChildren(...objects.map((object) => {
      const item = entry(`Object ${object.number}`, object.score, object.colour);
      item.classList.toggle("current", object === objects.at(-1));
      const remove = document.createElement("button");
      remove.textContent = "×";
      remove.title = remove.ariaLabel = `Remove object ${object.number}`;
      remove.addEventListener("click", () => change(stage.objects.filter((one) => one !== object)));
      item.append(remove);
      return item;
    }));
    section.querySelector(".none").hidden = objects.length > 0;
    undo.disabled = !history.length;
    clear.disabled = !objects.length;
    stage.draw();
  }

  return stage;
}

function drawPrompt(context, scale, object) {
  if (object.box) {
    const [x1, y1, x2, y2] = object.box.map((value) => value * scale);
    drawBox(context, { x: x1, y: y1 }, { x: x2, y: y2 }, css(object.colour));
    return;
  }
  object.points.forEach(([x, y], i) => {
    context.beginPath();
    context.arc(x * scale, y * scale, 6, 0, 7);
    context.fillStyle = object.labels[i] ? css(object.colour) : "#fff";
    context.fill();
    context.lineWidth = 2.5;
    context.strokeStyle = object.labels[i] ? "#fff" : css(object.colour);
    context.stroke();
  });
}

function drawBox(context, from, to, colour) {
  context.setLineDash([6, 4]);
  context.lineWidth = 2;
  context.strokeStyle = colour;
  context.strokeRect(from.x, from.y, to.x - from.x, to.y - from.y);
  context.setLineDash([]);
}

function drawCross(context, { x, y }) {
  for (const [width, colour] of [[4, "#000"], [2, "#fff"]]) {
    context.beginPath();
    context.moveTo(x - 12, y);
    context.lineTo(x + 12, y);
    context.moveTo(x, y - 12);
    context.lineTo(x, y + 12);
    context.lineWidth = width;
    context.strokeStyle = colour;
    context.stroke();
  }
}
