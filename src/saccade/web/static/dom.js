// All elements are made here. Children become text nodes, so that a name from the data cannot become markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(node.style, value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  add(node, children);
  return node;
}

function add(node, children) {
  for (const child of children.flat(Infinity)) {
    if (child === undefined || child === null || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

// el("button", {type: "button", onclick: f}, "Open")
export function el(name, attributes, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function svg(name, attributes, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

export function replace(node, ...children) {
  node.replaceChildren();
  add(node, children);
  return node;
}

// Redraws a part; the element with the keyboard focus, identified by its name, gets it back.
export function redraw(root, draw) {
  const name = (node) => `${node.tagName} ${node.getAttribute("aria-label") ?? node.labels?.[0]?.textContent ?? node.textContent}`;
  const held = root.contains(document.activeElement) ? name(document.activeElement) : null;
  const alike = () => [...root.querySelectorAll("a, button, input, select, [tabindex]")].filter((node) => name(node) === held);
  const number = alike().indexOf(document.activeElement);
  draw();
  if (held !== null) alike()[number]?.focus();
}

// Announced by screen readers, which cannot see changes on a canvas.
export function say(text) {
  const place = document.getElementById("said");
  if (place) place.textContent = text;
}

// A control with a visible label, not only a placeholder.
export function field(label, control, hint) {
  const labelled = control.matches("input, select, textarea, button") ? control : control.querySelector("input, select, textarea");
  const id = labelled.id || `f${(field.count = (field.count ?? 0) + 1)}`;
  labelled.id = id;
  return el("div", { class: "field" }, el("label", { for: id }, label), control, hint ? el("small", null, hint) : null);
}

export function select(options, chosen, onchange) {
  const node = el("select", { onchange: () => onchange(node.value) });
  add(node, options.map(({ value, text }) => el("option", { value, selected: value === chosen }, text)));
  return node;
}
