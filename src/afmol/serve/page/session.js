// A session file: the stack, the molecule with its history, and the settings, as one JSON.

const FORMAT = "afmol-session/1";

export function packed(state) {
  const bytes = new Uint8Array(state.stack.data.buffer);
  let text = "";
  for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
  const { data, ...stack } = state.stack;
  return JSON.stringify({ format: FORMAT, ...state, stack: { ...stack, data: btoa(text) } });
}

/** Throws an Error, for people, about a file that is none. */
export function unpacked(text) {
  try {
    const state = JSON.parse(text);
    if (state.format !== FORMAT) throw new Error();
    const bytes = Uint8Array.from(atob(state.stack.data), (c) => c.charCodeAt(0));
    const data = new Float32Array(bytes.buffer);
    if (data.length !== state.stack.shape.reduce((a, b) => a * b, 1) || !state.past || !state.future) throw new Error();
    if (state.molecule && !(state.molecule.atoms && state.molecule.bonds)) throw new Error();
    return { ...state, stack: { ...state.stack, data } };
  } catch {
    throw new Error("This is no session of afmol, or it is damaged.");
  }
}

export function download(content, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content]));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
