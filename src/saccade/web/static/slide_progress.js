// Waiting for the server to look at all tiles of a slide.

import { json, post } from "./server_api.js";

const POLL = 500;

// Asks the server to look at a slide and waits until it has; `working` hears how far it is. Throws what went wrong.
export async function waitForSlide(path, query, signal, working) {
  const asked = new URLSearchParams(query).toString();
  let state = await post(`${path}${asked ? `?${asked}` : ""}`, {}, signal);
  while (!state.ready && !state.error) {
    working(`Computing tile features: ${state.done.toLocaleString("en")} of ${state.total.toLocaleString("en")}`);
    await new Promise((done) => setTimeout(done, POLL));
    if (signal.aborted) return;
    state = await json(path, query, signal);
  }
  if (state.error) throw new Error(state.error);
}

// Tiles that the file could not give are named where the slide is shown; they are blank in the heatmap.
export function unreadableNote(count, name) {
  if (!count) return "";
  return count === 1 ? ` One tile cannot be read in ${name}: it is left blank, with stripes in the picture.`
    : ` ${count.toLocaleString("en")} tiles cannot be read in ${name}: they are left blank, with stripes in the picture.`;
}
