const { sides, texts, num_steps: numSteps, problems } = data();
const CHUNK = 20;
let found = [];
let drawn = 0;

const chosen = () => [$("left").value, $("right").value].filter((value, i, all) => value !== "" && all.indexOf(value) === i);
const told = (response) => response.tokens.map((token) => texts[token]).join("");

/** Whether a problem passes all filters, by the responses that are shown. */
function matches({ question, answer, responses }) {
  const shown = chosen().map((side) => responses[side]);
  const known = shown.filter(Boolean);
  const verdicts = shown.map((response) => response?.correct);
  const verdict = {
    all: true,
    right: verdicts.every((correct) => correct === true),
    wrong: verdicts.includes(false),
    first: verdicts[0] === true && verdicts[1] === false,
    second: verdicts[0] === false && verdicts[1] === true,
  }[$("verdict").value];
  const least = Number($("least").value || 0);
  const most = Number($("most").value || Infinity);
  const words = $("words").value.toLowerCase();
  return (
    verdict &&
    known.some(({ tokens }) => tokens.length >= least && tokens.length <= most) &&
    (!words || [question, answer ?? "", ...known.map(told)].some((text) => text.toLowerCase().includes(words)))
  );
}

/** Accuracy and tokens a pass of one side over the problems that were found. */
function summary(side) {
  const own = found.map(({ responses }) => responses[side]).filter(Boolean);
  const graded = own.filter(({ correct }) => correct !== null);
  const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
  const passes = sum(own.map((response) => response.passes ?? NaN));
  const parts = [`${sides[side]}: ${own.length}`];
  if (graded.length) parts.push(`${percent(graded.filter(({ correct }) => correct).length / graded.length)} right`);
  if (passes) parts.push(`${(sum(own.map(({ tokens }) => tokens.length)) / passes).toFixed(2)} tokens a pass`);
  return make("div", {}, parts.join(", "));
}

function filter() {
  found = problems.filter(matches);
  drawn = 0;
  $("cards").replaceChildren();
  $("found").replaceChildren(make("div", {}, `${found.length} of ${problems.length} problems`), ...chosen().map(summary));
  drawLegend($("legend"), numSteps, $("colour").value === "confidence");
  drawMore();
}

/** The next cards; all others wait until the reader comes near, so that thousands cost nothing. */
function drawMore() {
  $("cards").append(...found.slice(drawn, drawn + CHUNK).map(card));
  drawn = Math.min(found.length, drawn + CHUNK);
  $("more").hidden = drawn === found.length;
}

function card(problem) {
  const number = problems.indexOf(problem) + 1;
  const shown = chosen().filter((side) => problem.responses[side]);
  const byConfidence = $("colour").value === "confidence";
  const most = Math.max(...shown.map((side) => problem.responses[side].passes ?? 0));
  const drawnSides = shown.map((side) => drawSide(sides[side], problem.responses[side], most));
  const ranks = drawnSides.map(({ response }) => response.ranks());
  const last = 1 + Math.max(-1, ...ranks.flat());
  const slider = make("input", { type: "range", min: 0, max: last, value: last, ariaLabel: `Replay of problem ${number}: steps done` });
  const output = make("output");
  slider.oninput = () => {
    const done = Number(slider.value);
    drawnSides.forEach(({ response }, i) =>
      response.cells.forEach((cell, place) =>
        response.paint(cell, { masked: ranks[i][place] >= done, fresh: done < last && ranks[i][place] === done - 1, byConfidence }),
      ),
    );
    output.textContent = `step ${done} of ${last}`;
    slider.setAttribute("aria-valuetext", output.textContent);
  };
  slider.oninput();
  return make(
    "article",
    { className: "card" },
    make("h3", { className: "soft" }, `Problem ${number}`),
    make("p", { className: "question" }, problem.question),
    ...(problem.answer === null ? [] : [make("p", { className: "soft" }, `Gold answer: ${problem.answer}`)]),
    make("div", { className: "replay" }, make("span", { className: "soft" }, "Replay"), slider, output),
    make("div", { className: "sides" }, ...drawnSides.map(({ element }) => element)),
  );
}

function drawSide(title, { tokens, steps, log_probs: logProbs, offset, size, correct, verdict, cost, passes }, most) {
  const box = make("div", { className: "text", tabIndex: 0, role: "group", ariaLabel: `${title}: response. Arrow keys tell step and confidence of each token.` });
  const readout = make("div", { className: "readout", role: "status" });
  const response = new TokenLine(box, readout, { offset, size, numSteps });
  response.resize(tokens.length);
  tokens.forEach((token, i) => response.commit(i, texts[token], steps[i], logProbs?.[i]));
  const fill = make("i");
  fill.style.width = `${(100 * passes) / most}%`;
  const element = make(
    "section",
    { className: "side" },
    make(
      "div",
      { className: "about" },
      make("h3", {}, title),
      make("span", { className: `verdict ${correct === null ? "" : correct ? "right" : "wrong"}` }, verdict),
      make("span", { className: "soft number cost" }, cost),
    ),
    ...(passes === null ? [] : [make("div", { className: "bar" }, fill)]),
    box,
    readout,
  );
  return { element, response };
}

const options = () => sides.map((title, value) => make("option", { value }, title));
$("left").append(...options());
$("right").append(make("option", { value: "" }, "nothing"), ...options());
if (sides.length > 1) $("right").value = sides.length - 1;
else for (const part of document.querySelectorAll(".two")) part.hidden = true;
$("filter").addEventListener("input", filter);
$("filter").addEventListener("submit", (event) => event.preventDefault());
$("more").addEventListener("click", drawMore);
new IntersectionObserver(([{ isIntersecting }]) => isIntersecting && drawMore(), { rootMargin: "800px" }).observe($("more"));
filter();
