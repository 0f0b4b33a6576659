// What the index knows of its pictures, to filter by: lists to choose from, and names to be completed by hand.

import {both, literal, quoted} from "./query.js";

const byId = (id) => document.getElementById(id);

// A field of few values is a list: `choose` is called with its name and the literal chosen, "" for any.
export function drawFields({fields, values}, choose) {
  const drawn = Object.entries(fields).map(([name, type]) => {
    return values[name] ? drawList(name, values[name], choose) : drawName(name, type);
  });
  byId("known").replaceChildren(...(drawn.length ? drawn : ["The index knows nothing of its pictures to filter by."]));
}

export function choose(fields) {
  for (const list of document.querySelectorAll("#known select")) list.value = fields[list.dataset.field] ?? "";
}

function drawList(name, values, choose) {
  const [label, list] = [document.createElement("label"), document.createElement("select")];
  list.dataset.field = name;
  list.setAttribute("aria-label", name);
  list.append(new Option("any", ""), ...values.map((value) => new Option(String(value).slice(0, 60), literal(value))));
  list.onchange = () => choose(name, list.value);
  label.append(name, list);
  return label;
}

function drawName(name, type) {
  const [field, button] = [document.createElement("span"), document.createElement("button")];
  [button.type, button.className, button.textContent] = ["button", "link", name];
  button.onclick = () => {
    byId("where").value = both(byId("where").value.trim(), `${quoted(name)} `);
    byId("where").focus();
  };
  field.append(button, ` ${type}`);
  return field;
}
