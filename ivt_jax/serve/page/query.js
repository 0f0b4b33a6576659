// What is asked: a sentence, phrases with weights, a picture or a row to be like, and how to answer. As the fragment of
// the page's address it can be shared: browsers send that to no server. A picture is not part of it.

const DISTINCT = 0.95; // the cosine similarity of near-duplicates

export function emptyQuery() {
  return {text: "", terms: [], image: null, like: null, imageWeight: 1, where: "", group: "", distinct: false, top: 24};
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
  query.distinct = parts.has("distinct");
  query.top = Number(parts.get("top")) || query.top;
  return query;
}

// As POST /api/search takes it.
export function toBody(query) {
  const sentence = query.text ? [{text: query.text, weight: 1}] : [];
  return {
    terms: [...sentence, ...query.terms],
    image: query.image && query.image.data.split(",")[1],
    like: query.like,
    image_weight: query.imageWeight,
    where: query.where,
    top: query.top,
    group: query.group,
    distinct: query.distinct ? DISTINCT : null,
  };
}

// A phrase as it is typed; "- hat" is one that is not wanted.
export function readPhrase(typed) {
  const [, minus, text] = typed.trim().match(/^([-\u2212]?)\s*(.*)$/);
  return {text, weight: minus ? -1 : 1};
}

function readWeighted(part) {
  const [, weight, text] = part.match(/^(-?[\d.]+):(.*)$/) ?? [null, "", ""];
  return {text, weight: Number(weight) || 1};
}
