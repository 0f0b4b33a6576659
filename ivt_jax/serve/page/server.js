// Requests to the server. If it requires a token, a dialog asks for it once.

const byId = (id) => document.getElementById(id);
let admitted = null; // a promise while the login dialog is open

// Returns the JSON answer to a GET, or with `body` to a POST. Throws an Error with the server's message. `path` begins
// with a slash and is relative to the page's own URL, which behind a proxy may be https://HOST/PATH/.
export async function ask(path, body, signal) {
  const post = {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body)};
  const response = await fetch("." + path, {...(body && post), signal});
  if (response.status === 401 && path !== "/login") {
    await (admitted ??= login().finally(() => { admitted = null; }));
    return ask(path, body, signal);
  }
  if (response.ok) return response.status === 204 ? null : response.json();
  const failure = await response.json().catch(() => ({error: `the server answered with status ${response.status}`}));
  throw new Error(failure.error);
}

function login() {
  const dialog = byId("login");
  byId("wrong").textContent = "";
  dialog.showModal();
  return new Promise((resolve, reject) => {
    dialog.onclose = () => reject(new Error("the server requires a token")); // closed by Esc; after a login it is resolved already
    dialog.querySelector("form").onsubmit = async (event) => {
      event.preventDefault();
      try {
        await ask("/login", {token: byId("token").value});
        byId("token").value = "";
        resolve();
        dialog.close();
      } catch (error) {
        byId("wrong").textContent = error.message;
      }
    };
  });
}
