// The dialog of one picture: its fields, how well it fits each phrase, and where each phrase is seen.

import {drawFit, percent, thumbnail, written} from "./results.js";
import {ask} from "./server.js";

const REST = 300; // ms before the heat maps are requested, which take the server seconds
const byId = (id) => document.getElementById(id);
const dialog = byId("detail");
let results = [];
let shown = 0; // index of the picture in the results
let timer = 0;
let asking = new AbortController();

export function openDetail(found, index) {
  results = found;
  show(index);
  if (!dialog.open) dialog.showModal();
}

function show(index) {
  if (!results[index]) return;
  shown = index;
  const result = results[index];
  byId("place").textContent = `${index + 1} of ${results.length}`;
  byId("before").setAttribute("aria-disabled", index === 0); // `disabled` would lose the focus
  byId("after").setAttribute("aria-disabled", index === results.length - 1);
  byId("large").src = thumbnail(result.id);
  byId("large").alt = result.path;
  byId("name").textContent = result.path;
  byId("facts").replaceChildren(...factsOf(result).flatMap(drawFact));
  byId("fits").replaceChildren(...result.phrases.map(drawFit));
  showHeat(result);
}

function factsOf(result) {
  const right = result.probability === null ? [] : [["probability", `${percent(result.probability)}, if the person is in the index`]];
  const known = Object.entries(result.metadata).filter(([, value]) => value !== null);
  return [["score", result.score.toFixed(4)], ...right, ["id", result.id], ...known];
}

function drawFact([name, value]) {
  const [term, description] = [document.createElement("dt"), document.createElement("dd")];
  term.textContent = name;
  description.textContent = value;
  return [term, description];
}

function showHeat(result) {
  stop();
  byId("seen").hidden = !result.phrases.length;
  byId("heat").replaceChildren();
  byId("waiting").textContent = "computing \u2026";
  if (result.phrases.length) timer = setTimeout(askHeat, REST, result);
}

async function askHeat(result) {
  const phrases = result.phrases.map((phrase) => phrase.text);
  const {signal} = asking;
  try {
    const {images} = await ask(`/api/heat/${result.id}`, {phrases}, signal);
    byId("heat").replaceChildren(...images.map((image, i) => drawHeat(image, result.phrases[i])));
    byId("waiting").textContent = "";
  } catch (error) {
    if (!signal.aborted) byId("waiting").textContent = error.message;
  }
}

function drawHeat(image, phrase) {
  const [figure, picture, caption] = ["figure", "img", "figcaption"].map((name) => document.createElement(name));
  picture.src = image;
  picture.alt = `where \u201c${phrase.text}\u201d is seen`;
  caption.textContent = written(phrase);
  figure.append(picture, caption);
  return figure;
}

function stop() {
  clearTimeout(timer);
  asking.abort();
  asking = new AbortController();
}

// Calls `search` with the id of the picture when the user asks for more like it.
export function onLike(search) {
  byId("like").onclick = () => {
    dialog.close();
    search(results[shown].id);
  };
}

byId("before").onclick = () => show(shown - 1);
byId("after").onclick = () => show(shown + 1);
byId("close").onclick = () => dialog.close();
dialog.onclick = (event) => { if (event.target === dialog) dialog.close(); };
document.addEventListener("keydown", (event) => {
  if (!dialog.open || event.target.matches("input")) return;
  if (event.key === "ArrowLeft") show(shown - 1);
  if (event.key === "ArrowRight") show(shown + 1);
});
dialog.onclose = () => {
  stop();
  document.querySelectorAll("#grid button")[shown]?.focus();
};
