/** The size: aspects to choose from, and in words what comes out. */

import { sizeFor, takesPicture } from "./catalogue.js";
import { byId, element } from "./dom.js";

const ASPECTS = [[1, 1], [4, 3], [3, 4], [16, 9], [9, 16]];

/** set(width, height): what to do with a choice; texts, empty for none. */
export function createSize(set) {
  const group = byId("aspects");
  const width = byId("width");
  const height = byId("height");

  byId("swap").addEventListener("click", () => set(height.value, width.value));

  function button(title, chosen, isPressed, shape) {
    const drawn = shape && element("i", { "aria-hidden": "true" });
    if (drawn) drawn.style.aspectRatio = shape.join("/");
    return element(
      "button",
      { type: "button", class: "aspect", "aria-pressed": String(isPressed), onclick: () => set(...chosen) },
      drawn,
      title,
    );
  }

  return {
    /** Shows the aspects of a model, and which of them the fields hold. */
    show(model, task) {
      const isOpen = takesPicture(task);
      const focused = [...group.children].indexOf(document.activeElement);
      const aspects = ASPECTS.map((aspect) => {
        const size = sizeFor(model, aspect);
        const isPressed = Number(width.value) === size.width && Number(height.value) === size.height;
        return button(aspect.join(":"), [String(size.width), String(size.height)], isPressed, aspect);
      });
      const asIs = isOpen && button("As it is", ["", ""], !width.value && !height.value);
      group.replaceChildren(...[asIs, ...aspects].filter(Boolean));
      group.children[focused]?.focus();
      width.placeholder = height.placeholder = isOpen ? "auto" : "";
      const { size_multiple, min_size, max_size } = model.limits;
      byId("size-hint").textContent = `Multiples of ${size_multiple}, ${min_size} to ${max_size} a side.`;
    },
  };
}
