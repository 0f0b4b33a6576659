// Filters by the index's fields: a list for each field with few values, a button with the name of any other.

import {both, literal, quoted} from "./query.js";

const byId = (id) => document.getElementById(id);

// choose(name, literal): called when a value is chosen from a list; "" for any.
export function drawFields({fields, values}, choose) {
  const drawn = Object.entries(fields).map(([name, type]) => {
    return values[name] ? drawList(name, values[name], choose) : drawName(name, type);
  });
  byId("known").replaceChildren(...(drawn.length ? drawn : ["This index has no fields to filter by."]));
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
