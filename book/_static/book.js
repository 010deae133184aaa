// Writes the reading time of a page below its title.
function tellReadingTime(article) {
  const title = article.querySelector("h1");
  if (!title) return;
  const words = article.innerText.trim().split(/\s+/).length;
  const note = document.createElement("p");
  note.className = "edu-reading-time";
  note.textContent = `about ${Math.max(1, Math.round(words / 200))} min read`;
  title.insertAdjacentElement("afterend", note);
}

// Marks formulas that are wider than their place, so that they scroll and show it.
// A formula in a dropdown gets its place when that is opened: hence the observer.
function watchFormulas(article) {
  const look = (box) => {
    // A formula's hidden text for screen readers sticks out; only what is drawn counts.
    const drawn = box.querySelector(":scope > mjx-container > mjx-math");
    const width = drawn ? drawn.getBoundingClientRect().width : box.scrollWidth;
    const hidden = width - box.clientWidth;
    box.classList.toggle("edu-wide", box.clientWidth > 0 && hidden > 2);
    box.classList.toggle("edu-end", box.scrollLeft >= hidden - 2);
  };
  const observer = new ResizeObserver((all) => all.forEach((one) => look(one.target)));
  const inTable = "td span.math, th span.math";
  const inline = [...article.querySelectorAll("span.math")];
  const boxes = inline.filter((formula) => !formula.matches(inTable));
  boxes.push(...article.querySelectorAll("div.math mjx-container"));
  for (const box of boxes) {
    observer.observe(box);
    box.addEventListener("scroll", () => look(box), { passive: true });
  }
}

// Names the theme's buttons by what is written on them, and on them only.
function nameButtons() {
  const written = ".search-button-field, details.hide > summary";
  for (const button of document.querySelectorAll(written))
    button.removeAttribute("aria-label");
  for (const icon of document.querySelectorAll(".theme-switch-button [title]"))
    icon.removeAttribute("title");
  for (const title of document.querySelectorAll(".theme-switch-button title"))
    title.remove();
  for (const drawn of document.querySelectorAll(".theme-switch-button svg")) {
    drawn.removeAttribute("aria-labelledby");
    drawn.setAttribute("aria-hidden", "true");
  }
}

document.addEventListener("DOMContentLoaded", () => {
  nameButtons();
  addEventListener("load", nameButtons);
  const article = document.querySelector("article.bd-article");
  if (!article) return;
  tellReadingTime(article);
  window.MathJax?.startup?.promise?.then(() => watchFormulas(article));
});
