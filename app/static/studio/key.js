/** The key that a server with keys wants: where it is kept, and the dialog that asks for it. */

import { byId } from "./dom.js";

const NAME = "denoised.key";

/** Keeps the key for this tab, or for this browser if the user says so. */
export class Keyring {
  #dialog = byId("key-dialog");
  #input = byId("key");
  #key = sessionStorage.getItem(NAME) ?? localStorage.getItem(NAME) ?? "";
  #asked = null;
  #isRefused = false;

  constructor() {
    byId("key-button").hidden = !this.#key;
    byId("key-cancel").addEventListener("click", () => this.#dialog.close());
    byId("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#dialog.close("use");
    });
  }

  get key() {
    return this.#key;
  }

  /**
   * Opens the dialog; several refused requests share it. Resolves to whether a key was entered. Once the user has said
   * no, only they open it again: without a problem.
   */
  ask(problem = null) {
    if (problem && this.#isRefused) return false;
    this.#asked ??= new Promise((resolve) => {
      this.#open(problem?.code === "key_unknown");
      this.#dialog.addEventListener("close", () => resolve(this.#settle()), { once: true });
    });
    return this.#asked;
  }

  #open(isWrong) {
    byId("key-error").hidden = !isWrong;
    byId("key-error").textContent = isWrong ? "This key opens nothing here. Check it, or ask who runs the server." : "";
    this.#input.value = "";
    this.#input.setAttribute("aria-invalid", String(isWrong));
    this.#dialog.returnValue = "";
    this.#dialog.showModal();
  }

  #settle() {
    this.#asked = null;
    const entered = this.#input.value.trim();
    this.#isRefused = this.#dialog.returnValue !== "use" || !entered;
    if (this.#isRefused) return false;
    this.#key = entered;
    localStorage.removeItem(NAME);
    sessionStorage.removeItem(NAME);
    (byId("key-keep").checked ? localStorage : sessionStorage).setItem(NAME, entered);
    byId("key-button").hidden = false;
    return true;
  }
}
