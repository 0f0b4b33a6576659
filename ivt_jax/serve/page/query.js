// The query: a sentence, weighted phrases, a picture or a row, a filter and options. The fragment of the page's address
// holds it for sharing, without the picture; browsers do not send the fragment to the server.

const DISTINCT = 0.95; // cosine similarity above which pictures are near-duplicates
const FIELD = "field."; // prefix of field names in the fragment

// where: the typed filter. fields: values chosen from lists, field name -> literal.
export function emptyQuery() {
  return {
    text: "", terms: [], image: null, like: null, imageWeight: 1,
    where: "", fields: {}, group: "", distinct: false, top: 24,
  };
}

export function isEmpty(query) {
  return !query.text && !query.terms.length && !query.image && query.like === null;
}

export function toFragment(query) {
  const parts = new URLSearchParams();
  if (query.text) parts.append("text", query.text);
  for (const term of query.terms) parts.append("term", `${term.weight}:${term.text}`);
  if (query.like !== null) parts.append("like", `${query.imageWeight}:${query.like}`);
  for (const name of ["where", "group"]) if (query[name]) parts.append(name, query[name]);
  for (const [name, value] of Object.entries(query.fields)) parts.append(FIELD + name, value);
  if (query.distinct) parts.append("distinct", "yes");
  if (query.top !== 24) parts.append("top", query.top);
  return parts.toString();
}

export function fromFragment(fragment) {
  const parts = new URLSearchParams(fragment.replace(/^#/, ""));
  const query = emptyQuery();
  for (const name of ["text", "where", "group"]) query[name] = parts.get(name) ?? "";
  query.terms = parts.getAll("term").map(readWeighted).filter((term) => term.text);
  const like = readWeighted(parts.get("like") ?? "");
  if (/^\d+$/.test(like.text)) [query.like, query.imageWeight] = [Number(like.text), like.weight];
  const chosen = [...parts].filter(([name, value]) => name.startsWith(FIELD) && value);
  query.fields = Object.fromEntries(chosen.map(([name, value]) => [name.slice(FIELD.length), value]));
  query.distinct = parts.has("distinct");
  query.top = Number(parts.get("top")) || query.top;
  return query;
}

// Returns the body of POST /api/search.
export function toBody(query) {
  const sentence = query.text ? [{text: query.text, weight: 1}] : [];
  return {
    terms: [...sentence, ...query.terms],
    image: query.image && query.image.data.split(",")[1],
    like: query.like,
    image_weight: query.imageWeight,
    where: both(query.where, conditions(query).join(" and ")),
    top: query.top,
    group: query.group,
    distinct: query.distinct ? DISTINCT : null,
  };
}

// Returns the filter and the options that are set, in words; "" if none is.
export function describeOptions(query) {
  const group = query.group && `one picture for each ${query.group}`;
  const distinct = query.distinct && "no near-duplicates";
  return [query.where, ...conditions(query), group, distinct].filter(Boolean).join(" \u00b7 ");
}

function conditions(query) {
  return Object.entries(query.fields).map(([name, value]) => `${quoted(name)} = ${value}`);
}

// Joins two filters with `and` (their language: ivt_jax/retrieval/where.py). The first may contain `or`.
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

// Parses a typed phrase; "- hat" is an unwanted one.
export function readPhrase(typed) {
  const [, minus, text] = typed.trim().match(/^([-\u2212]?)\s*(.*)$/);
  return {text, weight: minus ? -1 : 1};
}

function readWeighted(part) {
  const [, weight, text] = part.match(/^(-?[\d.]+):(.*)$/) ?? [null, "", ""];
  return {text, weight: Number(weight) || 1};
}
