/** Pictures that are dropped on the page or pasted into it. */

import { byId } from "./dom.js";

/** take(file, place): place is "source" for one that was dropped on the field of the picture to start from. */
export function startDropping(take) {
  const target = byId("drop-target");
  let depth = 0;

  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");

  function enter(event, by) {
    if (!hasFiles(event)) return;
    event.preventDefault();
    depth += by;
    target.classList.toggle("open", depth > 0);
  }

  document.addEventListener("dragenter", (event) => enter(event, 1));
  document.addEventListener("dragleave", (event) => enter(event, -1));
  document.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    depth = 0;
    target.classList.remove("open");
    const [file] = event.dataTransfer.files;
    if (file) take(file, byId("source").contains(event.target) ? "source" : "page");
  });
  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find(({ type }) => type.startsWith("image/"));
    if (file) take(file, "page");
  });
}
