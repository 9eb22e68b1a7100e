// Numbers that lie inside the page, in the place of a server: see reporting/standalone.py and viz/quantised.py.

export function block() {
  return JSON.parse(document.getElementById("data").textContent);
}

export function bytes(text) {
  const letters = atob(text), found = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) found[i] = letters.charCodeAt(i);
  return found;
}

async function inflated(text) {
  const stream = new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// Weights of one byte each: the logarithm of their share of the row's largest, 254 steps down to `floor`.
export async function weights({ codes, largest, width, floor }) {
  const small = await inflated(codes), most = new Float32Array((await inflated(largest)).buffer);
  const step = -Math.log(floor) / 254;
  const table = Float64Array.from({ length: 256 }, (_, code) => (code ? Math.exp((code - 255) * step) : 0));
  const found = new Float32Array(small.length);
  for (let i = 0; i < small.length; i++) found[i] = table[small[i]] * most[Math.floor(i / width)];
  return found;
}
