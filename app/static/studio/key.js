/** The key that a server with keys wants: where it is kept, and the dialog that asks for it. */

import { byId } from "./dom.js";

const NAME = "denoised.key";

/** Keeps the key for this tab, or for this browser if the user says so. */
export function createKeyring() {
  const dialog = byId("key-dialog");
  const form = byId("key-form");
  const input = byId("key");
  let key = sessionStorage.getItem(NAME) ?? localStorage.getItem(NAME) ?? "";
  let asked = null;

  /** Opens the dialog; several refused requests share it. Resolves to whether a key was entered. */
  function ask(problem = null) {
    asked ??= new Promise((resolve) => open(problem, resolve));
    return asked;
  }

  function open(problem, resolve) {
    const isWrong = problem?.code === "key_unknown";
    byId("key-error").hidden = !isWrong;
    byId("key-error").textContent = isWrong ? "This key opens nothing here. Check it, or ask who runs the server." : "";
    input.value = "";
    input.toggleAttribute("aria-invalid", isWrong);
    dialog.returnValue = "";
    dialog.addEventListener("close", () => resolve(settle()), { once: true });
    dialog.showModal();
  }

  function settle() {
    asked = null;
    const entered = input.value.trim();
    if (dialog.returnValue !== "use" || !entered) return false;
    key = entered;
    localStorage.removeItem(NAME);
    sessionStorage.removeItem(NAME);
    (byId("key-keep").checked ? localStorage : sessionStorage).setItem(NAME, key);
    byId("key-button").hidden = false;
    return true;
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    dialog.close("use");
  });
  byId("key-cancel").addEventListener("click", () => dialog.close());
  byId("key-button").hidden = !key;
  return {
    get key() {
      return key;
    },
    ask,
  };
}
