// The chips: the phrases and the picture of the query, each with a switch for "not", a weight and a button to remove it.

const byId = (id) => document.getElementById(id);

// chips: {text, weight, source (of a picture, or ""), set(weight), fixed (whether the weight cannot be changed)}; a weight
// of 0 removes the chip. Reuses the chips that are there, so that focus and mouse keep their target.
export function drawChips(chips) {
  const drawn = [...document.querySelectorAll("li.chip")];
  for (const chip of drawn.splice(chips.length)) {
    if (chip.contains(document.activeElement)) byId("phrase").focus();
    chip.remove();
  }
  byId("chips").hidden = !chips.length;
  chips.forEach((chip, index) => drawChip(drawn[index] ?? addChip(), chip));
}

function addChip() {
  byId("chips").append(byId("chip").content.cloneNode(true));
  return byId("chips").lastElementChild;
}

function drawChip(chip, {text, weight, source, set, fixed}) {
  const find = (name) => chip.querySelector(name);
  chip.classList.toggle("unwanted", weight < 0);
  find(".text").textContent = text;
  find("img").hidden = !source;
  find("img").onerror = () => { find("img").hidden = true; }; // a format that this browser cannot show
  if (source) find("img").src = source;
  find(".sign").setAttribute("aria-checked", weight < 0);
  find(".sign").setAttribute("aria-label", `not: ${text}`);
  find(".sign").onclick = () => set(-weight);
  find(".times").hidden = Boolean(fixed);
  find(".weight").value = Math.abs(weight);
  find(".weight").setAttribute("aria-label", `x: weight of ${text}`);
  find(".weight").onchange = ({target}) => set(Math.sign(weight) * Math.abs(target.valueAsNumber || weight));
  find(".remove").setAttribute("aria-label", `remove ${text}`);
  find(".remove").onclick = () => set(0);
}
