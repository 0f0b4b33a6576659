// Results as CSV and JSON files.

import {written} from "./answer.js";

export function toJson(results) {
  return JSON.stringify(results, null, 2) + "\n";
}

export function toCsv(results) {
  const fields = Object.keys(results[0]?.metadata ?? {});
  const phrases = (results[0]?.phrases ?? []).map(written);
  const rows = results.map((result, index) => [
    index + 1, result.id, result.path, result.score, result.probability, result.folded_under,
    ...fields.map((field) => result.metadata[field]), ...result.phrases.map((phrase) => phrase.score),
  ]);
  const names = ["rank", "id", "path", "score", "probability", "folded_under", ...fields, ...phrases];
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
