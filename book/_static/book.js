// Writes the reading time of a page below its title.
document.addEventListener("DOMContentLoaded", () => {
  const article = document.querySelector("article.bd-article");
  const title = article && article.querySelector("h1");
  if (!title) return;
  const words = article.innerText.trim().split(/\s+/).length;
  const note = document.createElement("p");
  note.className = "edu-reading-time";
  note.textContent = `about ${Math.max(1, Math.round(words / 200))} min read`;
  title.insertAdjacentElement("afterend", note);
});
