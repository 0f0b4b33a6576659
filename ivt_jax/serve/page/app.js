// The page: what is typed and chosen becomes the query, the query is asked, the answer is shown.

import {onLike, openDetail} from "/detail.js";
import {emptyQuery, fromFragment, isEmpty, readPhrase, toBody, toFragment} from "/query.js";
import {drawCards, drawWaiting, save, thumbnail, toCsv, toJson} from "/results.js";
import {ask} from "/server.js";

const TYPES = ["image/jpeg", "image/png", "image/webp"];
const byId = (id) => document.getElementById(id);
const whole = (number) => number.toLocaleString("en");
let query = emptyQuery();
let results = [];
let about = {fields: {}, values: {}};
let asking = new AbortController();

// The query with these parts changed, and the box as it stands, is asked.
function change(parts) {
  query = {...query, text: byId("text").value.trim(), where: byId("where").value.trim(), ...parts};
  const fragment = "#" + toFragment(query);
  if (fragment !== (location.hash || "#")) history.pushState(null, "", fragment);
  search();
}

async function search() {
  drawQuery();
  asking.abort();
  const mine = (asking = new AbortController());
  if (isEmpty(query)) return show("empty", []);
  show("loading", results);
  const start = performance.now();
  try {
    const answer = await ask("/api/search", toBody(query), mine.signal);
    const seconds = ((performance.now() - start) / 1000).toFixed(2);
    byId("status").textContent = `${whole(answer.results.length)} of ${whole(answer.searched)} pictures in ${seconds} s`;
    if (answer.good !== false && answer.verdict) byId("status").textContent += `; ${answer.verdict}`;
    byId("poor").textContent = answer.verdict;
    for (const phrase of answer.results.flatMap((result) => result.phrases)) phrase.unwanted = isUnwanted(phrase.text);
    show(answer.good === false ? "poor" : "found", answer.results);
  } catch (error) {
    if (error.name !== "AbortError") fail(error);
  }
}

function isUnwanted(phrase) {
  return query.terms.some((term) => term.weight < 0 && term.text.includes(phrase)) && !query.text.includes(phrase);
}

function fail(error) {
  byId("error").firstElementChild.textContent = error instanceof TypeError ? "the server does not answer" : error.message;
  show("error", []);
}

// state: empty, loading, found, poor or error; the style sheet shows what belongs to it.
function show(state, found) {
  document.body.dataset.state = state;
  byId("grid").setAttribute("aria-busy", state === "loading");
  if (state === "loading") {
    byId("status").textContent = "searching \u2026";
    return drawWaiting(12);
  }
  results = found;
  drawCards(results, (index) => openDetail(results, index));
}

function drawQuery() {
  byId("text").value = query.text;
  for (const name of ["where", "group", "top"]) byId(name).value = query[name];
  byId("distinct").checked = query.distinct;
  for (const choice of document.querySelectorAll("#known select")) choice.value = chosen(choice);
  byId("hint").hidden = !isEmpty(query);
  byId("split").hidden = !query.text;
  const [chips, focused] = [[...document.querySelectorAll("li.chip")], document.activeElement];
  const held = chips.findIndex((chip) => chip.contains(focused));
  chips.forEach((chip) => chip.remove());
  byId("add").before(...query.terms.map(drawTerm), ...drawPicture());
  if (held >= 0) (document.querySelectorAll("li.chip")[held]?.querySelector(`.${focused.className}`) ?? byId("phrase")).focus();
}

function drawTerm(term, index) {
  return drawChip(term.text, term.weight, "", (weight) => {
    change({terms: query.terms.flatMap((other, i) => (i !== index ? [other] : weight ? [{...other, weight}] : []))});
  });
}

function drawPicture() {
  if (!query.image && query.like === null) return [];
  const [text, source] = query.image
    ? [query.image.name, query.image.data]
    : [`like picture ${query.like}`, thumbnail(query.like)];
  return [drawChip(text, query.imageWeight, source, (weight) => {
    change(weight ? {imageWeight: weight} : {image: null, like: null, imageWeight: 1});
  })];
}

// `set` is called with another weight, or with 0 where the chip is removed.
function drawChip(text, weight, source, set) {
  const chip = byId("chip").content.firstElementChild.cloneNode(true);
  const find = (name) => chip.querySelector(name);
  const [sign, wanted] = [find(".sign"), weight > 0];
  chip.classList.toggle("unwanted", !wanted);
  find(".text").textContent = text;
  find("img").hidden = !source;
  if (source) find("img").src = source;
  sign.textContent = wanted ? "+" : "\u2212";
  sign.title = wanted ? "Wanted; press for the contrary" : "Not wanted; press for the contrary";
  sign.setAttribute("aria-label", `${text}: ${sign.title}`);
  sign.onclick = () => set(-weight);
  find(".weight").value = Math.abs(weight);
  find(".weight").setAttribute("aria-label", `weight of ${text}`);
  find(".weight").onchange = (event) => set(Math.sign(weight) * (Math.abs(event.target.valueAsNumber) || 1));
  find(".remove").setAttribute("aria-label", `remove ${text}`);
  find(".remove").onclick = () => set(0);
  return chip;
}

function upload(file) {
  const largest = Math.floor((about.max_body - 100_000) * 0.75); // Base64 makes four bytes of three
  if (!TYPES.includes(file.type)) return fail(new Error("the picture is none of JPEG, PNG and WEBP"));
  if (file.size > largest) return fail(new Error(`the picture is too large: at most ${whole(largest)} bytes are taken`));
  const reader = new FileReader();
  reader.onload = () => change({image: {name: file.name, data: reader.result}, like: null});
  reader.readAsDataURL(file);
}

async function split() {
  try {
    const {phrases} = await ask("/api/phrases", {text: query.text});
    byId("text").value = "";
    change({terms: [...phrases.map(readPhrase), ...query.terms]});
  } catch (error) {
    fail(error);
  }
}

async function share() {
  // Over plain HTTP only this machine's pages have a clipboard.
  const copied = await navigator.clipboard?.writeText(location.href).then(() => true, () => false);
  const told = copied ? "Copied" : "See the address bar";
  byId("share").textContent = query.image ? `${told}, without the picture` : told;
  setTimeout(() => { byId("share").textContent = "Copy link"; }, 2000);
}

function drawAbout() {
  byId("about").textContent = `${whole(about.pictures)} pictures in ${about.index}, model ${about.model.slice(0, 12)}`;
  const names = Object.entries(about.fields);
  if (!names.length) return;
  byId("known").replaceChildren(...names.map(drawField));
  byId("group").append(...names.map(([name]) => new Option(name)));
}

// A field of few values is a list to choose from; of another the name goes into the filter, to be completed by hand.
function drawField([name, type]) {
  const plain = /^[A-Za-z_]\w*$/.test(name) && !/^(and|or|not|in|is|missing|true|false)$/i.test(name);
  const named = plain ? name : "`" + name.replaceAll("`", "``") + "`";
  return about.values[name] ? drawChoice(name, named) : drawName(name, named, type);
}

function drawChoice(name, named) {
  const [label, choice] = [document.createElement("label"), document.createElement("select")];
  const conditions = about.values[name].map((value) => new Option(String(value).slice(0, 60), `${named} = ${literal(value)}`));
  choice.setAttribute("aria-label", name);
  choice.append(new Option("any", ""), ...conditions);
  choice.onchange = () => {
    filterBy(choice, choice.value);
    change({});
  };
  label.append(name, choice);
  return label;
}

function drawName(name, named, type) {
  const [field, button] = [document.createElement("span"), document.createElement("button")];
  [button.type, button.className, button.textContent] = ["button", "link", name];
  button.onclick = () => {
    addCondition(`${named} `);
    byId("where").focus();
  };
  field.append(button, ` ${type}`);
  return field;
}

// That of a list's conditions which stands in the filter, or "". Longer ones first: one may begin with another.
function chosen(choice) {
  const conditions = [...choice.options].map((option) => option.value).sort((a, b) => b.length - a.length);
  return conditions.find((condition) => byId("where").value.includes(condition));
}

function filterBy(choice, condition) {
  const [where, before] = [byId("where"), chosen(choice)];
  if (!before) return addCondition(condition);
  const replaced = condition ? before : [` and ${before}`, `${before} and `, before].find((part) => where.value.includes(part));
  where.value = where.value.replace(replaced, () => condition);
}

function addCondition(condition) {
  const before = byId("where").value.trim();
  byId("where").value = before ? `${/\bor\b/i.test(before) ? `(${before})` : before} and ${condition}` : condition;
}

function literal(value) {
  return typeof value === "string" ? "'" + value.replaceAll("'", "''") + "'" : String(value);
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
  byId("again").onclick = () => change({});
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

async function start() {
  listen();
  try {
    about = await ask("/api/about");
    drawAbout();
    query = fromFragment(location.hash);
    byId("options").open = Boolean(query.where || query.group || query.distinct);
    search();
  } catch (error) {
    fail(error);
  }
}

start();
