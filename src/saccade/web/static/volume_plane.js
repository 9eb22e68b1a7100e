// One plane of a cube of voxels with a map over its patches, and lines where the other two planes cut it.
//
// Axes of the cube are z, y, x: x grows to the patient's left, y to the back, z to the head. So an axial plane lies as a
// radiologist expects it, and the two others have the head on top.

import { el } from "./dom.js";
import { drawMap, mapPixels } from "./patch_maps.js";

export const PLANES = [
  { name: "Axial", normal: 0, down: 1, across: 2, flip: false },
  { name: "Coronal", normal: 1, down: 0, across: 2, flip: true },
  { name: "Sagittal", normal: 2, down: 0, across: 1, flip: true },
];
const SIDE = 384;

export class Plane {
  // events: {pick(voxel), turn(normal, by)}
  constructor(plane, events) {
    Object.assign(this, plane);
    this.canvas = el("canvas", { class: "map", tabindex: "0", role: "img", "aria-label": plane.label ?? `${plane.name} plane`, width: SIDE, height: SIDE });
    this.caption = el("figcaption", null, plane.name);
    this.node = el("figure", { class: "panel plane" }, this.caption, this.canvas);
    this.canvas.addEventListener("click", (event) => events.pick(this.voxelUnder(event)));
    this.canvas.addEventListener("wheel", (event) => { event.preventDefault(); events.turn(this.normal, Math.sign(event.deltaY)); }, { passive: false });
  }

  // The voxel under the pointer; along the normal the one that is shown.
  voxelUnder(event) {
    const box = this.canvas.getBoundingClientRect(), voxel = [...this.at];
    const down = (event.clientY - box.top) / box.height, across = (event.clientX - box.left) / box.width;
    const clamp = (value, length) => Math.min(length - 1, Math.max(0, Math.floor(value * length)));
    voxel[this.down] = clamp(this.flip ? 1 - down : down, this.size[this.down]);
    voxel[this.across] = clamp(across, this.size[this.across]);
    return voxel;
  }

  // cube: bytes of size [T, Y, X]; map over grid [T', Y', X']; at: the voxel that all planes go through
  draw({ cube, size, map, grid, at, limits, inside, smooth, asked }) {
    Object.assign(this, { size, at });
    const context = this.canvas.getContext("2d");
    const strides = [size[1] * size[2], size[2], 1];
    const [rows, columns] = [size[this.down], size[this.across]];
    const grey = new Uint8ClampedArray(4 * rows * columns);
    for (let r = 0; r < rows; r++) {
      const row = this.flip ? rows - 1 - r : r;
      for (let c = 0; c < columns; c++) {
        const value = cube[at[this.normal] * strides[this.normal] + row * strides[this.down] + c * strides[this.across]];
        grey.set([value, value, value, 255], 4 * (r * columns + c));
      }
    }
    context.clearRect(0, 0, SIDE, SIDE);
    const whole = { x: 0, y: 0, width: SIDE, height: SIDE };
    drawMap(context, grey, [rows, columns], whole, true);
    const [part, shown] = this.cut(map, grid, size, at, inside);
    drawMap(context, mapPixels(part, limits, shown), [grid[this.down], grid[this.across]], whole, smooth);
    this.cross(context, size, at, grid, asked);
  }

  // The map in this plane, top row first.
  cut(map, grid, size, at, inside) {
    const strides = [grid[1] * grid[2], grid[2], 1];
    const level = Math.floor((at[this.normal] * grid[this.normal]) / size[this.normal]);
    const [rows, columns] = [grid[this.down], grid[this.across]];
    const part = new Float32Array(rows * columns), shown = inside ? new Uint8Array(rows * columns) : null;
    for (let r = 0; r < rows; r++) {
      const row = this.flip ? rows - 1 - r : r;
      for (let c = 0; c < columns; c++) {
        const from = level * strides[this.normal] + row * strides[this.down] + c * strides[this.across];
        part[r * columns + c] = map[from];
        if (shown) shown[r * columns + c] = inside[from];
      }
    }
    return [part, shown];
  }

  cross(context, size, at, grid, asked) {
    const down = (at[this.down] + 0.5) / size[this.down], y = SIDE * (this.flip ? 1 - down : down);
    const x = (SIDE * (at[this.across] + 0.5)) / size[this.across];
    context.lineWidth = 1;
    context.strokeStyle = "#4fd1ff";
    context.setLineDash([4, 4]);
    context.beginPath();
    context.moveTo(0, y); context.lineTo(SIDE, y);
    context.moveTo(x, 0); context.lineTo(x, SIDE);
    context.stroke();
    context.setLineDash([]);
    if (asked === null) return;
    const level = (axis) => Math.floor((at[axis] * grid[axis]) / size[axis]);
    if (asked[this.normal] !== level(this.normal)) return;
    const high = SIDE / grid[this.down], wide = SIDE / grid[this.across];
    const row = this.flip ? grid[this.down] - 1 - asked[this.down] : asked[this.down];
    for (const [style, width] of [["#000000", 4], ["#ffffff", 2]]) {
      context.strokeStyle = style;
      context.lineWidth = width;
      context.strokeRect(asked[this.across] * wide, row * high, wide, high);
    }
  }
}
