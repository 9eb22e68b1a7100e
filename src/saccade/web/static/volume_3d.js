// The 3D view: NiiVue (BSD-2) with the volume and, over it, the map of the asking patch. Loaded only when it is opened.

import { range } from "./patch_maps.js";

// NiiVue reads files, so it is given one: a NIfTI-1 header and numbers, x fastest. Voxels are cubes; the grid of patches
// covers the same space with larger ones.
function nifti(values, [z, y, x], voxel, kind) {
  const header = new DataView(new ArrayBuffer(352));
  header.setInt32(0, 348, true);
  [3, x, y, z, 1, 1, 1, 1].forEach((length, i) => header.setInt16(40 + 2 * i, length, true));
  header.setInt16(70, kind === "float" ? 16 : 2, true);
  header.setInt16(72, kind === "float" ? 32 : 8, true);
  [1, ...voxel].forEach((size, i) => header.setFloat32(76 + 4 * i, size, true));
  header.setFloat32(108, 352, true);
  header.setFloat32(112, 1, true);
  header.setInt16(254, 1, true);
  // x grows to the left and y to the back, in NIfTI to the right and to the front.
  const first = [x, y, z].map((length, i) => (voxel[i] * length) / 2 - voxel[i] / 2);
  [[-voxel[0], 0, 0, first[0]], [0, -voxel[1], 0, first[1]], [0, 0, voxel[2], -first[2]]].forEach((row, r) =>
    row.forEach((value, c) => header.setFloat32(280 + 16 * r + 4 * c, value, true)));
  [110, 43, 49, 0].forEach((byte, i) => header.setUint8(344 + i, byte));
  const file = new Uint8Array(352 + values.byteLength);
  file.set(new Uint8Array(header.buffer));
  file.set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength), 352);
  return file.buffer;
}

let able = null; // whether the browser has WebGL 2: the test needs a context, and their number is limited

export class Volume3D {
  // On a canvas of its own; `close` lets go of it. Throws where the browser has no WebGL 2.
  static async open(canvas, cube, size, grid) {
    able ??= Boolean(document.createElement("canvas").getContext("webgl2"));
    if (!able) throw new Error("This browser has no WebGL 2: the planes remain.");
    const { Niivue } = await import("./vendor/niivue/niivue.js");
    const solid = new Volume3D();
    const view = new Niivue({ dragAndDropEnabled: false, loadingText: "", backColor: [0.04, 0.05, 0.06, 1], show3Dcrosshair: false,
      isOrientCube: true, logLevel: "error" });
    await view.attachToCanvas(canvas);
    view.setSliceType(view.sliceTypeRender);
    await view.loadFromArrayBuffer(nifti(cube, size, [1, 1, 1], "byte"), "volume.nii");
    const voxel = [2, 1, 0].map((axis) => size[axis] / grid[axis]);
    await view.loadFromArrayBuffer(nifti(new Float32Array(grid[0] * grid[1] * grid[2]).fill(0), grid, voxel, "float"), "map.nii");
    view.setColormap(view.volumes[1].id, "inferno");
    view.setOpacity(1, 0.7);
    return Object.assign(solid, { view, canvas });
  }

  // Releases listeners, observers and GPU memory: NiiVue would keep every volume ever shown.
  close() {
    this.view.cleanup();
    this.view.gl?.getExtension("WEBGL_lose_context")?.loseContext();
  }

  // Only the tenth of the patches that has most (or the kept share, where that is less), so that the volume is seen between.
  show(map, inside) {
    const overlay = this.view.volumes[1], { low, high } = range(map);
    const least = Float32Array.from(map).sort()[Math.floor(0.9 * (map.length - 1))];
    overlay.img.set(map.map((value, i) => (value < least || (inside && !inside[i]) ? 0 : 0.2 + (0.8 * (value - low)) / (high - low || 1))));
    overlay.cal_min = 0.05;
    overlay.cal_max = 1;
    this.view.updateGLVolume();
  }
}
