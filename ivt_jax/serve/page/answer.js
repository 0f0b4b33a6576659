// Draws what an answer has besides its pictures: how many were searched, a warning, and the state of index and model.

import {writeTime} from "./fields.js";

const byId = (id) => document.getElementById(id);
export const whole = (number) => number.toLocaleString("en");
const pictures = (count) => `${whole(count)} picture${count === 1 ? "" : "s"}`;
export const percent = (share) => `${Math.round(100 * share)}%`;
export const likely = (probability) => `${percent(probability)} likely right, if present`;

// about: the answer of /api/about; filtered: whether the query has a filter; seconds: that the answer took.
export function drawAnswer(answer, about, filtered, seconds) {
  byId("status").textContent = `${pictures(answer.searched)} in ${seconds.toFixed(2)} s`;
  byId("basis").replaceChildren(...factsOf(answer, about).flatMap(drawFact));
  byId("refused").textContent = [answer.odd, answer.unread, noteOn(answer, about)].filter(Boolean).join("; ");
  warn(...warningOf(answer, filtered));
}

// Shows a warning above the pictures, with one line of advice; none without arguments.
export function warn(warning = "", advice = "") {
  document.body.classList.toggle("warned", warning !== "");
  byId("warning").textContent = warning;
  byId("advice").textContent = advice;
}

// Returns what the model cannot tell if that is every phrase, or one that is unwanted.
function noteOn({results, without_fit}, {fits}) {
  const phrases = results[0]?.phrases ?? [];
  const without = phrases.filter(({score}) => score === null);
  return fits && (without.length === phrases.length || without.some(({wanted}) => !wanted)) ? without_fit : "";
}

function warningOf({results, searched, good, unfinished}, filtered) {
  if (unfinished) return ["Not all pictures are in the index yet.", unfinished];
  if (!results.length && searched) return ["No other picture is left.", "Take back some that you rejected."];
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
    ["index", [about.index, answer.basis.updated && `updated ${writeTime(answer.basis.updated)}`].filter(Boolean).join(", ")],
    ["model", [about.model.slice(0, 12), answer.basis.trained && `written ${writeTime(answer.basis.trained)}`].filter(Boolean).join(", ")],
    ...Object.entries(answer.basis.passed).map(([reason, count]) => ["not in the index", `${reason} (${whole(count)})`]),
    ...Object.entries(answer.basis.kept).map(([reason, count]) => ["without a readable file", `${reason} (${whole(count)})`]),
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
  fit.querySelector(".share").textContent = known ? `above ${percent(Math.min(phrase.score, 0.99))}` : "cannot tell";
  fit.querySelector(".share").title = known ? "share of the index that fits it less well" : "validation does not show that this model can tell it";
  fit.querySelector(".scale").hidden = !known;
  fit.querySelector("i").style.width = known ? percent(phrase.score) : "0";
  fit.classList.toggle("unwanted", !phrase.wanted);
  return fit;
}

export const written = (phrase) => (phrase.wanted ? phrase.text : `not ${phrase.text}`);
