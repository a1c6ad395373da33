// The tabs, and what all of them share.

import { say } from "./api.js";
import { start as startObjects } from "./objects.js";
import { start as startRecognise } from "./recognise.js";
import { start as startSegment } from "./segment.js";

const TABS = {
  segment: { start: startSegment, pipeline: "open_vocabulary_segmentation" },
  objects: { start: startObjects, pipeline: "instance_segmentation" },
  recognise: { start: startRecognise, pipeline: "PP-ShiTuV2" },
};

const info = await (await fetch("/info")).json();
const served = new Set(info.pipelines.map((one) => one.name));
const stages = {};
for (const [name, { start, pipeline }] of Object.entries(TABS)) {
  const section = document.getElementById(name);
  stages[name] = start(section);
  stages[name].addSamples(info.samples);
  if (served.has(pipeline)) continue;
  section.querySelector(".missing").hidden = false;
  section.querySelector(".place").inert = true;
}

const tabs = [...document.querySelectorAll("[role=tab]")];
function choose(name) {
  for (const tab of tabs) {
    const chosen = tab.id === `tab-${name}`;
    tab.ariaSelected = chosen;
    tab.tabIndex = chosen ? 0 : -1;
    document.getElementById(tab.getAttribute("aria-controls")).hidden = !chosen;
  }
  history.replaceState(null, "", `#${name}`);
  say("");
}
for (const tab of tabs) {
  tab.addEventListener("click", () => choose(tab.getAttribute("aria-controls")));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length];
    next.focus();
    next.click();
  });
}
const asked = location.hash.slice(1);
choose(asked in TABS ? asked : Object.keys(TABS).find((name) => served.has(TABS[name].pipeline)) ?? "segment");

const current = () => stages[tabs.find((tab) => tab.ariaSelected === "true").getAttribute("aria-controls")];
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (file) current().open(file);
});
// A file that misses its mark must not replace the page.
for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault());
document.body.dataset.ready = "";
