// The page: builds the query from the form, sends it and shows the answer.

import {onLike, openDetail} from "./detail.js";
import {choose, drawFields} from "./filter.js";
import {fromFragment, isEmpty, readPhrase, describeOptions, toBody, toFragment} from "./query.js";
import {drawCards, drawWaiting, save, thumbnail, toCsv, toJson} from "./results.js";
import {ask} from "./server.js";

const byId = (id) => document.getElementById(id);
const whole = (number) => number.toLocaleString("en");
let query = fromFragment(location.hash);
let results = [];
let about = null; // the answer of /api/about, once it is there
let asking = new AbortController();
let reader = new FileReader();

// Searches by the query with these parts and the current text and filter.
function change(parts) {
  query = {...query, text: byId("text").value.trim(), where: byId("where").value.trim(), ...parts};
  const fragment = "#" + toFragment(query);
  if (fragment !== (location.hash || "#")) history.pushState(null, "", fragment);
  search();
}

async function search() {
  byId("refused").textContent = "";
  drawQuery();
  asking.abort();
  const mine = (asking = new AbortController());
  show(isEmpty(query) ? "empty" : "loading", []);
  try {
    if (!about) await learn(mine.signal);
    if (isEmpty(query)) return;
    const start = performance.now();
    const answer = await ask("/api/search", toBody(query), mine.signal);
    drawAnswer(answer, (performance.now() - start) / 1000);
  } catch (error) {
    if (!mine.signal.aborted) fail(error); // a response that a later search cuts off raises no AbortError
  }
}

async function learn(signal) {
  about = await ask("/api/about", null, signal);
  byId("about").textContent = `${whole(about.pictures)} pictures in ${about.index}, model ${about.model.slice(0, 12)}`;
  byId("group").append(...Object.keys(about.fields).map((name) => new Option(name)));
  drawFields(about, (name, value) => {
    const {[name]: _, ...others} = query.fields;
    change({fields: value ? {...others, [name]: value} : others});
  });
  byId("group").value = query.group;
  choose(query.fields); // no other part of the query: the user may have typed meanwhile
}

function drawAnswer(answer, seconds) {
  const unmet = !answer.searched && toBody(query).where;
  const verdict = unmet && !answer.unfinished ? "no picture meets the filter" : answer.verdict;
  const poor = unmet || answer.good === false || answer.unfinished !== "";
  show(poor ? "poor" : "found", answer.results);
  const count = `${whole(answer.results.length)} of ${whole(answer.searched)} pictures in ${seconds.toFixed(2)} s`;
  byId("status").textContent = verdict && !poor ? `${count}; ${verdict}` : count;
  byId("poor").textContent = poor ? verdict : "";
  refuse(answer.unread);
}

function fail(error) {
  byId("error").firstElementChild.textContent = reason(error);
  byId("without").hidden = !query.image;
  show("error", []);
}

// Shows a message beside the phrases and the picture, and keeps the results.
function refuse(why) {
  byId("refused").textContent = why;
}

function reason(error) {
  return error instanceof TypeError ? "the server does not answer" : error.message;
}

// state: empty, loading, found, poor or error; the style sheet selects what is visible.
function show(state, found) {
  document.body.dataset.state = state;
  byId("grid").setAttribute("aria-busy", state === "loading");
  if (state === "loading") {
    byId("status").textContent = "searching \u2026";
    return drawWaiting(12);
  }
  const held = byId("grid").contains(document.activeElement);
  results = found;
  drawCards(results, (index) => openDetail(results, index));
  byId("legend").hidden = !results[0]?.phrases.length;
  if (held) (byId("grid").querySelector("button") ?? byId(state === "error" ? "again" : "status")).focus();
}

function drawQuery() {
  byId("text").value = query.text;
  for (const name of ["where", "group", "top"]) byId(name).value = query[name];
  byId("distinct").checked = query.distinct;
  choose(query.fields);
  byId("chosen").textContent = describeOptions(query);
  byId("clear").hidden = !describeOptions(query);
  byId("hint").hidden = !isEmpty(query);
  byId("split").hidden = !query.text;
  drawChips([...query.terms.map(chipOfTerm), ...chipsOfPicture()]);
}

// Reuses the chips that are there, so that focus and mouse keep their target.
function drawChips(chips) {
  const drawn = [...document.querySelectorAll("li.chip")];
  for (const chip of drawn.splice(chips.length)) {
    if (chip.contains(document.activeElement)) byId("phrase").focus();
    chip.remove();
  }
  chips.forEach((chip, index) => drawChip(drawn[index] ?? addChip(), chip));
}

function addChip() {
  byId("add").before(byId("chip").content.cloneNode(true));
  return byId("add").previousElementSibling;
}

// Returns what a chip shows, and `set`, which changes its weight; 0 removes it.
function chipOfTerm({text, weight}, index) {
  const set = (weight) => {
    change({terms: query.terms.flatMap((term, i) => (i !== index ? [term] : weight ? [{text, weight}] : []))});
  };
  return {text, weight, source: "", set};
}

function chipsOfPicture() {
  if (!query.image && query.like === null) return [];
  const [text, source] = query.image
    ? [query.image.name, query.image.data]
    : [`like picture ${query.like}`, thumbnail(query.like)];
  const set = (weight) => change(weight ? {imageWeight: weight} : {image: null, like: null, imageWeight: 1});
  return [{text, weight: query.imageWeight, source, set}];
}

function drawChip(chip, {text, weight, source, set}) {
  const find = (name) => chip.querySelector(name);
  const [sign, wanted] = [find(".sign"), weight > 0];
  chip.classList.toggle("unwanted", !wanted);
  find(".text").textContent = text;
  find("img").hidden = !source;
  find("img").onerror = () => { find("img").hidden = true; }; // a format that this browser cannot show
  if (source) find("img").src = source;
  sign.textContent = wanted ? "+" : "\u2212";
  sign.title = wanted ? "Wanted; press to make it unwanted" : "Unwanted; press to make it wanted";
  sign.setAttribute("aria-label", `${text}: ${sign.title}`);
  sign.onclick = () => set(-weight);
  find(".weight").value = Math.abs(weight);
  find(".weight").setAttribute("aria-label", `weight of ${text}`);
  find(".weight").onchange = ({target}) => set(Math.sign(weight) * Math.abs(target.valueAsNumber || weight));
  find(".remove").setAttribute("aria-label", `remove ${text}`);
  find(".remove").onclick = () => set(0);
}

function upload(file) {
  const largest = about ? Math.floor((about.max_body - 100_000) * 0.75) : Infinity; // Base64 turns three bytes into four
  // Browsers know no type for some pictures, such as HEIC; the server checks the content.
  if (file.type && !file.type.startsWith("image/")) return refuse("the file is not a picture");
  if (file.size > largest) return refuse(`the picture is too large: at most ${whole(largest)} bytes are allowed`);
  reader.abort(); // the later of two pictures counts
  reader = new FileReader();
  reader.onload = () => change({image: {name: file.name, data: reader.result}, like: null});
  reader.onerror = () => refuse("the picture cannot be read");
  reader.readAsDataURL(file);
}

async function split() {
  const {signal} = asking; // a later search cancels this
  try {
    const {phrases} = await ask("/api/phrases", {text: query.text}, signal);
    byId("text").value = "";
    change({terms: [...phrases.map(readPhrase), ...query.terms]});
    (document.querySelector("li.chip button") ?? byId("text")).focus();
  } catch (error) {
    if (!signal.aborted) refuse(reason(error));
  }
}

async function share() {
  // Browsers offer the clipboard over HTTPS and on this machine only.
  const copied = await navigator.clipboard?.writeText(location.href).then(() => true, () => false);
  const message = copied ? "Copied" : "See the address bar";
  byId("share").textContent = query.image ? `${message}, without the picture` : message;
  setTimeout(() => { byId("share").textContent = "Copy link"; }, 2000);
}

function listen() {
  byId("ask").onsubmit = (event) => {
    event.preventDefault();
    const typed = byId("phrase").value.trim();
    byId("phrase").value = "";
    change(typed ? {terms: [...query.terms, readPhrase(typed)]} : {});
  };
  byId("example").onclick = () => change({text: byId("example").textContent});
  byId("upload").onclick = () => byId("file").click();
  byId("file").onchange = (event) => { if (event.target.files[0]) upload(event.target.files[0]); event.target.value = ""; };
  byId("split").onclick = split;
  byId("group").onchange = (event) => change({group: event.target.value});
  byId("top").onchange = (event) => change({top: Number(event.target.value)});
  byId("distinct").onchange = (event) => change({distinct: event.target.checked});
  byId("clear").onclick = () => {
    change({where: "", fields: {}, group: "", distinct: false});
    byId("where").focus();
  };
  byId("again").onclick = () => change({});
  byId("without").onclick = () => change({image: null, imageWeight: 1});
  byId("share").onclick = share;
  byId("csv").onclick = () => save("results.csv", "text/csv", toCsv(results));
  byId("json").onclick = () => save("results.json", "application/json", toJson(results));
  onLike((id) => {
    byId("text").value = "";
    change({terms: [], image: null, like: id, imageWeight: 1});
  });
  byId("text").onkeydown = (event) => {
    if (event.key === "ArrowDown") byId("grid").querySelector("button")?.focus();
  };
  document.onkeydown = (event) => {
    if (event.key !== "/" || event.target.matches("input, select") || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    byId("text").select();
  };
  document.ondragover = (event) => event.preventDefault();
  document.ondrop = (event) => {
    event.preventDefault();
    if (event.dataTransfer.files[0]) upload(event.dataTransfer.files[0]);
  };
  document.onpaste = (event) => { if (event.clipboardData.files[0]) upload(event.clipboardData.files[0]); };
  window.onpopstate = () => { query = fromFragment(location.hash); search(); };
}

listen();
byId("options").open = Boolean(describeOptions(query));
search();
