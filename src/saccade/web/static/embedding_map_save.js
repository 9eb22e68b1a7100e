// The map as a file: PNG and SVG with its legend.

import { escaped } from "./files.js";
import { SHAPES } from "./scatter.js";

const LINE = 22, HEAD = 40, FOOT = 30, SIDE = 240;

function key(legend, x, y) {
  return legend.map(({ look, text }, n) =>
    `<use href="#s-${look.shape}" transform="translate(${x} ${y + n * LINE}) scale(5.5)" fill="rgb(${look.rgb})"/>` +
    `<text x="${x + 14}" y="${y + n * LINE + 4.5}" font-size="13">${escaped(text)}</text>`).join("");
}

// what: {scatter, legend: [{look, text}], title, foot, ground, ink}
export function drawing({ scatter, legend, title, foot, ground, ink, soft }) {
  const { width, height } = scatter, wide = width + SIDE, high = Math.max(height, legend.length * LINE + 20) + HEAD + FOOT;
  const radius = scatter.radius.toFixed(2), parts = [];
  for (let n = 0; n < scatter.count; n++) {
    const i = scatter.order[n];
    if (!scatter.inView(i)) continue;
    const [x, y] = scatter.toScreen(i), look = scatter.looks[scatter.codes[i]];
    const faint = scatter.chosen && !scatter.chosen[i] ? ' opacity=".22"' : "";
    parts.push(`<use href="#s-${look.shape}" transform="translate(${x.toFixed(1)} ${(y + HEAD).toFixed(1)}) scale(${radius})" ` +
      `fill="rgb(${look.rgb})"${faint}/>`);
  }
  const shapes = Object.entries(SHAPES).map(([name, path]) => `<path id="s-${name}" d="${path}" fill-rule="evenodd"/>`).join("");
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${wide} ${high}" width="${wide}" height="${high}" ` +
    `font-family="system-ui, sans-serif" fill="${ink}"><title>${escaped(title)}</title><defs>${shapes}` +
    `<clipPath id="frame"><rect y="${HEAD}" width="${width}" height="${height}"/></clipPath></defs>` +
    `<rect width="100%" height="100%" fill="${ground}"/><text x="12" y="26" font-size="16" font-weight="600">${escaped(title)}</text>` +
    `<g clip-path="url(#frame)">${parts.join("")}</g>${key(legend, width + 16, HEAD + 16)}` +
    `<text x="12" y="${high - 10}" font-size="12" fill="${soft}">${escaped(foot)}</text></svg>`;
}

// The pixels of the screen, with title and legend beside them.
export function picture({ scatter, legend, title, foot, ground, ink, soft }) {
  const { dots, width, height } = scatter, wide = width + SIDE, high = Math.max(height, legend.length * LINE + 20) + HEAD + FOOT;
  const canvas = document.createElement("canvas"), context = canvas.getContext("2d");
  canvas.width = Math.round(wide * dots);
  canvas.height = Math.round(high * dots);
  context.scale(dots, dots);
  context.fillStyle = ground;
  context.fillRect(0, 0, wide, high);
  context.drawImage(scatter.canvas, 0, HEAD, width, height);
  const write = (text, x, y, font, colour) => { context.font = `${font} system-ui, sans-serif`; context.fillStyle = colour; context.fillText(text, x, y); };
  write(title, 12, 26, "600 16px", ink);
  write(foot, 12, high - 10, "12px", soft);
  legend.forEach(({ look, text }, n) => {
    context.save();
    context.translate(width + 16, HEAD + 16 + n * LINE);
    context.scale(5.5, 5.5);
    context.fillStyle = `rgb(${look.rgb})`;
    context.fill(new Path2D(SHAPES[look.shape]), "evenodd");
    context.restore();
    write(text, width + 30, HEAD + 16 + n * LINE + 4.5, "13px", ink);
  });
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}
