// The state of the attention page as an address, and back. The image is in its run, was opened from a file, or no longer
// exists, which is reported.

import { json } from "./server_api.js";
import { A_PAGE } from "./image_chooser.js";

// The initial choice: {image, run, start}, {image, held} for an image of no listed run, or {lost}: the reason.
export async function firstImage(query, runs, signal) {
  const image = query.get("image");
  if (!image) return { run: runs.find(({ id }) => id === query.get("run"))?.id };
  try {
    const found = await json(`images/${encodeURIComponent(image)}`, {}, signal);
    const listed = runs.some((run) => run.id === found.run);
    return listed ? { image, run: found.run, start: found.index - (found.index % A_PAGE) } : { image, held: found };
  } catch (error) {
    if (error.status !== 404) throw error;
    const run = runs.find(({ id }) => id === query.get("run"))?.id;
    return { run, lost: new Error(query.has("upload")
      ? "The picture of this address was opened from a file. Such pictures stay in the server's memory, and it no longer has this one: open the file again, or choose another."
      : "The picture of this address is not known here: addresses hold while the server runs. Choose a picture.") };
  }
}

export function addressOf({ sides, image, layer, head, kind, view, asked }) {
  const [a, b] = sides;
  const words = { image: image.id, run: image.run ?? "", start: image.start ?? 0, a: a.model, layer, head, kind };
  if (image.upload) words.upload = 1;
  if (b.model) words.b = b.model;
  const { keep, smooth, colour, stretch, same, size } = view;
  if (asked) words.asked = [asked.y, asked.x].map((value) => value.toFixed(4)).join(",");
  if (keep < 1) words.keep = keep;
  if (size) words.size = size;
  for (const [name, on] of Object.entries({ smooth, colour, stretch, own: !same })) if (on) words[name] = 1;
  for (const [name, on] of [["as", a.shuffle], ["ap", !a.positions], ["bs", b.model && b.shuffle], ["bp", b.model && !b.positions]]) {
    if (on) words[name] = 1;
  }
  return new URLSearchParams(words);
}
