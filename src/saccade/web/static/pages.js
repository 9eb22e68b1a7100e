// Every page: its name in the address, its title, and the module that shows it.
// A module exports  async function show(root, context)
//   root     an empty element
//   context  {query: URLSearchParams, signal: aborted when the page is left, go(page, query)}

export const PAGES = [
  { id: "explorer", title: "Attention", load: () => import("./explorer.js") },
  { id: "volumes", title: "Volumes", load: () => import("./volumes.js") },
  { id: "slides", title: "Slides", load: () => import("./slides.js") },
  { id: "words", title: "Sentences", load: () => import("./words.js") },
  { id: "atlas", title: "Map", load: () => import("./atlas.js") },
  { id: "runs", title: "Runs", load: () => import("./runs.js") },
];
