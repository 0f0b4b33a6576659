// The page: builds the query from the form, sends it and shows the answer.

import {drawAnswer, warn, whole} from "./answer.js";
import {drawChips} from "./chips.js";
import {onLike, onUnlike, openDetail} from "./detail.js";
import {save, toCsv, toJson} from "./export.js";
import {findPlaces} from "./fields.js";
import {choose, drawFields, listValues, point, unpoint} from "./filter.js";
import {describeFilter, faultIn, fromFragment, inWords, isEmpty, noFields, readPhrase, toBody, toFragment} from "./query.js";
import {add, clear, drawWaiting, thumbnail} from "./results.js";
import {ask} from "./server.js";

const FIRST = 48; // results of the first request; each further one asks for twice as many as the one before
const NAME = document.title;
const byId = (id) => document.getElementById(id);
const grid = byId("grid");
let query = fromFragment(location.hash);
let results = [];
let top = FIRST; // number of results requested
let about = null; // the answer of /api/about, once it is there
let updated = ""; // when the index was updated, as of the last answer
let asking = new AbortController();
let reader = new FileReader();

// Searches by the query with these parts and the current text and filter.
function change(parts) {
  query = {...query, text: byId("text").value.trim(), where: byId("where").value.trim(), ...parts};
  const fragment = "#" + toFragment(query);
  if (fragment !== (location.hash || "#")) history.pushState(null, "", fragment);
  search();
}

// Searches with these choices; a link may have values of fields that have no boxes, which stay.
function chooseValues({values, times}) {
  change({values: Object.assign(noFields(), query.values, values), times});
}

async function search() {
  unpoint();
  drawQuery();
  asking.abort();
  const mine = (asking = new AbortController());
  show(isEmpty(query) ? "empty" : "loading");
  try {
    if (!about) await learn(mine.signal);
    if (!isEmpty(query)) await request(FIRST, mine.signal);
  } catch (error) {
    if (!mine.signal.aborted) fail(error); // a response that a later search cuts off raises no AbortError
  }
}

async function learn(signal) {
  about = await ask("/api/about", null, signal);
  byId("about").textContent = `${whole(about.pictures)} pictures in ${about.index}, model ${about.model.slice(0, 12)}`;
  byId("group").append(...Object.keys(about.fields).map((name) => new Option(name)));
  drawFields(about, chooseValues);
  choose({...query, where: byId("where").value}); // the user may have typed meanwhile
  byId("group").value = groupOf(query);
}

// Returns the field by which a query folds its results: by default that of the track.
function groupOf({group}) {
  return group ?? findPlaces(about.fields).track ?? "";
}

// Asks for the first `count` results and shows those that are not shown yet.
async function request(count, signal) {
  const body = toBody(query, groupOf(query), count);
  const start = performance.now();
  const answer = await ask("/api/search", body, signal);
  if (updated && updated !== answer.basis.updated) about.pictures = (await ask("/api/about", null, signal)).pictures;
  updated = answer.basis.updated;
  if (count === FIRST) {
    show("found");
    drawAnswer(answer, about, body.where !== "", (performance.now() - start) / 1000);
    drawSuggestions(answer.suggestions);
  }
  const known = new Set(results.map(({id}) => id));
  results.push(...answer.results.filter(({id}) => !known.has(id)));
  add(results, findPlaces(about.fields), openDetail);
  keepFocus();
  top = count;
  const ended = answer.results.length < count || count === about.max_top;
  byId("more").hidden = ended;
  byId("end").textContent = ended && answer.searched > about.max_top ? `The first ${whole(results.length)} pictures are shown.` : "";
  watcher.unobserve(byId("more")); // if the button is still in view, the watcher says so only when it starts
  if (!ended) watcher.observe(byId("more"));
}

// Offers the query with likely misspelt words corrected.
function drawSuggestions(suggestions) {
  const correct = (text) => suggestions[text] ?? text;
  byId("meant").hidden = !Object.keys(suggestions).length;
  byId("mended").textContent = Object.values(suggestions).join(", ");
  byId("mended").onclick = () => {
    byId("text").value = correct(query.text);
    change({terms: query.terms.map(({text, weight}) => ({text: correct(text), weight}))});
  };
}

const watcher = new IntersectionObserver(([{isIntersecting}]) => {
  if (isIntersecting) byId("more").click();
}, {rootMargin: "0px 0px 600px"});

async function more() {
  const {signal} = asking;
  watcher.unobserve(byId("more"));
  try {
    await request(Math.min(2 * top, about.max_top), signal);
  } catch (error) {
    if (!signal.aborted) byId("end").textContent = reason(error); // the button stays, to try again
  }
}

function fail(error) {
  const place = faultIn(query, error.message);
  if (place !== null) {
    openFilter(true);
    point(query.where, place);
  }
  byId("reason").textContent = reason(error);
  byId("again").hidden = place !== null;
  byId("without").hidden = !query.image;
  show("error");
  keepFocus();
}

function reason(error) {
  return error instanceof TypeError ? "the server does not answer" : error.message;
}

// Shows a message below the phrases and the picture, and keeps the results.
function refuse(why) {
  byId("refused").textContent = why;
}

// state: empty, loading, found or error; the style sheet selects what is visible.
function show(state) {
  document.body.dataset.state = state;
  grid.setAttribute("aria-busy", state === "loading");
  if (state === "loading") {
    byId("status").textContent = "searching \u2026";
    refuse("");
    byId("meant").hidden = true;
    watcher.disconnect();
    return drawWaiting(12);
  }
  lost = grid.contains(document.activeElement);
  results = [];
  clear();
  warn();
  byId("end").textContent = "";
  byId("more").hidden = true;
  scrollTo(0, 0);
}

let lost = false; // whether the focus was on a card that is gone

function keepFocus() {
  if (lost) (grid.querySelector("button") ?? byId(document.body.dataset.state === "error" ? "again" : "status")).focus();
  lost = false;
}

function drawQuery() {
  document.title = [inWords(query).slice(0, 60), NAME].filter(Boolean).join(" \u00b7 ");
  byId("text").value = query.text;
  if (about) byId("group").value = groupOf(query);
  byId("distinct").checked = query.distinct;
  choose(query);
  byId("clear").hidden = !describeFilter(query);
  byId("hint").hidden = !isEmpty(query);
  byId("split").hidden = !query.text;
  drawChips([...query.terms.map(chipOfTerm), ...chipsOfPicture(), ...chipsOfUnlike()]);
}

function chipOfTerm({text, weight}, index) {
  const set = (weight) => {
    change({terms: query.terms.flatMap((term, i) => (i !== index ? [term] : weight ? [{text, weight}] : []))});
  };
  return {text, weight, source: "", set};
}

// The rejected pictures are one chip; removing it or its "not" takes them back.
function chipsOfUnlike() {
  const count = query.unlike.length;
  const set = (weight) => { if (weight >= 0) change({unlike: []}); };
  return count ? [{text: `${whole(count)} picture${count === 1 ? "" : "s"}`, weight: -1, source: "", set, fixed: true}] : [];
}

function chipsOfPicture() {
  if (!query.image && query.like === null) return [];
  const [text, source] = query.image
    ? [query.image.name, query.image.data]
    : [`like picture ${query.like}`, thumbnail(query.like)];
  const set = (weight) => change(weight ? {imageWeight: weight} : {image: null, like: null, imageWeight: 1});
  return [{text, weight: query.imageWeight, source, set}];
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
    const {terms, rest} = await ask("/api/phrases", {text: query.text}, signal);
    const most = about.max_terms - query.terms.length - (rest ? 1 : 0);
    if (terms.length > most) return refuse(`These are ${terms.length} phrases, and a query has at most ${about.max_terms} parts.`);
    byId("text").value = rest;
    change({terms: [...terms, ...query.terms]});
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

function openFilter(open) {
  byId("options").hidden = !open;
  byId("filter").setAttribute("aria-expanded", open);
  if (open) listValues(() => query, chooseValues);
}

function listenToQuery() {
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
  byId("filter").onclick = () => openFilter(byId("options").hidden);
  byId("group").onchange = (event) => change({group: event.target.value});
  byId("distinct").onchange = (event) => change({distinct: event.target.checked});
  byId("clear").onclick = () => {
    change({where: "", values: {}, times: {}});
    byId("filter").focus();
  };
  document.ondragover = (event) => event.preventDefault();
  document.ondrop = (event) => {
    event.preventDefault();
    if (event.dataTransfer.files[0]) upload(event.dataTransfer.files[0]);
  };
  document.onpaste = (event) => { if (event.clipboardData.files[0]) upload(event.clipboardData.files[0]); };
}

function listenToRest() {
  byId("more").onclick = more;
  byId("again").onclick = () => change({});
  byId("without").onclick = () => change({image: null, imageWeight: 1});
  byId("share").onclick = share;
  byId("csv").onclick = () => save("results.csv", "text/csv", toCsv(results));
  byId("json").onclick = () => save("results.json", "application/json", toJson(results));
  onLike((id) => {
    byId("text").value = "";
    change({terms: [], image: null, like: id, imageWeight: 1, unlike: []});
  });
  onUnlike((id) => {
    if (query.unlike.length >= about.max_unlike) return refuse(`At most ${about.max_unlike} pictures can be rejected.`);
    change({unlike: [...query.unlike, id]});
  });
  byId("text").onkeydown = (event) => {
    if (event.key === "ArrowDown") grid.querySelector("button")?.focus();
  };
  document.onkeydown = (event) => {
    if (event.key !== "/" || event.target.matches("input, select") || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    byId("text").select();
  };
  window.onpopstate = () => { query = fromFragment(location.hash); search(); };
}

listenToQuery();
listenToRest();
openFilter(describeFilter(query) !== "");
search();
