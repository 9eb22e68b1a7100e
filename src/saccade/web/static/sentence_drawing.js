// A sentence and who looks at whom, drawn: the words in lines with arcs from the one that asks, and the matrix.
// Only layout and drawing; numbers and clicks are sentence_view.js.

import { rgb, widthOf } from "./painter.js";
import { directionOf, fromTheLeft } from "./text_direction.js";

const SIZE = 15, SPACE = 7, PAD = 4, MOST_LABELS = 48, THIN = 0.6, THICK = 7;
export const DRAWN_FROM = 0.02; // of the largest: thinner arcs would be dust

// 0.1234 to "12.3 %"; what is not zero never reads as zero.
export function percent(share) {
  if (share > 0 && share < 0.0005) return "< 0.1 %";
  return `${(100 * share).toFixed(1)} %`;
}

// Attention between tokens (count x count) as attention between words: to a word the sum over its tokens, from it the mean.
export function merge(weights, count, words) {
  const size = words.length, found = new Float32Array(size * size);
  words.forEach((asks, row) => {
    for (let i = asks.first; i <= asks.last; i++) {
      words.forEach((answers, column) => {
        let sum = 0;
        for (let j = answers.first; j <= answers.last; j++) sum += weights[i * count + j];
        found[row * size + column] += sum / (asks.last - asks.first + 1);
      });
    }
  });
  return found;
}

// Rows and columns of a matrix (size x size) that are shown.
export function part(weights, size, shown) {
  const found = new Float32Array(shown.length ** 2);
  shown.forEach((i, row) => shown.forEach((j, column) => { found[row * shown.length + column] = weights[i * size + j]; }));
  return found;
}

export function largest(values) {
  let most = 1e-12;
  for (const value of values) if (value > most) most = value;
  return most;
}

// --- words in lines ---------------------------------------------------------------------------------

// Positions of all words: {boxes: [{x, y, wide}], tall, room}. Few lines have high arcs, many have low ones. Words run in the
// order of reading; direction: of the text.
export function layoutWords(names, wide, direction) {
  const widths = names.map((name) => widthOf(name, SIZE));
  const total = widths.reduce((sum, w) => sum + w + SPACE, 0);
  const few = total < 2.5 * wide;
  const above = few ? 96 : 26, below = few ? 26 : 8;
  const rooms = widths.map((one) => Math.max(one, few ? 34 : 8)), lines = [[]];
  let x = PAD;
  rooms.forEach((room, i) => {
    if (x > PAD && x + room + PAD > wide) { x = PAD; lines.push([]); }
    lines.at(-1).push(i);
    x += room + SPACE;
  });
  const boxes = new Array(names.length), step = above + SIZE + below;
  lines.forEach((line, number) => {
    const long = line.reduce((sum, i) => sum + rooms[i] + SPACE, -SPACE);
    let left = direction === "rtl" ? Math.max(PAD, wide - PAD - long) : PAD;
    for (const place of fromTheLeft(line.map((i) => directionOf(names[i])), direction)) {
      const i = line[place];
      boxes[i] = { x: left, y: above + SIZE + number * step, wide: rooms[i] };
      left += rooms[i] + SPACE;
    }
  });
  return { boxes, tall: (lines.length - 1) * step + above + SIZE + below + 4, above, few };
}

export function wordAt(layout, x, y) {
  return layout.boxes.findIndex((box) =>
    x >= box.x - SPACE / 2 && x < box.x + box.wide + SPACE / 2 && y >= box.y - SIZE - 6 && y < box.y + (layout.few ? 24 : 8));
}

// row: shares of every shown word; asks, answers: places among the shown ones, or -1.
export function drawLines(painter, layout, names, row, { asks, answers, colours }) {
  const most = largest(row);
  const { boxes, few } = layout;
  const strongest = [...row.keys()].filter((i) => i !== asks && row[i] >= DRAWN_FROM * most)
    .sort((a, b) => row[b] - row[a]).slice(0, few ? 48 : 16).reverse();
  for (const i of asks < 0 ? [] : strongest) {
    painter.curve(arc(boxes[asks], boxes[i], layout), colours.line, THIN + (THICK - THIN) * (row[i] / most), 0.22 + 0.5 * (row[i] / most));
  }
  boxes.forEach((box, i) => {
    const share = row[i] / most;
    if (asks >= 0 && share > 0.004) painter.rect(box.x - 2, box.y - SIZE, box.wide + 4, SIZE + 5, colours.line, 0.42 * share);
    if (i === answers) painter.rect(box.x - 2, box.y - SIZE, box.wide + 4, SIZE + 5, colours.ink, 1, 1.5);
    if (i === asks) painter.rect(box.x - 2, box.y - SIZE, box.wide + 4, SIZE + 5, colours.mark, 1, 2);
    painter.text(box.x + box.wide / 2, box.y, names[i], colours.ink, { size: SIZE, align: "center", direction: directionOf(names[i]) ?? "ltr" });
    if (few && asks >= 0) {
      painter.text(box.x + box.wide / 2, box.y + 19, percent(row[i]).replace(" %", "%"), colours.soft, { size: 10, align: "center" });
    }
  });
}

// In one line an arc over the words, within the room above it (three quarters of the height of its control points). From
// line to line between the sides that face each other: an arc over the first line would have no room there.
function arc(from, to, { above, few }) {
  const left = from.x + from.wide / 2, right = to.x + to.wide / 2, over = (box) => box.y - SIZE - 1, under = (box) => box.y + (few ? 24 : 6);
  if (from.y === to.y) {
    const high = Math.min(above * 1.15, (above - 1.5 - THICK / 2) / 0.75, 20 + Math.abs(right - left) * 0.4);
    return [[left, over(from)], [left, over(from) - high], [right, over(to) - high], [right, over(to)]];
  }
  const up = to.y < from.y, start = up ? over(from) : under(from), end = up ? under(to) : over(to), middle = (start + end) / 2;
  return [[left, start], [left, middle], [right, middle], [right, end]];
}

// --- the matrix -------------------------------------------------------------------------------------

const columnAt = ({ mirrored, count }, i) => (mirrored ? count - 1 - i : i);

// A small canvas of one pixel a cell, columns from the right where the text runs so. Shades go by the square root, so that
// small shares can be told from none.
export function shade(values, size, colours, direction, most = largest(values)) {
  const small = document.createElement("canvas");
  small.width = small.height = Math.max(1, size);
  const to = small.getContext("2d"), pixels = to.createImageData(small.width, small.height);
  const [r, g, b] = rgb(colours.line);
  for (let i = 0; i < values.length; i++) {
    const column = columnAt({ mirrored: direction === "rtl", count: size }, i % size), at = 4 * (i - (i % size) + column);
    pixels.data.set([r, g, b, Math.round(255 * Math.sqrt(Math.max(0, values[i]) / most))], at);
  }
  to.putImageData(pixels, 0, 0);
  return small;
}

// Of a text that runs from the right the columns do, too, and the rows have their words on the right.
export function placeMatrix(names, wide, direction) {
  const count = names.length, labelled = count <= MOST_LABELS;
  const room = labelled ? Math.min(130, Math.max(...names.map((name) => widthOf(name, 12))) + 8) : 0;
  const cell = Math.min(26, (wide - room - 12) / count);
  const head = labelled ? room * 0.87 + 14 : 4;
  const side = cell * count, mirrored = direction === "rtl", left = mirrored ? wide - room - side : room;
  return { left, top: head, cell, side, room, labelled, mirrored, key: Math.max(4, Math.min(left, wide - 262)), tall: head + side + 34, count };
}

export function cellAt(place, x, y) {
  const column = columnAt(place, Math.floor((x - place.left) / place.cell)), row = Math.floor((y - place.top) / place.cell);
  const inside = row >= 0 && column >= 0 && row < place.count && column < place.count;
  return inside ? { row, column } : null;
}

export function drawMatrix(painter, place, names, shades, most, { asks, answers, colours }) {
  const { left, top, cell, side, room, mirrored } = place, x = (column) => left + columnAt(place, column) * cell;
  painter.rect(left, top, side, side, colours.wash);
  painter.cells(left, top, side, side, shades);
  if (place.labelled) {
    const size = Math.max(7, Math.min(12, cell - 1));
    names.forEach((name, i) => {
      const middle = (i + 0.5) * cell + size * 0.36, direction = directionOf(name) ?? "ltr";
      painter.text(mirrored ? left + side + 6 : left - 6, top + middle, clipped(name, size, room - 8), i === asks ? colours.mark : colours.ink,
        { size, align: mirrored ? "left" : "right", direction });
      painter.text(mirrored ? x(i) + cell / 2 - size * 0.36 : left + middle, top - 5, clipped(name, size, room + 8), i === answers ? colours.mark : colours.ink,
        { size, align: mirrored ? "right" : "left", turn: (mirrored ? 1 : -1) * Math.PI / 3, direction });
    });
  }
  if (asks >= 0) painter.rect(left, top + asks * cell, side, cell, colours.mark, 1, cell < 4 ? 1 : 1.5);
  if (answers >= 0) painter.rect(x(answers), top, cell, side, colours.soft, 0.8, 1);
  [1, 0.25, 0.04].forEach((share, i) => {
    const at = place.key + i * 86;
    painter.rect(at, top + side + 12, 14, 14, colours.wash);
    painter.rect(at, top + side + 12, 14, 14, colours.line, Math.sqrt(share));
    painter.text(at + 20, top + side + 24, percent(share * most), colours.soft, { size: 12 });
  });
}

function clipped(name, size, room) {
  if (widthOf(name, size) <= room) return name;
  const letters = [...name];
  while (letters.length > 1 && widthOf(`${letters.join("")}…`, size) > room) letters.pop();
  return `${letters.join("")}…`;
}

// --- every head by itself ---------------------------------------------------------------------------

export function placeHeads(count, wide) {
  const side = 76, gap = 12;
  const across = Math.max(1, Math.min(count, Math.floor((wide + gap) / (side + gap))));
  return { side, gap, across, count, tall: Math.ceil(count / across) * (side + 26) };
}

export function headAt(place, x, y) {
  const column = Math.floor(x / (place.side + place.gap)), row = Math.floor(y / (place.side + 26));
  const head = row * place.across + column;
  return column < place.across && head >= 0 && head < place.count ? head : -1;
}

export function drawHeads(painter, place, shades, { chosen, colours }) {
  shades.forEach((small, head) => {
    const x = (head % place.across) * (place.side + place.gap), y = Math.floor(head / place.across) * (place.side + 26);
    painter.rect(x, y, place.side, place.side, colours.wash);
    painter.cells(x, y, place.side, place.side, small);
    if (head === chosen) painter.rect(x + 1, y + 1, place.side - 2, place.side - 2, colours.mark, 1, 2);
    painter.text(x, y + place.side + 15, `head ${head}`, head === chosen ? colours.mark : colours.soft, { size: 12 });
  });
}
