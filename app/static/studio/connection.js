/** Whether the server is reached, in words; asks again until it is. */

import { pause } from "./api.js";
import { byId } from "./dom.js";

const ASK_EVERY_MS = 2000;

/** onReturn(): the server is back after it was lost. */
export function createConnection(onReturn) {
  let isLost = false;

  function note(isReached) {
    if (isLost === !isReached) return;
    isLost = !isReached;
    byId("connection").textContent = isLost ? "No connection to the server. Trying again …" : "";
    if (isLost) askAgain();
    else onReturn();
  }

  async function askAgain() {
    while (isLost) {
      await pause(ASK_EVERY_MS);
      const answer = await fetch("/healthz").catch(() => null);
      if (answer) note(true);
    }
  }

  return { note };
}
