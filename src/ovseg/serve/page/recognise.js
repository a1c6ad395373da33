// Recognition: pictures with labels make a gallery, and an image is looked up in it.

import { post, say, toBase64 } from "./api.js";
import { colourOf, css } from "./masks.js";
import { acceptFiles, entry, Stage, tag } from "./stage.js";

const UNKNOWN = [120, 128, 140];

export function start(section) {
  const gallery = document.getElementById("gallery");
  const label = document.getElementById("label");
  const keyField = document.getElementById("key");
  const list = document.getElementById("recognise-list");
  let key = null;
  let queries = 0;
  const pictures = {};
  const known = [];
  const colourFor = (name) => {
    if (!known.includes(name)) known.push(name);
    return colourOf(known.indexOf(name));
  };

  const stage = new Stage(section, {
    onImage: query,
    decorate: (context, scale) => {
      for (const { box, colour, best } of stage.objects) {
        context.lineWidth = best ? 3 : 1;
        context.strokeStyle = css(colour);
        context.strokeRect(box[0] * scale, box[1] * scale, (box[2] - box[0]) * scale, (box[3] - box[1]) * scale);
        if (best) tag(context, `${best.label} ${best.score.toFixed(2)}`, box[0] * scale, box[1] * scale, colour);
      }
    },
  });

  async function query() {
    const number = ++queries;
    stage.objects = [];
    list.replaceChildren();
    stage.draw();
    section.querySelector(".none").hidden = true;
    if (!key) {
      say("First make a gallery: a label, and pictures of it.", true);
      return;
    }
    const started = performance.now();
    const result = await stage.ask("/shitu-infer", { indexKey: key });
    if (!result || number !== queries) return;
    const objects = result.detectedObjects.map((one) => {
      const best = one.recResults[0];
      return { box: one.bbox, colour: best ? colourFor(best.label) : UNKNOWN, best };
    });
    const recognised = objects.filter((one) => one.best).sort((a, b) => b.best.score - a.best.score);
    const unknown = objects.filter((one) => !one.best);
    // The surest is drawn last, above the others.
    stage.objects = [...unknown, ...[...recognised].reverse()];
    const entries = recognised.map((one) => entry(one.best.label, one.best.score, one.colour));
    if (unknown.length) entries.push(entry(`${unknown.length} not in the gallery`, null, UNKNOWN));
    list.replaceChildren(...entries);
    stage.draw();
    say(`${stage.objects.length} object(s) in ${Math.round(performance.now() - started)} ms.`);
  }

  // ------------------------------------------------------------ the gallery

  // One change after the other: the first makes the gallery that the others extend.
  let changes = Promise.resolve();
  function inTurn(change) {
    changes = changes.then(change).then(({ indexKey, idMap, imageCount }) => {
      use(indexKey, idMap);
      say(`${imageCount} picture(s) in the gallery.`);
      if (stage.image) query();
    }).catch((error) => say(error.message, true));
  }

  function addPictures(files) {
    const name = label.value.trim();
    if (!name) {
      say("First say what the pictures show.", true);
      label.focus();
      return;
    }
    say(`Adding ${files.length} picture(s) of ${name} …`);
    inTurn(async () => {
      const data = await Promise.all(files.map(toBase64));
      const imageLabelPairs = data.map((image) => ({ image, label: name }));
      const result = key === null
        ? await post("/shitu-index-build", { imageLabelPairs })
        : await post("/shitu-index-add", { imageLabelPairs, indexKey: key });
      // The last ids are those of the pictures, in their order.
      const ids = Object.keys(result.idMap).map(Number).sort((a, b) => a - b).slice(-files.length);
      ids.forEach((id, i) => { pictures[id] = URL.createObjectURL(files[i]); });
      return { indexKey: key, ...result };
    });
  }

  function removePicture(id) {
    inTurn(async () => ({ indexKey: key, ...await post("/shitu-index-remove", { ids: [Number(id)], indexKey: key }) }));
  }

  function use(newKey, idMap) {
    key = newKey;
    keyField.value = key ?? "";
    gallery.replaceChildren(...Object.entries(idMap).map(([id, text]) => {
      const item = document.createElement("li");
      const picture = document.createElement(pictures[id] ? "img" : "span");
      if (pictures[id]) {
        picture.src = pictures[id];
        picture.alt = "";
      } else {
        picture.className = "blank";
      }
      const remove = document.createElement("button");
      remove.textContent = "×";
      remove.title = remove.ariaLabel = `Remove ${text}, id ${id}`;
      remove.addEventListener("click", () => removePicture(id));
      item.append(picture, text, remove);
      item.title = text;
      return item;
    }));
  }

  const input = document.getElementById("gallery-files");
  input.addEventListener("change", () => {
    if (input.files.length) addPictures([...input.files]);
    input.value = "";
  });
  acceptFiles(document.getElementById("gallery-drop"), addPictures);
  document.getElementById("gallery-form").addEventListener("submit", (event) => {
    event.preventDefault();
    input.click();
  });
  document.getElementById("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    for (const id of Object.keys(pictures)) delete pictures[id];
    use(keyField.value.trim() || null, {});
    say(key ? "The next image is looked up in this index." : "The next pictures begin a new gallery.");
    if (stage.image) query();
  });
  return stage;
}
