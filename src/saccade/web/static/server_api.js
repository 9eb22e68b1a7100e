// Requests to the server. Errors have the messages of the command line. embedded_api.js replaces it without a server.

export const live = true;

export class ServerError extends Error {
  constructor(status, said) {
    super(said.what ?? `the server answered ${status}`);
    this.status = status;
    this.said = said;
  }
}

async function checked(response) {
  if (response.ok) return response;
  let said = {};
  try {
    const body = await response.json();
    said = body.what ? body : { what: typeof body.detail === "string" ? body.detail : undefined };
  } catch { /* no JSON: the status must do */ }
  throw new ServerError(response.status, said);
}

function address(path, query) {
  const known = Object.entries(query ?? {}).filter(([, value]) => value !== undefined && value !== null);
  return `/api/${path}${known.length ? `?${new URLSearchParams(known)}` : ""}`;
}

export async function json(path, query, signal) {
  return (await checked(await fetch(address(path, query), { signal }))).json();
}

// Numbers without a text form: float32, little-endian.
export async function floats(path, query, signal) {
  return new Float32Array(await (await checked(await fetch(address(path, query), { signal }))).arrayBuffer());
}

export async function blob(path, query, signal) {
  return (await checked(await fetch(address(path, query), { signal }))).blob();
}

export async function post(path, value, signal) {
  const body = JSON.stringify(value);
  const headers = { "content-type": "application/json" };
  return (await checked(await fetch(`/api/${path}`, { method: "POST", headers, body, signal }))).json();
}

// A file is sent as raw bytes, its name in a header.
export async function upload(file, signal) {
  const headers = { "content-type": "application/octet-stream", "x-name": encodeURIComponent(file.name) };
  try {
    return (await checked(await fetch("/api/uploads", { method: "POST", headers, body: file, signal }))).json();
  } catch (error) {
    if (error.status === 413) error.message = `${file.name}: ${error.message}`;
    throw error;
  }
}

export function link(path, query) {
  return address(path, query);
}
