"use strict";
// A picture may be dropped anywhere on the page, or pasted; without this script the form remains.
const form = document.querySelector("form.drop");
if (form) {
  const field = form.querySelector("input[type=file]");
  const send = (files) => {
    if (!files.length || !files[0].type.startsWith("image/")) return false;
    const one = new DataTransfer();
    one.items.add(files[0]);
    field.files = one.files;
    form.submit();
    return true;
  };
  for (const kind of ["dragenter", "dragover"])
    addEventListener(kind, (event) => {
      if (![...event.dataTransfer.types].includes("Files")) return;
      event.preventDefault();
      document.body.classList.add("dragging");
    });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dragging");
  });
  addEventListener("drop", (event) => {
    document.body.classList.remove("dragging");
    if (send(event.dataTransfer.files)) event.preventDefault();
  });
  addEventListener("paste", (event) => {
    if (send(event.clipboardData.files)) event.preventDefault();
  });
  field.addEventListener("change", () => field.files.length && form.submit());
}
// The slash leads to the sentence.
addEventListener("keydown", (event) => {
  const isTyping = event.target.closest("input, select, textarea");
  const sentence = document.querySelector("input[name=text]");
  if (event.key !== "/" || isTyping || !sentence) return;
  event.preventDefault();
  sentence.select();
});
