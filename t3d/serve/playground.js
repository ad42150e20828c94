const form = $("form");
/** What stands for the stop token, which has no text. */
const STOP = "∎";
const sides = ["Left", "Right"].map(makeSide);
let models = new Map();
let running = null;

/** The settings and the place for the answer of one side; names of its fields end in its number. */
function makeSide(title, number) {
  const settings = $("setting").content.cloneNode(true).firstElementChild;
  settings.querySelector("legend").textContent = title;
  const field = {};
  for (const element of settings.querySelectorAll("[name]")) {
    field[element.name] = element;
    element.name += number;
  }
  $("setting").parentElement.append(settings);
  const [heading, numbers, box, readout, map, status] = ["h2", "p", "div", "div", "div", "p"].map((tag) => make(tag));
  heading.textContent = title;
  numbers.className = "soft number";
  numbers.textContent = "not decoded yet";
  Object.assign(box, { className: "text answer", tabIndex: 0, role: "group", ariaLabel: `${title}: answer. Arrow keys tell step and confidence of each token.` });
  Object.assign(readout, { className: "readout", role: "status" });
  map.className = "map";
  Object.assign(status, { className: "status", role: "status" });
  $("sides").append(make("section", { className: "card side" }, heading, numbers, box, readout, map, status));
  return { title, number, field, heading, numbers, box, readout, map, status };
}

/** A request of this server, with a message for people where it is refused. */
async function ask(path, options = {}) {
  const key = $("key").value;
  const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is t3d serve still running?");
  }
  if (response.ok) return response;
  const told = (await response.json().catch(() => null))?.error?.message ?? `The server answered with status ${response.status}.`;
  const wait = response.headers.get("Retry-After");
  throw new Error(wait ? `${told} Try again in ${wait} s.` : told);
}

/** The objects of a stream of server-sent events, up to its end. */
async function* events(response) {
  let rest = "";
  for await (const part of response.body.pipeThrough(new TextDecoderStream())) {
    const parts = (rest + part).split("\n\n");
    rest = parts.pop();
    for (const event of parts) {
      const text = event.replace(/^data: /, "");
      if (text !== "[DONE]") yield JSON.parse(text);
    }
  }
}

/** The setting of a side as the server takes it. */
function setting({ field }) {
  const { value: remasking } = field.remasking;
  const threshold = remasking === "low_confidence_dynamic" && { confidence_threshold: Number(field.confidence_threshold.value) };
  return { remasking, denoising_steps: Number(field.denoising_steps.value), ...threshold };
}

async function decode(side, signal) {
  const { title, field, heading, numbers, box, readout, map, status } = side;
  heading.textContent = `${title}: ${field.model.value}`;
  for (const part of [box, readout, map, status]) part.replaceChildren();
  numbers.textContent = "waiting";
  const body = {
    model: field.model.value,
    messages: [{ role: "user", content: form.elements.prompt.value }],
    seed: Number(form.elements.seed.value),
    max_tokens: Number(form.elements.max_tokens.value),
    stream: true,
    stream_options: { denoising: true },
    ...setting(side),
  };
  let response, start, finish;
  let [done, passes] = [0, 0];
  const tell = () => {
    const seconds = (performance.now() - start) / 1000;
    numbers.textContent = `${done} tokens, ${passes} passes, ${(done / seconds).toFixed(0)} tokens/s`;
  };
  try {
    const answer = await ask("/v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal });
    for await (const { error, choices } of events(answer)) {
      if (error) throw new Error(error.message);
      const [choice] = choices;
      if (choice.layout) {
        const { prompt_tokens: length, block_size: size } = choice.layout;
        start = performance.now();
        response = new TokenLine(box, readout, { offset: length % size, size, numSteps: scale() });
        response.resize(size - (length % size));
      }
      if (choice.denoising) {
        const { step, pass, positions, texts, log_probs: logProbs } = choice.denoising;
        const block = Math.floor((response.offset + Math.max(...positions)) / response.size) + 1;
        response.resize(Math.max(response.cells.length, block * response.size - response.offset));
        positions.forEach((place, i) => response.commit(place, texts[i] || STOP, step, logProbs[i]));
        done += positions.length;
        passes = pass;
        tell();
      }
      if (choice.finish_reason) {
        finish = choice;
        done = choice.token_ids.length;
        passes = choice.passes.total;
        response.resize(done);
        tell();
      }
    }
    if (!finish) throw new Error("The connection ended before the answer did.");
    drawMap(map, response);
    status.textContent = `${title} finished: ${done} tokens in ${passes} passes${finish.finish_reason === "length" ? ", cut at the limit of tokens" : ""}.`;
  } catch (error) {
    status.textContent = error.name === "AbortError" ? "Stopped." : error.message;
    status.classList.toggle("wrong", error.name !== "AbortError");
  }
}

/** The step of every token, block by block. */
function drawMap(box, { cells, offset, size, numSteps }) {
  const blocks = new Map();
  cells.forEach(({ step }, place) => {
    const block = Math.floor((offset + place) / size);
    if (!blocks.has(block)) blocks.set(block, make("span", { className: "block" }));
    blocks.get(block).append(make("span", { className: `t ${stepShade(step, numSteps)}` }, step + 1));
  });
  box.append(make("h3", {}, "Step map"), ...blocks.values());
}

/** Steps on the scale of colours, which both sides share. */
const scale = () => Math.max(...sides.map(({ field }) => Number(field.denoising_steps.max)));

function show() {
  for (const { field } of sides) {
    field.denoising_steps.max = models.get(field.model.value)?.decoding.block_size ?? 1;
    field.confidence_threshold.disabled = field.remasking.value !== "low_confidence_dynamic";
    for (const slider of [field.denoising_steps, field.confidence_threshold]) {
      slider.parentElement.querySelector("output").textContent = slider.value;
    }
  }
  drawLegend($("legend"), scale());
  $("link").href = `#${new URLSearchParams(new FormData(form))}`;
}

async function run() {
  running = new AbortController();
  $("go").disabled = true;
  $("stop").disabled = false;
  history.replaceState(null, "", $("link").href);
  // On a phone the answers lie below the settings.
  if ($("sides").getBoundingClientRect().top > innerHeight) $("legend").scrollIntoView();
  await Promise.all(sides.map((side) => decode(side, running.signal)));
  $("go").disabled = false;
  $("stop").disabled = true;
}

/** Ask which models there are, and take the settings that the address names. */
async function load() {
  try {
    const { data: list } = await (await ask("/v1/models")).json();
    models = new Map(list.map((model) => [model.id, model]));
  } catch (error) {
    $("problem").textContent = error.message;
    return;
  }
  $("problem").textContent = "";
  for (const { number, field } of sides) {
    field.model.replaceChildren(...[...models.keys()].map((id) => make("option", { value: id }, id)));
    field.model.selectedIndex = number * (models.size - 1);
    show();
    field.denoising_steps.value = number ? 1 : field.denoising_steps.max;
  }
  const asked = new URLSearchParams(location.hash.slice(1));
  // The models come first: they bound the steps.
  for (const [name, value] of [...asked].sort(([a], [b]) => b.startsWith("model") - a.startsWith("model"))) {
    if (form.elements[name]) form.elements[name].value = value;
    show();
  }
  show();
  if (asked.size && form.reportValidity()) run();
}

form.addEventListener("input", show);
form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (running === null || $("stop").disabled) run();
});
form.elements.prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
$("stop").addEventListener("click", () => running.abort());
$("key").addEventListener("change", load);
$("link").addEventListener("click", () => history.replaceState(null, "", $("link").href));
load();
