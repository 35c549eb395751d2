"use strict";
// Photos are sent with each change of a control: the server keeps nothing of them.
const photos = document.getElementById("photos");
const knobs = document.getElementById("knobs");
const said = document.getElementById("said");
const maxBytes = Number(document.body.dataset.maxBytes);
const AT_ONCE = 2; // requests; the server has places for other people, too
const PAUSE_MS = 250; // after a control was moved
const TRIES = 60;

const WORDS = {
  empty: "This file is empty.",
  unreadable: "This file is not a photo that can be read.",
  truncated: "This photo is damaged: its end is missing.",
  decompression_bomb: "This photo has too many pixels.",
  file_too_large: "This file is too large.",
  in_color: "This photo has colours already.",
  format: "The picture cannot be written in this photo's format.",
  busy: "The server is busy. Try again in a moment.",
  timeout: "The photo took too long. Try again, or use a smaller one.",
  slow: "The photo took too long to arrive. Try again, or use a smaller one.",
  memory: "The server has too little memory for this photo.",
  shutting_down: "The server is shutting down.",
  token: "Your access has expired. Open the link with the token again.",
  network: "The server cannot be reached. Is cc serve still running?",
};
const WITH_NUMBERS = ["decompression_bomb", "file_too_large"]; // whose message has the limit
const SUFFIXES = {
  "image/jpeg": "jpg", "image/png": "png", "image/tiff": "tif", "image/webp": "webp",
  "image/avif": "avif", "image/bmp": "bmp", "image/x-portable-anymap": "ppm",
};

class Problem extends Error {
  constructor(reason, detail) {
    super(WORDS[reason] || "The photo could not be colourized.");
    this.reason = reason;
    this.detail = WORDS[reason] && !WITH_NUMBERS.includes(reason) ? "" : detail || "";
  }
}

// -- the controls ----------------------------------------------------------------------------

const sliders = [...knobs.querySelectorAll("input")];
// A slider that has not been moved says nothing, so that the model's own value holds exactly.
for (const slider of sliders) slider.dataset.first = slider.value;

const showKnobs = () => {
  for (const slider of sliders) {
    const own = slider.value === slider.dataset.first;
    const value = own && slider.dataset.exact ? slider.dataset.exact : slider.value;
    const text = slider.name === "strength" ? `${Math.round(value * 100)}%` : `${Number(value)}`;
    slider.parentElement.querySelector(".value").textContent = text;
    slider.setAttribute("aria-valuetext", text);
  }
};

const asked = (card) => {
  const query = new URLSearchParams();
  for (const slider of sliders) {
    const shown = !slider.parentElement.hidden;
    if (shown && slider.value !== slider.dataset.first) query.set(slider.name, slider.value);
  }
  if (card.force) query.set("force", "true");
  return query.toString();
};

let pause = 0;
knobs.addEventListener("input", () => {
  showKnobs();
  clearTimeout(pause);
  pause = setTimeout(recolour, PAUSE_MS);
});
knobs.addEventListener("reset", () => {
  setTimeout(() => { // once the sliders have their first values
    showKnobs();
    recolour();
  });
});
knobs.addEventListener("submit", (event) => event.preventDefault());

// -- requests --------------------------------------------------------------------------------

const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

const send = async (path, card, signal) => {
  for (let tries = 1; ; tries += 1) {
    let response;
    try {
      response = await fetch(`${path}?${asked(card)}`, {
        method: "POST", body: card.file, signal,
        headers: { "Content-Type": "application/octet-stream" },
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem("network");
    }
    if (response.ok) return response;
    if (response.status === 429 && tries < TRIES) {
      await wait(1000 * Number(response.headers.get("Retry-After") || 1) * (0.5 + Math.random()));
      continue;
    }
    const { error, reason } = await response.json().catch(() => ({}));
    throw new Problem(reason, error);
  }
};

// -- photos ----------------------------------------------------------------------------------

const cards = new Map(); // by figure: {file, force, shown, abort, figure}
let running = 0;

const part = (card, name) => card.figure.querySelector(`.${name}`);

const stateOf = (card, { waiting = "", problem = null, busy = false }) => {
  part(card, "wait").textContent = waiting;
  part(card, "wait").hidden = !waiting;
  part(card, "problem").hidden = !problem;
  part(card, "problem").textContent = problem ? problem.message : "";
  part(card, "note").textContent = problem ? problem.detail : "";
  part(card, "pictures").hidden = !card.drawn || Boolean(problem);
  part(card, "download").hidden = !card.drawn || Boolean(problem);
  part(card, "force").hidden = !problem || problem.reason !== "in_color";
  part(card, "again").hidden = !problem || !["busy", "timeout", "slow", "memory", "network",
    "shutting_down"].includes(problem.reason);
  card.figure.classList.toggle("busy", busy);
  card.figure.setAttribute("aria-busy", String(busy || Boolean(waiting)));
};

const inSight = (card) => {
  const box = card.figure.getBoundingClientRect();
  return box.bottom > 0 && box.top < innerHeight;
};

// Photos whose colours are not those that are asked for, those in sight first.
const next = () => {
  const stale = [...cards.values()].filter(
    (card) => !card.abort && !card.problem && card.drawn !== `?${asked(card)}`,
  );
  return stale.find(inSight) || stale[0];
};

const work = () => {
  while (running < AT_ONCE) {
    const card = next();
    if (!card) return;
    running += 1;
    draw(card).finally(() => {
      running -= 1;
      work();
    });
  }
};

const draw = async (card) => {
  const abort = new AbortController();
  const drawn = `?${asked(card)}`;
  card.abort = abort;
  stateOf(card, card.drawn ? { busy: true } : { waiting: "Colourizing…" });
  try {
    const response = await send("/preview", card, abort.signal);
    const pictures = await response.json();
    if (abort.signal.aborted) return;
    for (const side of ["before", "after"]) {
      const image = card.figure.querySelector(`.${side} img`);
      image.src = pictures[side];
      await image.decode().catch(() => {});
    }
    if (!card.drawn) said.textContent = `${card.file.name} is colourized`;
    card.drawn = drawn;
    stateOf(card, {});
  } catch (error) {
    if (error.name === "AbortError") return;
    card.problem = error instanceof Problem ? error : new Problem("", String(error));
    stateOf(card, { problem: card.problem });
  } finally {
    if (card.abort === abort) card.abort = null;
  }
};

const recolour = () => {
  for (const card of cards.values()) {
    if (card.abort) card.abort.abort(); // its colours are out of date
    if (card.problem && card.problem.reason === "network") card.problem = null;
  }
  work();
};

const add = (files) => {
  for (const file of files) {
    const figure = document.getElementById("photo").content.firstElementChild.cloneNode(true);
    const card = { file, figure, force: false, drawn: "", abort: null, problem: null };
    cards.set(figure, card);
    figure.querySelector(".name").textContent = file.name;
    figure.querySelector(".pair input").setAttribute("aria-label", `Before and after: ${file.name}`);
    for (const side of ["before", "after"]) {
      figure.querySelector(`.${side} img`).alt = `${file.name}, ${side}`;
    }
    photos.append(figure);
    if (file.size > maxBytes) {
      const most = Math.floor(maxBytes / 2 ** 20);
      card.problem = new Problem("file_too_large", `At most ${most} MiB are allowed.`);
      stateOf(card, { problem: card.problem });
    }
  }
  work();
};

const download = async (card, button) => {
  button.disabled = true;
  button.textContent = "Preparing…";
  try {
    const response = await send("/colorize", card);
    const blob = await response.blob();
    const suffix = SUFFIXES[response.headers.get("Content-Type")] || "png";
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${card.file.name.replace(/\.[^.]*$/, "")}-colorized.${suffix}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  } catch (error) {
    part(card, "note").textContent = error.message;
  } finally {
    button.disabled = false;
    button.textContent = "Download";
  }
};

photos.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  const card = button && cards.get(button.closest("figure"));
  if (!card) return;
  if (button.classList.contains("download")) {
    download(card, button);
  } else if (button.classList.contains("remove")) {
    if (card.abort) card.abort.abort();
    cards.delete(card.figure);
    card.figure.remove();
    document.getElementById("files").focus();
    work();
  } else {
    card.force ||= button.classList.contains("force");
    card.problem = null;
    stateOf(card, { waiting: "Waiting" });
    work();
  }
});

// -- ways in ---------------------------------------------------------------------------------

document.getElementById("files").addEventListener("change", (event) => {
  add(event.target.files);
  event.target.value = ""; // the same file may be chosen again
});

let inside = 0;
const over = (change) => {
  inside = Math.max(0, inside + change);
  root.classList.toggle("over", inside > 0);
};
addEventListener("dragenter", () => over(1));
addEventListener("dragleave", () => over(-1));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  over(-inside);
  add(event.dataTransfer.files);
});
addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) add(event.clipboardData.files);
});

showKnobs();
