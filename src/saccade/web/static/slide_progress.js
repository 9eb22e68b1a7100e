// Waiting for the features of all tiles of a slide.

import { json, post } from "./server_api.js";

const POLL = 500;

// Starts the computation for a slide and waits for it; `working` receives the progress. Throws its error.
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

// Unreadable tiles are listed beside the slide and blank in the heatmap.
export function unreadableNote(count, name) {
  if (!count) return "";
  return count === 1 ? ` One tile cannot be read in ${name}: it is left blank, with stripes in the picture.`
    : ` ${count.toLocaleString("en")} tiles cannot be read in ${name}: they are left blank, with stripes in the picture.`;
}
