// The fields that a card shows: camera, time and track, known by their names and types.

const NAMES = {
  camera: /^cam(era)?[ _-]?(id|no|name)?$/i,
  track: /^(track|tracklet|sequence)[ _-]?(id|no|name)?$/i,
};

// fields: name -> type, as of /api/about. Returns the names of the fields, undefined for those that the index lacks.
export function findPlaces(fields) {
  const names = Object.keys(fields);
  const [camera, track] = [NAMES.camera, NAMES.track].map((pattern) => names.find((name) => pattern.test(name)));
  return {camera, time: names.find((name) => fields[name] === "time"), track};
}

// Writes a time, which the server sends in UTC, without "T", without seconds that are 0, and midnight as the date alone.
export function writeTime(text) {
  return text.replace(/(T00:00)?(:00)?(\.0+)?(Z|\+00:00)$/, "").replace("T", " ");
}

export const isTime = (value) => typeof value === "string" && /^\d{4}-\d\d-\d\dT[\d:.]+Z$/.test(value);

// Returns what a card shows of a result's fields.
export function placesOf({metadata}, {camera, time, track}) {
  const named = (name) => (metadata[name] ?? null) === null ? [] : [`${name} ${metadata[name]}`];
  const times = metadata[time] ? [writeTime(metadata[time])] : [];
  return [...named(camera), ...times, ...named(track)];
}
