// The results: the grid, the bars of phrases, and export to CSV and JSON.

const template = (id) => document.getElementById(id).content.firstElementChild;
const grid = document.getElementById("grid");

export const percent = (share) => `${Math.round(100 * share)}%`;
export const thumbnail = (id) => `./api/thumbnails/${id}`;
export const written = (phrase) => (phrase.wanted ? phrase.text : `\u2212 ${phrase.text}`);

export function drawCards(results, open) {
  grid.replaceChildren(...results.map((result, index) => drawCard(result, index, open)));
}

// Draws empty cards if the grid has none.
export function drawWaiting(count) {
  if (grid.children.length) return;
  grid.replaceChildren(...Array.from({length: count}, () => {
    const item = document.createElement("li");
    item.className = "waiting";
    return item;
  }));
}

function drawCard(result, index, open) {
  const card = template("card").cloneNode(true);
  const find = (name) => card.querySelector(name);
  find("img").src = thumbnail(result.id);
  find("img").onerror = () => find("img").classList.add("gone");
  find(".rank").textContent = index + 1;
  find(".score").textContent = result.score.toFixed(3);
  find(".badge").textContent = result.probability === null ? "" : percent(result.probability);
  find(".badge").title = "Probability that this is the person, if the person is in the index";
  find(".fits").append(...result.phrases.map(drawFit));
  find("button").title = result.path;
  find("button").setAttribute("aria-label", inWords(result, index));
  find("button").onclick = () => open(index);
  return card;
}

function inWords(result, index) {
  const right = result.probability === null ? [] : [`probability ${percent(result.probability)}`];
  const fits = result.phrases.map((phrase) => `${phrase.wanted ? "" : "not "}${phrase.text} ${percent(phrase.score)}`);
  return [`${index + 1}: ${result.path}`, `score ${result.score.toFixed(3)}`, ...right, ...fits].join(", ");
}

// Draws a phrase and how well the picture fits it.
export function drawFit(phrase) {
  const fit = template("fit").cloneNode(true);
  fit.querySelector(".text").textContent = written(phrase);
  fit.querySelector(".share").textContent = percent(phrase.score);
  fit.querySelector("i").style.width = percent(phrase.score);
  fit.classList.toggle("unwanted", !phrase.wanted);
  fit.title = `${phrase.text}: fits better than ${percent(phrase.score)} of the pictures`;
  return fit;
}

// Arrow keys move between cards.
grid.addEventListener("keydown", (event) => {
  const cards = [...grid.querySelectorAll("button")];
  const columns = cards.filter((card) => card.offsetTop === cards[0].offsetTop).length;
  const step = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns}[event.key];
  const next = step && cards[cards.indexOf(document.activeElement) + step];
  if (!next) return;
  event.preventDefault();
  next.focus();
});

export function toJson(results) {
  return JSON.stringify(results, null, 2) + "\n";
}

export function toCsv(results) {
  const fields = Object.keys(results[0]?.metadata ?? {});
  const phrases = (results[0]?.phrases ?? []).map(written);
  const rows = results.map((result, index) => [
    index + 1, result.id, result.path, result.score, result.probability,
    ...fields.map((field) => result.metadata[field]), ...result.phrases.map((phrase) => phrase.score),
  ]);
  const names = ["rank", "id", "path", "score", "probability", ...fields, ...phrases];
  return [names, ...rows].map((row) => row.map(cell).join(",") + "\r\n").join("");
}

// A spreadsheet would run a text that begins like a formula.
function cell(value) {
  const text = typeof value === "string" ? value.replace(/^[=+\-@\t\r]/, "'$&") : String(value ?? "");
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

// Downloads a file.
export function save(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type}));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}
