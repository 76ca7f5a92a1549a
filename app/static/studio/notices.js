/** Short messages at the edge of the page, and words for screen readers alone. */

import { byId, element, icon } from "./dom.js";

const STAY_MS = 7000;

export function createNotices() {
  const region = byId("notices");
  const whisper = byId("whisper");

  function show(text, { tone = "info", action = null } = {}) {
    const close = () => notice.remove();
    const notice = element(
      "div",
      { class: `notice notice-${tone}` },
      element("p", {}, text),
      action && element("button", { type: "button", class: "quiet", onclick: () => (close(), action.run()) }, action.title),
      element("button", { type: "button", class: "quiet square", "aria-label": "Dismiss", onclick: close }, icon("close")),
    );
    region.append(notice);
    while (region.children.length > 3) region.firstElementChild.remove();
    if (tone === "info") setTimeout(close, STAY_MS);
  }

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") region.lastElementChild?.remove();
  });

  return {
    say: (text, action = null) => show(text, { action }),
    warn: (text, action = null) => show(text, { tone: "warning", action }),
    /** For screen readers: what eyes see elsewhere. */
    tell(text) {
      whisper.textContent = text;
    },
  };
}
