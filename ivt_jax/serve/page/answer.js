// Draws what an answer has besides its pictures: how many were searched, a warning, and the state of index and model.

const byId = (id) => document.getElementById(id);
export const whole = (number) => number.toLocaleString("en");
const pictures = (count) => `${whole(count)} picture${count === 1 ? "" : "s"}`;
export const percent = (share) => `${Math.round(100 * share)}%`;
export const likely = (probability) => `${percent(probability)} likely right, if present`;

// about: the answer of /api/about; filtered: whether the query has a filter; seconds: that the answer took.
export function drawAnswer(answer, about, filtered, seconds) {
  byId("status").textContent = `${pictures(answer.searched)} in ${seconds.toFixed(2)} s`;
  byId("basis").replaceChildren(...factsOf(answer, about).flatMap(drawFact));
  byId("refused").textContent = [answer.odd, answer.unread].filter(Boolean).join("; ");
  warn(...warningOf(answer, filtered));
}

// Shows a warning above the pictures, with one line of advice; none without arguments.
export function warn(warning = "", advice = "") {
  document.body.classList.toggle("warned", warning !== "");
  byId("warning").textContent = warning;
  byId("advice").textContent = advice;
}

function warningOf({results, good, unfinished}, filtered) {
  if (unfinished) return ["Not all pictures are in the index yet.", unfinished];
  if (!results.length) return filtered ? ["No picture meets the filter.", "Remove a condition."] : ["No picture found.", ""];
  if (good === false) return ["Weak match: closest pictures below.", "Name clothes, colours and bags."];
  return ["", ""];
}

function factsOf(answer, about) {
  const first = answer.results[0]?.probability ?? null;
  return [
    ["searched", `${whole(answer.searched)} of ${pictures(about.pictures)}`],
    ...(first === null ? [] : [["first picture", likely(first)]]),
    ...(answer.verdict ? [["estimate", answer.verdict]] : []),
    ...(answer.without_fit ? [["phrases", answer.without_fit]] : []),
    ["index", [about.index, answer.basis.updated && `updated ${answer.basis.updated}`].filter(Boolean).join(", ")],
    ["model", [about.model.slice(0, 12), answer.basis.trained && `written ${answer.basis.trained}`].filter(Boolean).join(", ")],
    ...Object.entries(answer.basis.passed).map(([reason, count]) => ["not in the index", `${whole(count)} ${reason}`]),
    ...(answer.basis.outdated ? [["out of date", answer.basis.outdated]] : []),
    ...(answer.basis.odd ? [["odd shape or size", `${pictures(answer.basis.odd)} of the results; their scores may be wrong`]] : []),
  ];
}

// Returns the two elements of a line in a list of facts.
export function drawFact([name, value]) {
  const [term, description] = [document.createElement("dt"), document.createElement("dd")];
  term.textContent = name;
  description.textContent = value;
  return [term, description];
}

// Draws a phrase and how well a picture fits it.
export function drawFit(phrase) {
  const fit = byId("fit").content.firstElementChild.cloneNode(true);
  fit.querySelector(".text").textContent = written(phrase);
  const known = phrase.score !== null;
  fit.querySelector(".share").textContent = known ? percent(phrase.score) : "cannot tell";
  fit.querySelector(".share").title = known ? "" : "validation does not show that this model can tell it";
  fit.querySelector(".scale").hidden = !known;
  fit.querySelector("i").style.width = known ? percent(phrase.score) : "0";
  fit.classList.toggle("unwanted", !phrase.wanted);
  return fit;
}

export const written = (phrase) => (phrase.wanted ? phrase.text : `not ${phrase.text}`);
