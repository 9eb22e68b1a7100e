// Two maps of one image, in numbers and words.

import { el } from "./dom.js";
import { compact, correlation, percent } from "./patch_maps.js";

// Two maps of one size, compared patch by patch of the image; nothing for a single map.
// asked: [{look, kind}, ...]
export function difference(asked, maps, sameModel) {
  const [a, b] = asked;
  if (!b || a.look.grid.join() !== b.look.grid.join()) return [];
  const ordered = asked.map(({ look }, i) => maps[i].map((_, patch) => maps[i][look.placeOf(patch)]));
  let most = 0;
  for (let i = 0; i < ordered[0].length; i++) most = Math.max(most, Math.abs(ordered[0][i] - ordered[1][i]));
  const same = a.kind !== "similarity" && b.kind !== "similarity";
  return ["Patch by patch, put back in order, A and B differ by at most ",
    el("strong", { "data-most": most }, same ? percent(most) : compact(most)), "; their correlation is ",
    el("strong", null, compact(correlation(ordered[0], ordered[1]))), ".",
    most < 1e-5 && (a.look.order || b.look.order) ? " The map is the same up to the order: this network does not use patch positions." : "",
    most >= 1e-5 && Boolean(a.look.order) !== Boolean(b.look.order) && sameModel
      ? (a.look.kind === "attention" ? " The order of the patches matters to this network: it uses their positions."
        : " The order of the patches matters to this network: its layers mix neighbouring patches.") : ""];
}
