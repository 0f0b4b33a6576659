// Filters: boxes for each field of few values, a range for each time, and the expression, which can say all of it.

import {both, describeFilter, literal, noFields, quoted} from "./query.js";
import {ask} from "./server.js";

const byId = (id) => document.getElementById(id);
const template = (id) => byId(id).content.firstElementChild.cloneNode(true);
let listed = false; // whether the values have been requested

// Draws the fields of an index. change({values, times}): called after a choice, with all that the boxes and ranges hold.
export function drawFields({fields}, change) {
  const ranges = Object.keys(fields).filter((name) => fields[name] === "time").map((name) => drawRange(name, change));
  byId("known").append(...ranges);
  const names = Object.entries({...fields, path: "text"}).flatMap(([name, type]) => [", ", ...drawName(name, type)]);
  byId("names").replaceChildren("Fields: ", ...names.slice(1));
  byId("grouped").hidden = !Object.keys(fields).length;
}

// Requests the values of the fields, with counts, and draws their boxes; once.
export async function listValues(query, change) {
  if (listed) return;
  listed = true;
  try {
    const {values} = await ask("/api/values");
    byId("known").prepend(...Object.entries(values).map(([name, known]) => drawBoxes(name, known, change)));
    choose(query());
  } catch (error) {
    listed = false;
    byId("names").textContent = error.message;
  }
}

// Shows what a query has chosen.
export function choose(query) {
  for (const box of document.querySelectorAll("#known [type=checkbox]")) {
    box.checked = query.values[box.name]?.includes(box.value) ?? false;
  }
  for (const input of document.querySelectorAll("#known [type=datetime-local]")) {
    input.value = query.times[input.name]?.[input.dataset.end] ?? "";
  }
  byId("where").value = query.where;
  byId("chosen").textContent = describeFilter(query);
}

function readChosen() {
  const [values, times] = [noFields(), noFields()];
  for (const {name, value, checked} of document.querySelectorAll("#known [type=checkbox]")) {
    values[name] ??= [];
    if (checked) values[name].push(value);
  }
  for (const {name, value, dataset} of document.querySelectorAll("#known [type=datetime-local]")) {
    if (value) (times[name] ??= {from: "", to: ""})[dataset.end] = value;
  }
  return {values, times};
}

function drawBoxes(name, known, change) {
  const group = drawGroup(name);
  group.append(...known.map(({value, pictures}) => {
    const label = template("box");
    const box = label.querySelector("input");
    [box.name, box.value] = [name, literal(value)];
    box.onchange = () => change(readChosen());
    label.querySelector("span").textContent = String(value).slice(0, 60);
    label.querySelector("small").textContent = pictures.toLocaleString("en");
    return label;
  }));
  return group;
}

function drawRange(name, change) {
  const group = drawGroup(`${name} (UTC)`);
  group.append(...["from", "to"].map((end) => {
    const label = template("time");
    const input = label.querySelector("input");
    [input.name, input.dataset.end] = [name, end];
    input.onchange = () => change(readChosen());
    label.prepend(end);
    return label;
  }));
  return group;
}

function drawGroup(name) {
  const group = template("group-of-choices");
  group.querySelector("legend").textContent = name;
  return group;
}

function drawName(name, type) {
  const button = document.createElement("button");
  [button.type, button.className, button.textContent] = ["button", "link", name];
  button.onclick = () => {
    byId("where").value = both(byId("where").value.trim(), `${quoted(name)} `);
    byId("where").focus();
  };
  return [button, ` (${type})`];
}

// Shows an error of the expression: its text with the character at `place` marked, and selects that character.
export function point(where, place) {
  const mark = document.createElement("mark");
  mark.textContent = where[place] ?? "\u00a0"; // at the end something is missing
  byId("pointed").replaceChildren(where.slice(0, place), mark, where.slice(place + 1));
  byId("advanced").open = true;
  byId("where").setAttribute("aria-invalid", "true");
  if (document.activeElement === byId("where")) byId("where").setSelectionRange(place, place + 1);
}

export function unpoint() {
  byId("pointed").replaceChildren();
  byId("where").removeAttribute("aria-invalid");
}
