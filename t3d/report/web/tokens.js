"use strict";

const $ = (id) => document.getElementById(id);
const data = () => JSON.parse($("data").textContent);

/** An element with properties and children. Text stays text: nothing is ever read as HTML. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** The class of a colour of the scale, for a share from 0 to 1. */
const shade = (share) => `c${Math.round(64 * Math.min(1, Math.max(0, share)))}`;
const stepShade = (step, numSteps) => shade(step / Math.max(numSteps - 1, 1));
const percent = (share) => `${(100 * share).toFixed(1)} %`;

/** One swatch for each step, or the ends of the scale of confidence. */
function drawLegend(box, numSteps, byConfidence = false) {
  const swatch = (text, colour) => make("span", { className: `t ${colour}` }, text);
  const swatches = byConfidence
    ? [0, 25, 50, 75, 100].map((share) => swatch(`${share} %`, shade(share / 100)))
    : Array.from({ length: numSteps }, (_, step) => swatch(step + 1, stepShade(step, numSteps)));
  box.replaceChildren(byConfidence ? "confidence" : "step", ...swatches, make("span", { className: "b" }), "block boundary");
}

/** A response as a line of tokens, each masked until it is committed. */
class TokenLine {
  /**
   * box holds the tokens and readout tells of one of them; numSteps is that of the colour scale.
   * offset is the position of the first token in its block, size the length of a block.
   */
  constructor(box, readout, { offset, size, numSteps }) {
    Object.assign(this, { box, readout, offset, size, numSteps, cells: [], pointed: -1 });
    box.replaceChildren();
    box.onpointerover = box.onclick = (event) => {
      const cell = event.target.closest(".t");
      if (cell) this.point(this.cells.findIndex((one) => one.span === cell));
    };
    box.onkeydown = (event) => {
      const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!move || !this.cells.length) return;
      event.preventDefault();
      this.point(Math.min(this.cells.length - 1, Math.max(0, this.pointed + move)));
    };
  }

  /** The first `length` tokens; those that are new are masked, and others go. */
  resize(length) {
    while (this.cells.length < length) {
      const place = this.cells.length;
      if (place && (this.offset + place) % this.size === 0) this.box.append(make("span", { className: "b" }));
      const span = make("span", { className: "t masked" }, "    ");
      this.box.append(span);
      this.cells.push({ span });
    }
    for (const { span } of this.cells.splice(length)) {
      if (span.previousSibling?.className === "b") span.previousSibling.remove();
      span.remove();
    }
  }

  commit(place, text, step, logProb) {
    const cell = Object.assign(this.cells[place], { text, step, logProb });
    const lines = text.split("\n").flatMap((line, i) => (i ? [make("i", { className: "n" }), "\n", line] : [line]));
    cell.span.replaceChildren(...lines);
    this.paint(cell);
  }

  paint(cell, { masked = false, fresh = false, byConfidence = false } = {}) {
    const colour = byConfidence && cell.logProb !== undefined ? shade(Math.exp(cell.logProb)) : stepShade(cell.step, this.numSteps);
    cell.span.className = `t ${masked ? "masked" : colour}${fresh ? " fresh" : ""}${this.cells[this.pointed] === cell ? " pointed" : ""}`;
  }

  /** The number of each token's (block, step) among those that committed the response. */
  ranks() {
    const keys = this.cells.map(({ step }, i) => Math.floor((this.offset + i) / this.size) * 1e6 + step);
    const known = [...new Set(keys)].sort((a, b) => a - b);
    const rank = new Map(known.map((key, i) => [key, i]));
    return keys.map((key) => rank.get(key));
  }

  point(place) {
    this.cells[this.pointed]?.span.classList.remove("pointed");
    this.pointed = place;
    const { span, text, step, logProb } = this.cells[place];
    span.classList.add("pointed");
    const block = Math.floor((this.offset + place) / this.size) + 1;
    const where = `token ${place + 1} of ${this.cells.length}, block ${block}`;
    const confidence = logProb === undefined ? "" : `, confidence ${percent(Math.exp(logProb))}`;
    this.readout.textContent = span.classList.contains("masked")
      ? `${where}: masked`
      : `“${text}”: ${where}, step ${step + 1}${confidence}`;
  }
}
