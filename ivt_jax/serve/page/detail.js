// The dialog of one picture: the picture in full size, where each phrase is seen in it, how well it fits, its fields.

import {drawFact, drawFit, likely} from "./answer.js";
import {isTime, writeTime} from "./fields.js";
import {thumbnail} from "./results.js";
import {ask} from "./server.js";

const REST = 300; // ms before the picture and its heat maps are requested, which take the server seconds
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
  byId("full").href = `./api/originals/${result.id}`;
  byId("size").textContent = "";
  byId("name").textContent = result.path;
  byId("facts").replaceChildren(...factsOf(result).flatMap(drawFact));
  const located = locatedOf(result);
  byId("explained").hidden = !located.length;
  byId("heat").replaceChildren(...located.map((phrase) => drawHeat(phrase, thumbnail(result.id))));
  byId("waiting").textContent = located.length ? "computing \u2026" : "";
  stop();
  timer = setTimeout(() => { showOriginal(result); askHeat(result); }, REST);
}

// Returns the phrases to locate: those that the model can tell, or all if that is known of none.
function locatedOf({phrases}) {
  const withScore = phrases.filter(({score}) => score !== null);
  return withScore.length ? withScore : phrases;
}

function factsOf(result) {
  const right = result.probability === null ? [] : [["estimate", likely(result.probability)]];
  const known = Object.entries(result.metadata).filter(([, value]) => value !== null)
    .map(([name, value]) => [name, isTime(value) ? writeTime(value) : value]);
  const odd = result.odd ? [["odd shape or size", result.odd]] : [];
  return [["score", result.score.toFixed(4)], ...right, ...odd, ["id", result.id], ...known];
}

function showOriginal({id}) {
  const original = new Image();
  const isShown = () => dialog.open && results[shown].id === id;
  original.onload = () => {
    if (!isShown()) return;
    byId("large").src = original.src;
    byId("size").textContent = `${original.naturalWidth} \u00d7 ${original.naturalHeight} pixels`;
  };
  original.onerror = () => { if (isShown()) byId("size").textContent = "thumbnail; the file is gone or has changed"; };
  original.src = byId("full").href;
}

async function askHeat(result) {
  const located = locatedOf(result);
  if (!located.length) return;
  const phrases = located.map((phrase) => phrase.text);
  const {signal} = asking;
  try {
    const {images} = await ask(`/api/heat/${result.id}`, {phrases}, signal);
    byId("heat").replaceChildren(...images.map((image, i) => drawHeat(located[i], image)));
    byId("waiting").textContent = "";
  } catch (error) {
    if (!signal.aborted) byId("waiting").textContent = error.message;
  }
}

function drawHeat(phrase, source) {
  const [figure, picture, caption] = ["figure", "img", "figcaption"].map((name) => document.createElement(name));
  const computed = source.startsWith("data:");
  picture.src = source;
  picture.alt = computed ? `where \u201c${phrase.text}\u201d is seen` : "";
  figure.className = computed ? "" : "waits";
  caption.append(drawFit(phrase));
  figure.append(picture, caption);
  return figure;
}

function stop() {
  clearTimeout(timer);
  asking.abort();
  asking = new AbortController();
}

async function copy() {
  // Browsers offer the clipboard over HTTPS and on this machine only; elsewhere the text is selected, to be copied by key.
  const copied = await navigator.clipboard?.writeText(results[shown].path).then(() => true, () => false);
  if (!copied) getSelection().selectAllChildren(byId("name"));
  byId("copy").textContent = copied ? "Copied" : "Selected";
  setTimeout(() => { byId("copy").textContent = "Copy path"; }, 2000);
}

// Calls `search` with the id of the picture when the user asks for more like it.
export function onLike(search) {
  byId("like").onclick = () => {
    dialog.close();
    search(results[shown].id);
  };
}

// Calls `search` with the id of the picture when the user says that it is not the person.
export function onUnlike(search) {
  byId("unlike").onclick = () => {
    dialog.close();
    search(results[shown].id);
  };
}

byId("before").onclick = () => show(shown - 1);
byId("after").onclick = () => show(shown + 1);
byId("close").onclick = () => dialog.close();
byId("copy").onclick = copy;
dialog.onclick = (event) => { if (event.target === dialog) dialog.close(); };
document.addEventListener("keydown", (event) => {
  if (!dialog.open || event.target.matches("input")) return;
  if (event.key === "ArrowLeft") show(shown - 1);
  if (event.key === "ArrowRight") show(shown + 1);
});
dialog.onclose = () => {
  stop();
  document.querySelectorAll("#grid .crop")[shown]?.focus();
};
