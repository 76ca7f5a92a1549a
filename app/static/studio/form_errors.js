/** What the server refused, in words, at the field that it is about. */

import { Problem } from "./api.js";
import { byId } from "./dom.js";
import { duration } from "./words.js";

/** Shows and clears errors in the form and at the mask. */
export function createFormErrors() {
  const places = [...document.querySelectorAll("[data-error-of]")];
  const general = byId("form-error");

  function placeOf(pointer) {
    const name = pointer.split("/")[1];
    return { name, place: places.find((one) => one.dataset.errorOf.split(" ").includes(name)) };
  }

  function clear() {
    general.hidden = true;
    for (const place of places) {
      place.hidden = true;
      for (const name of place.dataset.errorOf.split(" ")) mark(document.getElementById(name), null);
    }
  }

  /** True when there is a place for it that can be seen. */
  function showAt({ pointer, detail }) {
    const { name, place } = placeOf(pointer);
    if (!place) return false;
    place.textContent = place.hidden ? detail : `${place.textContent} ${detail}`;
    place.hidden = false;
    const fold = place.closest("details");
    if (fold) fold.open = true;
    mark(document.getElementById(name), place);
    return place.offsetParent !== null;
  }

  function showProblem(problem) {
    const missed = problem.errors.filter((error) => !showAt(error));
    if (problem.errors.length && !missed.length) {
      focusFirst();
      return;
    }
    const again = problem.retryAfterS ? ` It may work in ${duration(problem.retryAfterS)}.` : "";
    const details = missed.map(({ pointer, detail }) => `${pointer.slice(1)}: ${detail}`).join(" ");
    general.textContent = `${problem.title}. ${details || problem.message}${again}`;
    general.hidden = false;
  }

  function focusFirst() {
    const first = document.querySelector('[aria-invalid="true"]');
    first?.focus();
  }

  return {
    clear,
    show(error) {
      if (error instanceof Problem) return showProblem(error);
      general.textContent = error.message;
      general.hidden = false;
    },
  };
}

function mark(input, place) {
  if (!input?.matches("input, select, textarea, canvas")) return;
  if (place) {
    input.setAttribute("aria-invalid", "true");
    input.setAttribute("aria-describedby", [input.getAttribute("aria-describedby"), place.id].filter(Boolean).join(" "));
  } else if (input.hasAttribute("aria-invalid")) {
    const others = (input.getAttribute("aria-describedby") ?? "").split(" ").filter((id) => !id.endsWith("-error"));
    input.removeAttribute("aria-invalid");
    if (others.length) input.setAttribute("aria-describedby", others.join(" "));
    else input.removeAttribute("aria-describedby");
  }
}
