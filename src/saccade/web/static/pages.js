// Every page: its name in the address, its title, and the module that shows it.
// A module exports  async function show(root, context)
//   root     an empty element
//   context  {query: URLSearchParams, signal: aborted when the page is left, go(page, query)}

export const PAGES = [
  { id: "attention", title: "Attention", load: () => import("./attention.js") },
  { id: "volumes", title: "Volumes", load: () => import("./volumes.js") },
  { id: "slides", title: "Slides", load: () => import("./slides.js") },
  { id: "sentences", title: "Sentences", load: () => import("./sentences.js") },
  { id: "map", title: "Map", load: () => import("./embedding_map.js") },
  { id: "runs", title: "Runs", load: () => import("./runs.js") },
];
