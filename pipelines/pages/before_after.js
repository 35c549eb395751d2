"use strict";
// All listeners sit on the document, so photos work while the rest of the page still loads.
const root = document.documentElement;
root.classList.add("js");

const show = (pair, percent) => {
  pair.style.setProperty("--split", `${percent}%`);
  pair.querySelector("input").setAttribute("aria-valuetext", `${Math.round(percent)}% before`);
};

document.addEventListener("input", (event) => {
  const pair = event.target.closest(".pair");
  if (pair) show(pair, Number(event.target.value));
});

// The mouse button, finger or pen that holds a photo: {pair, x, y, moves}, or null.
// A finger may be about to scroll the page, so the line moves once it goes sideways, or on a tap.
let held = null;
const SLOP = 6; // CSS pixels

const follow = ({ clientX }) => {
  const box = held.pair.getBoundingClientRect();
  const percent = 100 * Math.min(1, Math.max(0, (clientX - box.left) / box.width));
  held.pair.querySelector("input").value = percent;
  show(held.pair, percent);
};

document.addEventListener("pointerdown", (event) => {
  const pair = event.target.closest(".pair");
  if (!pair || !event.isPrimary || event.button !== 0) return;
  event.preventDefault();
  root.classList.add("pointer");
  pair.setPointerCapture(event.pointerId);
  pair.querySelector("input").focus({ preventScroll: true });
  held = { pair, x: event.clientX, y: event.clientY, moves: event.pointerType === "mouse" };
  if (held.moves) follow(event);
});

document.addEventListener("pointermove", (event) => {
  if (!held || !event.isPrimary) return;
  const [x, y] = [Math.abs(event.clientX - held.x), Math.abs(event.clientY - held.y)];
  held.moves ||= x > SLOP && x > y;
  if (held.moves) follow(event);
});

document.addEventListener("pointerup", (event) => {
  if (!held || !event.isPrimary) return;
  follow(event);
  held = null;
});

// The browser has taken the finger, to scroll or zoom.
document.addEventListener("pointercancel", () => {
  held = null;
});

document.addEventListener("keydown", () => {
  root.classList.remove("pointer");
});
