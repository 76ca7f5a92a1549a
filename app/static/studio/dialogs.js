/** A picture in full, and the question before something is gone for good. */

import { byId } from "./dom.js";

export function startLightbox() {
  const dialog = byId("lightbox");
  byId("lightbox-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target !== byId("lightbox-close") && dialog.close());
  return (url, title) => {
    byId("lightbox-picture").src = url;
    byId("lightbox-picture").alt = title;
    dialog.showModal();
  };
}

/** Resolves to whether it was confirmed. */
export function confirmed(question, title) {
  const dialog = byId("confirm-dialog");
  byId("confirm-question").textContent = question;
  byId("confirm-yes").textContent = title;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    byId("confirm-yes").onclick = () => dialog.close("yes");
    byId("confirm-no").onclick = () => dialog.close();
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}
