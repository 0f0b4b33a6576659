// The grid of results. A result that repeats a better one is folded under it, until its count is pressed.

import {drawFit, likely} from "./answer.js";
import {placesOf} from "./fields.js";

const template = (id) => document.getElementById(id).content.firstElementChild;
const grid = document.getElementById("grid");
const cards = () => [...grid.querySelectorAll(".crop")];
const drawn = new Map(); // id -> {result, item: its <li>, members: those folded under it, opened: whether they are shown}

export const thumbnail = (id) => `./api/thumbnails/${id}`;

// Removes all results.
export function clear() {
  drawn.clear();
  grid.replaceChildren();
}

// Adds those results, best first, that are not there yet; the cards that are there stay in their order.
// places: as of `findPlaces`. open(results, index): called with the results that have a card.
export function add(results, places, open) {
  const draw = (result) => drawCard(result, results.indexOf(result) + 1, places, () => {
    const shown = cards().map((card) => drawn.get(Number(card.dataset.id)).result);
    open(shown, shown.indexOf(result));
  });
  if (!drawn.size) grid.replaceChildren(); // cards that wait
  for (const result of results.filter(({id}) => !drawn.has(id))) {
    const leader = drawn.get(result.folded_under);
    const item = draw(result);
    drawn.set(result.id, {result, item, members: [], opened: false});
    if (leader) fold(leader, item);
    else grid.append(item);
  }
}

function fold(leader, member) {
  member.classList.add("member");
  leader.members.push(member);
  leader.item.querySelector(".folded").onclick = () => {
    leader.opened = !leader.opened;
    drawFold(leader);
  };
  drawFold(leader);
}

function drawFold({item, members, opened}) {
  const button = item.querySelector(".folded");
  button.hidden = false;
  button.setAttribute("aria-expanded", opened);
  button.textContent = opened ? `hide ${members.length}` : `+${members.length} folded`;
  if (opened) item.after(...members);
  else members.forEach((member) => member.remove());
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

// The text of a card is also its name for screen readers; the style sheet hides parts of it from the eye.
function drawCard(result, rank, places, open) {
  const card = template("card").cloneNode(true);
  const find = (name) => card.querySelector(name);
  find(".crop").dataset.id = result.id;
  find("img").src = thumbnail(result.id);
  find("img").onerror = () => find("img").classList.add("gone");
  find(".rank").textContent = rank;
  find(".path").textContent = result.path;
  find(".badge").textContent = result.probability === null ? "" : likely(result.probability);
  find(".places").replaceChildren(...placesOf(result, places).map(drawPlace));
  find(".score").textContent = result.score.toFixed(3);
  find(".fits").append(...result.phrases.map(drawFit));
  find(".crop").onclick = open;
  return card;
}

function drawPlace(text) {
  const place = document.createElement("span");
  place.textContent = `${text} `;
  return place;
}

// Arrow keys move between cards.
grid.addEventListener("keydown", (event) => {
  const all = cards();
  const top = (card) => card.parentElement.offsetTop;
  const columns = all.filter((card) => top(card) === top(all[0])).length;
  const step = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns}[event.key];
  const next = step && all[all.indexOf(document.activeElement) + step];
  if (!next) return;
  event.preventDefault();
  next.focus();
});
