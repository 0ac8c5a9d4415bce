"use strict";
// Sorting, enlarging and copying; without this script the page shows the same, in its first order.
const cards = document.getElementById("cards");
const order = document.getElementById("order");
const large = document.getElementById("large");

// What each choice sorts by, and which way.
const SORTS = { row: ["row", 1], like: ["like", 1], near: ["near", 1], far: ["near", -1], class: ["class", 1] };

order.addEventListener("change", () => {
  const [key, way] = SORTS[order.value];
  const sorted = [...cards.children].sort(
    (a, b) => way * (Number(a.dataset[key]) - Number(b.dataset[key])) || a.dataset.row - b.dataset.row);
  cards.append(...sorted);
});
document.querySelector(".controls").hidden = false;

// A picture large, beside the real image of its row and the real image nearest to it; small ones in squares.
const SMALL = 128;
let shown = null;

function enlarge(button) {
  const figure = button.closest("figure");
  const pictures = [button.querySelector("img")];
  if (figure.classList.contains("made")) {
    pictures.unshift(...button.closest(".card").querySelectorAll(".source img"));
    for (const image of figure.querySelectorAll("img")) if (!pictures.includes(image)) pictures.push(image);
  }
  large.querySelector(".large").replaceChildren(...pictures.map((image) => {
    const copy = document.createElement("figure");
    const caption = document.createElement("figcaption");
    caption.textContent = image.alt;
    const picture = image.cloneNode();
    picture.classList.toggle("pixels", image.naturalWidth <= SMALL);
    copy.append(picture, caption);
    return copy;
  }));
  shown = button;
  if (!large.open) large.showModal();
}

function step(by) {
  const all = [...cards.querySelectorAll(".zoom")];
  enlarge(all[(all.indexOf(shown) + by + all.length) % all.length]);
}

cards.addEventListener("click", (event) => {
  const button = event.target.closest(".zoom");
  if (button) enlarge(button);
});
large.addEventListener("click", (event) => {
  if (event.target === large || "close" in event.target.dataset) large.close();
  else if (event.target.dataset.step) step(Number(event.target.dataset.step));
});
large.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
large.addEventListener("close", () => shown.focus());

// A page in a file may be refused the clipboard: then the text is selected for the reader to copy.
for (const button of document.querySelectorAll(".copy")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const text = document.getElementById(button.dataset.of);
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(text);
      button.textContent = "Selected: copy it with your keyboard";
    }
  });
}
