/** Before and after in one frame, with a slider between them. */

import { element } from "./dom.js";

/** The element; the two are images of the same aspect. */
export function comparison(before, after) {
  const slider = element("input", {
    type: "range", min: "0", max: "100", value: "50", step: "0.5", class: "compare-slider",
    "aria-label": "Before and after: how much of the picture before is shown",
  });
  before.classList.add("compare-before");
  const frame = element(
    "div",
    { class: "compare" },
    after,
    before,
    element("span", { class: "compare-word compare-word-before", "aria-hidden": "true" }, "Before"),
    element("span", { class: "compare-word compare-word-after", "aria-hidden": "true" }, "After"),
    element("i", { class: "compare-line", "aria-hidden": "true" }),
    slider,
  );
  const show = () => {
    frame.style.setProperty("--split", `${slider.value}%`);
    slider.setAttribute("aria-valuetext", `${Math.round(slider.value)} percent before`);
  };
  slider.addEventListener("input", show);
  show();
  return frame;
}
