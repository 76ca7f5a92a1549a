/** Lists of what the server has beside its models: LoRAs by weight, ControlNets by weight and picture. */

import { byId, element, icon } from "./dom.js";

/** title: of one of them. takesPicture: each wants a picture of its own. */
export function createChoices(listId, addId, { title, takesPicture }) {
  const list = byId(listId);
  let offered = [];
  let chosen = [];

  function render() {
    list.replaceChildren(...chosen.map(row));
    byId(addId).disabled = offered.length === 0;
  }

  function change(work) {
    work();
    render();
  }

  function row(choice, index) {
    const name = element(
      "select",
      { "aria-label": `${title} ${index + 1}`, onchange: (event) => change(() => (choice.name = event.target.value)) },
      offered.map((one) => element("option", { value: one, selected: one === choice.name }, one)),
    );
    const weight = element("input", {
      type: "number", step: "0.05", value: choice.weight, "aria-label": `Weight of ${title} ${index + 1}`,
      onchange: (event) => change(() => (choice.weight = Number(event.target.value))),
    });
    const remove = element(
      "button",
      { type: "button", class: "quiet square", "aria-label": `Remove ${title} ${index + 1}`,
        onclick: () => change(() => chosen.splice(index, 1)) },
      icon("close"),
    );
    return element("li", {}, name, weight, takesPicture && pictureInput(choice, index), remove);
  }

  function pictureInput(choice, index) {
    return element("input", {
      type: "file", accept: "image/png,image/jpeg,image/webp", "aria-label": `Picture of ${title} ${index + 1}`,
      onchange: async (event) => (choice.image = await asDataUrl(event.target.files[0])),
    });
  }

  byId(addId).addEventListener("click", () => {
    change(() => chosen.push({ name: offered[0], weight: 1 }));
    list.lastElementChild.firstElementChild.focus();
  });
  return {
    /** The names of a model; what was chosen and is not among them is dropped. */
    offer(names) {
      offered = names;
      chosen = chosen.filter(({ name }) => names.includes(name));
      render();
    },
    get chosen() {
      return chosen.map((choice) => ({ ...choice }));
    },
    fill(choices) {
      chosen = (choices ?? []).filter(({ name }) => offered.includes(name)).map((choice) => ({ ...choice }));
      render();
    },
  };
}

function asDataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(file);
  });
}
