// Numbers stored inside the page instead of a server: see reporting/standalone.py and viz/quantised.py.

export function block() {
  return JSON.parse(document.getElementById("data").textContent);
}

export function bytes(text) {
  const letters = atob(text), found = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) found[i] = letters.charCodeAt(i);
  return found;
}

export async function inflated(text) {
  const stream = new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

const numbers = async (text) => new Float32Array((await inflated(text)).buffer);

// Rows of one layer, decompressed, one byte per weight.
export async function unpacked({ codes, largest, smallest }) {
  return { codes: await inflated(codes), largest: await numbers(largest), smallest: await numbers(smallest) };
}

// The weights of row `from` (counted over all heads) into `values` at `to`: 254 even steps of the logarithm between the
// row's smallest and largest, and 0.
export function dequantiseRow({ codes, largest, smallest }, from, width, values, to) {
  const low = smallest[from], step = Math.log(largest[from] / low) / 254;
  for (let i = 0; i < width; i++) {
    const code = codes[from * width + i];
    values[to + i] = code ? low * Math.exp((code - 1) * step) : 0;
  }
}

export async function weights(packed, width) {
  const layer = await unpacked(packed), values = new Float32Array(layer.codes.length);
  for (let row = 0; row < values.length / width; row++) dequantiseRow(layer, row, width, values, row * width);
  return values;
}
