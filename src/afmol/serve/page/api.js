// Jobs of the server: a line of JSON and bytes there, lines of JSON and bytes back.

export async function info() {
  return (await fetch("stacks")).json();
}

/** Does a job; `say` gets what is being done. Throws an Error whose message is for people. */
export async function job(name, request, payload, say, signal) {
  const head = new TextEncoder().encode(JSON.stringify({ job: name, ...request }) + "\n");
  const headers = { "Content-Type": "application/octet-stream" };
  let response;
  try {
    response = await fetch("job", { method: "POST", headers, body: new Blob([head, payload ?? new Uint8Array()]), signal });
  } catch (error) {
    if (signal?.aborted) throw new Error("Cancelled.");
    throw new Error("afmol does not answer; is it still running where it was started?");
  }
  if (!response.ok) throw new Error(await response.text());
  const reader = response.body.getReader();
  let rest = new Uint8Array();
  const more = async () => {
    const { value, done } = await reader.read().catch(() => ({ done: true }));
    if (done) throw new Error(signal?.aborted ? "Cancelled." : "afmol stopped in the middle of its answer.");
    const both = new Uint8Array(rest.length + value.length);
    both.set(rest);
    both.set(value, rest.length);
    rest = both;
  };
  for (;;) {
    let end;
    while ((end = rest.indexOf(10)) < 0) await more();
    const line = JSON.parse(new TextDecoder().decode(rest.subarray(0, end)));
    rest = rest.slice(end + 1);
    if (line.say) say?.(line.say);
    if (line.mistake) throw new Error(line.mistake);
    if (line.done) {
      while (rest.length < line.bytes) await more();
      return [line.done, rest.slice(0, line.bytes)];
    }
  }
}
