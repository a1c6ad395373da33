// Instance segmentation: the model runs once for an image, the threshold only chooses among what it found.

import { say } from "./api.js";
import { colourOf, css, wholeMask } from "./masks.js";
import { entry, Stage, tag } from "./stage.js";

export function start(section) {
  const slider = document.getElementById("threshold");
  const list = document.getElementById("objects-list");
  let found = [];

  const stage = new Stage(section, {
    onImage: async () => {
      found = [];
      show();
      say("Looking for objects …");
      const started = performance.now();
      const least = slider.min / 100;
      const result = await stage.ask("/instance-segmentation", { threshold: least, polygons: true });
      if (!result) return;
      found = result.instances.map((one) => ({
        label: one.categoryName,
        score: one.score,
        box: one.bbox,
        colour: colourOf(one.categoryId),
        rle: one.mask,
        polygons: one.mask.polygons,
      }));
      say(`${found.length} objects in ${Math.round(performance.now() - started)} ms; the slider chooses among them.`);
      show();
    },
    decorate: (context, scale) => {
      for (const { box, colour } of stage.objects) {
        context.lineWidth = 2;
        context.strokeStyle = css(colour);
        context.strokeRect(box[0] * scale, box[1] * scale, (box[2] - box[0]) * scale, (box[3] - box[1]) * scale);
      }
      for (const { box, colour, label, score } of [...stage.objects].reverse()) {
        tag(context, `${label} ${score.toFixed(2)}`, box[0] * scale, box[1] * scale, colour);
      }
    },
  });

  function show() {
    const threshold = slider.value / 100;
    document.getElementById("threshold-value").textContent = threshold.toFixed(2);
    stage.objects = found.filter((one) => one.score > threshold);
    for (const object of stage.objects) object.mask ??= wholeMask(object.rle, stage.image);
    list.replaceChildren(...stage.objects.map((one) => entry(one.label, one.score, one.colour)));
    document.getElementById("objects-count").textContent = found.length
      ? `${stage.objects.length} of ${found.length}` : "";
    section.querySelector(".none").hidden = stage.image !== null;
    stage.draw();
  }
  slider.addEventListener("input", show);
  return stage;
}
