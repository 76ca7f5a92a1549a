/** Making and finding elements. Texts stay texts: nothing here reads HTML. */

const SVG = "http://www.w3.org/2000/svg";

/** An element; `on...` attributes are listeners, false and null ones are left out, true ones are empty. */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat().filter((child) => child != null && child !== false));
  return node;
}

/** An icon of the page's own set (the symbols at the end of index.html). */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`The page has no element ${id}. This is a bug.`);
  return found;
}

/** The one element below `root` for a selector. */
export function within(root, selector) {
  const found = root.querySelector(selector);
  if (!found) throw new Error(`There is no ${selector}. This is a bug.`);
  return found;
}
