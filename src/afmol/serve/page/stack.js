// Slices of a stack as pictures. data[(ix * ny + iy) * nz + slice], y upward.

export const slice = ({ data, shape: [nx, ny, nz] }, k) => Float32Array.from({ length: nx * ny }, (_, p) => data[p * nz + k]);

/** Values at the percentiles `low` and `high`. */
export function range(values, low, high) {
  const sorted = Float32Array.from(values).sort();
  const at = (percent) => sorted[Math.min(sorted.length - 1, Math.round((percent / 100) * (sorted.length - 1)))];
  return [at(low), at(high)];
}

/** Draws values (x, y) in grey, from black at `low` to white at `high`; `colour` for signed ones about 0. */
export function paint(canvas, values, nx, ny, [low, high], colour) {
  canvas.width = nx;
  canvas.height = ny;
  const picture = new ImageData(nx, ny);
  for (let x = 0; x < nx; x++) {
    for (let y = 0; y < ny; y++) {
      const share = Math.min(1, Math.max(0, (values[x * ny + y] - low) / (high - low || 1)));
      const at = 4 * ((ny - 1 - y) * nx + x);
      picture.data.set(colour ? colour(share) : [255 * share, 255 * share, 255 * share, 255], at);
    }
  }
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

/** Blue below, white at, orange above a half: told apart by colour-blind people too. */
export function signed(share) {
  const t = 2 * Math.abs(share - 0.5);
  const end = share < 0.5 ? [0, 90, 181] : [220, 110, 0];
  return [...end.map((c) => 255 + t * (c - 255)), 255];
}
