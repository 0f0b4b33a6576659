// The query: a sentence, weighted phrases, a picture or a row, a filter and what to fold. The fragment of the page's
// address holds it for sharing, without the picture; browsers do not send the fragment to the server.

const DISTINCT = 0.98; // cosine similarity above which pictures are near-duplicates
const [VALUE, FROM, TO] = ["field.", "from.", "to."]; // prefixes of field names in the fragment

// where: the typed filter. values: chosen values, field name -> literals. times: field name -> {from, to}, "" for open
// ends. group: the field whose pictures are folded, "" for none, null for the index's own choice.
export function emptyQuery() {
  return {
    text: "", terms: [], image: null, like: null, imageWeight: 1, unlike: [],
    where: "", values: noFields(), times: noFields(), group: null, distinct: true,
  };
}

// An object without names of its own, as a field may be called "constructor".
export const noFields = () => Object.create(null);

export function isEmpty(query) {
  return !query.text && !query.terms.length && !query.image && query.like === null;
}

export function toFragment(query) {
  const parts = new URLSearchParams();
  if (query.text) parts.append("text", query.text);
  for (const term of query.terms) parts.append("term", `${term.weight}:${term.text}`);
  if (query.like !== null) parts.append("like", `${query.imageWeight}:${query.like}`);
  for (const id of query.unlike) parts.append("unlike", id);
  if (query.where) parts.append("where", query.where);
  for (const [name, values] of Object.entries(query.values)) for (const value of values) parts.append(VALUE + name, value);
  for (const [name, {from, to}] of Object.entries(query.times)) {
    if (from) parts.append(FROM + name, from);
    if (to) parts.append(TO + name, to);
  }
  if (query.group !== null) parts.append("group", query.group);
  if (!query.distinct) parts.append("distinct", "no");
  return parts.toString();
}

export function fromFragment(fragment) {
  const parts = new URLSearchParams(fragment.replace(/^#/, ""));
  const query = emptyQuery();
  for (const name of ["text", "where"]) query[name] = parts.get(name) ?? "";
  query.terms = parts.getAll("term").map(readWeighted).filter((term) => term.text);
  const like = readWeighted(parts.get("like") ?? "");
  if (/^\d+$/.test(like.text)) [query.like, query.imageWeight] = [Number(like.text), like.weight];
  query.unlike = parts.getAll("unlike").filter((id) => /^\d+$/.test(id)).map(Number);
  for (const [name, value] of parts) {
    const [from, to] = [FROM, TO].map((prefix) => name.startsWith(prefix) && isTime(value) && name.slice(prefix.length));
    if (name.startsWith(VALUE) && value) (query.values[name.slice(VALUE.length)] ??= []).push(value);
    if (from) (query.times[from] ??= {from: "", to: ""}).from = value;
    if (to) (query.times[to] ??= {from: "", to: ""}).to = value;
  }
  query.group = parts.get("group");
  query.distinct = parts.get("distinct") !== "no";
  return query;
}

const isTime = (text) => /^\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d)?$/.test(text); // as <input type="datetime-local"> has it

// Returns the body of POST /api/search. group: the field to fold by, "" for none.
export function toBody(query, group, top) {
  const sentence = query.text ? [{text: query.text, weight: 1}] : [];
  return {
    terms: [...sentence, ...query.terms],
    image: query.image && query.image.data.split(",")[1],
    like: query.like,
    image_weight: query.imageWeight,
    unlike: query.unlike,
    where: both(query.where, conditions(query).join(" and ")),
    top,
    group,
    distinct: query.distinct ? DISTINCT : null,
    fold: true,
  };
}

// Returns the query in a few words, for the title of the tab; "" for an empty one.
export function inWords(query) {
  const like = query.like === null ? "" : `like picture ${query.like}`;
  const terms = query.terms.map(({text, weight}) => (weight < 0 ? `not ${text}` : text));
  return [query.text, ...terms, query.image?.name, like].filter(Boolean).join(", ");
}

// Returns the filter in words; "" if there is none.
export function describeFilter(query) {
  return [query.where, ...conditions(query)].filter(Boolean).join(" \u00b7 ");
}

function conditions(query) {
  const values = Object.entries(query.values).filter(([, chosen]) => chosen.length).map(([name, chosen]) => {
    return chosen.length === 1 ? `${quoted(name)} = ${chosen[0]}` : `${quoted(name)} in (${chosen.join(", ")})`;
  });
  const times = Object.entries(query.times).flatMap(([name, {from, to}]) => [
    from && `${quoted(name)} >= ${literal(from)}`, to && `${quoted(name)} <= ${literal(to)}`,
  ]);
  return [...values, ...times.filter(Boolean)];
}

// Returns the place in the typed filter that an error of the server names, from 0; null if it names none.
export function faultIn(query, message) {
  const found = message.match(/^the filter at character (\d+), /);
  const place = found && found[1] - 1 - (query.where && conditions(query).length ? 1 : 0); // `both` adds a parenthesis
  return found && query.where && place >= 0 && place <= query.where.length ? place : null;
}

// Joins two filters with `and` (their language: ivt_jax/retrieval/stores/where.py). The first may contain `or`.
export function both(first, second) {
  return first && second ? `(${first}) and ${second}` : first || second;
}

export function quoted(name) {
  const plain = /^[A-Za-z_]\w*$/.test(name) && !/^(and|or|not|in|is|missing|true|false)$/i.test(name);
  return plain ? name : "`" + name.replaceAll("`", "``") + "`";
}

export function literal(value) {
  return typeof value === "string" ? "'" + value.replaceAll("'", "''") + "'" : String(value);
}

// Parses a typed phrase; "- hat" and "not hat" are unwanted ones.
export function readPhrase(typed) {
  const [, minus, text] = typed.trim().match(/^([-\u2212]\s*|not\s+)?(.*)$/i);
  return {text, weight: minus ? -1 : 1};
}

function readWeighted(part) {
  const [, weight, text] = part.match(/^(-?[\d.]+):(.*)$/) ?? [null, "", ""];
  return {text, weight: Number(weight) || 1};
}
