// Measured and simulated slices side by side, at one contrast, with their difference.

import { paint, signed, slice } from "./stack.js";

const CONTRAST = 2.5; // standard deviations

/** `both`: measured, then simulated, each slice of zero mean and unit norm over its pixels. */
export function strips(element, both, [nx, ny, nz], slices, correlations, heights) {
  const half = both.length / 2;
  const parts = [both.subarray(0, half), both.subarray(half)].map((data) => ({ data, shape: [nx, ny, nz] }));
  const figures = [];
  for (let k = nz - 1; k >= 0; k--) {
    const [measured, simulated] = parts.map((part) => standardised(slice(part, k)));
    const figure = document.createElement("figure");
    const draw = (values, name, colour) => {
      if (k === nz - 1) figure.append(Object.assign(document.createElement("span"), { textContent: name, className: "row-name" }));
      const canvas = document.createElement("canvas");
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `slice ${slices[k] + 1}, ${name}`);
      paint(canvas, values, nx, ny, [-CONTRAST, CONTRAST], colour);
      figure.append(canvas);
    };
    draw(measured, "measured");
    draw(simulated, "simulated");
    draw(measured.map((v, i) => v - simulated[i]), "difference", signed);
    const caption = document.createElement("figcaption");
    caption.textContent = `${slices[k] + 1}: ${heights[slices[k]].toFixed(2)} Å, correlation ${correlations[k].toFixed(2)}`;
    figure.append(caption);
    figures.push(figure);
  }
  element.replaceChildren(...figures);
}

function standardised(values) {
  const mean = values.reduce((a, b) => a + b, 0) / values.length;
  const deviation = Math.sqrt(values.reduce((a, b) => a + (b - mean) ** 2, 0) / values.length) || 1;
  return values.map((v) => (v - mean) / deviation);
}
