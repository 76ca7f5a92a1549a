/** Server-sent events out of a fetched stream. `EventSource` would do, if it could send a key. */

/** Yields `{event, data}` of each message, `data` as text. */
export async function* serverSentEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const messages = (rest + value).split("\n\n");
      rest = messages.pop();
      yield* messages.map(readMessage).filter((message) => message.data);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function readMessage(text) {
  const message = { event: "message", data: "" };
  for (const line of text.split("\n")) {
    const [, name, value] = /^(\w*):? ?(.*)$/.exec(line) ?? [];
    if (name === "event") message.event = value;
    if (name === "data") message.data += value;
  }
  return message;
}
